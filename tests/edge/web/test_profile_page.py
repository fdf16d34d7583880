"""profile.html in a browser: at every width all of it can be seen or scrolled to, read, and told apart.

Boxes are those that the browser draws, of a real profile and of one with everything that makes room scarce.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from edge.profiles.columns import COLUMNS, NAME, told_once
from edge.profiles.record import Profile, read_profile
from edge.profiles.report import write_report
from tests.profiles.rows import profile, row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow

RESULTS = Path(__file__).parents[3] / "profiles" / "results"
WIDTHS, SMALLEST_LETTERS = (360, 1280, 2000), 10.0


def crowded() -> Profile:
    """Spreads, two cache settings, three rows that nearly coincide, long names, Chinese, and a sweep that goes on."""
    shipped = read_profile(RESULTS)
    assert shipped.rows
    rows = [
        replace(
            one,
            setting=setting,
            decode_samples=tuple((one.decode_tokens_per_second or 0.0) * share for share in (0.99, 1.0, 1.0 + apart)),
            ttft_ms_samples=tuple((one.ttft_ms or 0.0) * share for share in (0.99, 1.0, 1.0 + apart)),
        )
        for one, apart in zip(shipped.rows, [0.02, 0.3] * 6, strict=True)
        for setting in ("default", "kv u8")
    ]
    return replace(shipped, source="模型 GLM-4-9B-chat <long name> " * 3, rows=tuple(rows), num_cells=40)


PROFILES: dict[str, Callable[[], Profile]] = {
    "shipped": lambda: read_profile(RESULTS),
    "crowded": crowded,
    "one row": lambda: profile(row()),
    "no speed": lambda: profile(row("a", tps=None), row("b", tps=None, kld=0.1)),
    "no rows": profile,
}

BOXES = """() => {
  const seen = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const parent = node.parentElement;
    if (!node.data.trim() || parent.closest('script, style, [hidden]')) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const drawn = parent.closest('svg');
    const scale = drawn ? drawn.getBoundingClientRect().width / drawn.viewBox.baseVal.width : 1;
    for (const box of range.getClientRects()) {
      const { x, y, width, height } = box;
      if (!width || !height) continue;
      const sticky = parent.closest('.first') !== null, svg = drawn !== null;
      const scroll = parent.closest('.scroll');
      const frame = scroll ? scroll.getBoundingClientRect() : null;
      seen.push({ text: node.data.trim(), x, y, width, height, sticky, svg, scrolled: scroll !== null,
        reach: scroll ? frame.x - scroll.scrollLeft + scroll.scrollWidth : innerWidth,
        letters: parseFloat(getComputedStyle(parent).fontSize) * scale });
    }
  }
  return seen;
}"""


# Texts in a plot that touch its frame, being neither inside nor outside.
ON_THE_FRAME = """() => [...document.querySelectorAll('figure svg')].flatMap((svg) => {
  const frame = svg.querySelector('#patch_2').getBoundingClientRect();
  return [...svg.querySelectorAll('text')].filter((text) => {
    const box = text.getBoundingClientRect();
    const inside = box.left > frame.left + 2 && box.right < frame.right - 2
      && box.top > frame.top + 2 && box.bottom < frame.bottom - 2;
    const beside = box.right < frame.left || box.left > frame.right;
    const outside = beside || box.bottom < frame.top || box.top > frame.bottom;
    return !inside && !outside;
  }).map((text) => text.textContent);
})"""
# Pairs of boxes that are into each other. The first column covers what is scrolled under it, as it should.
OVERLAPS = """boxes => boxes.flatMap((a, i) => boxes.slice(i + 1).filter(b => a.sticky === b.sticky
  && Math.min(a.x + a.width, b.x + b.width) - Math.max(a.x, b.x) > 1.5
  && Math.min(a.y + a.height, b.y + b.height) - Math.max(a.y, b.y) > 1.5).map(b => [a, b]))"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    found = {}
    for name, made in PROFILES.items():
        out = tmp_path_factory.mktemp("profile")
        write_report(made(), out)
        found[name] = (out / "profile.html").as_uri()
    return found


@pytest.fixture(params=[(width, theme) for width in WIDTHS for theme in ("light", "dark")], ids=str)
def screen(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    width, theme = request.param
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
    yield context.new_page()
    context.close()


@pytest.mark.parametrize("name", PROFILES)
def test_everything_can_be_seen_and_nothing_overlaps(screen: Page, pages: dict[str, str], name: str) -> None:
    screen.goto(pages[name])
    width = screen.evaluate("innerWidth")
    assert screen.evaluate("document.documentElement.scrollWidth") <= width, "the page itself is never too wide"
    boxes = screen.evaluate(BOXES)
    assert boxes
    for box in boxes:
        assert box["letters"] >= SMALLEST_LETTERS, box
        assert box["x"] >= 0, box
        assert box["x"] + box["width"] <= box["reach"] + 0.5, f"{box} cannot be scrolled to"
        assert box["scrolled"] or box["x"] + box["width"] <= width, box
    assert not screen.evaluate(OVERLAPS, boxes)
    assert not screen.evaluate(ON_THE_FRAME)


@pytest.mark.parametrize("name", ["shipped", "crowded"])
def test_what_is_outside_is_told_and_can_be_scrolled_to(screen: Page, pages: dict[str, str], name: str) -> None:
    screen.goto(pages[name])
    for box in screen.locator(".scroll").all():
        wide = box.evaluate("box => box.scrollWidth > box.clientWidth")
        hint = box.evaluate("box => box.previousElementSibling.hidden")
        assert hint != wide, "a hint where there is something to scroll to, and only there"
        assert box.evaluate("box => getComputedStyle(box).overflowX") == "auto", "a bar to scroll by"
        assert box.get_attribute("tabindex") == ("0" if wide else "-1"), "the keyboard scrolls it, too"
    table, last, first = screen.locator("table"), screen.locator("thead th").last, screen.locator("tbody th").first
    last.scroll_into_view_if_needed()
    frame, shown, name_box = (place.bounding_box() for place in (table.locator(".."), last, first))
    assert frame is not None
    assert shown is not None
    assert name_box is not None
    assert shown["x"] + shown["width"] <= frame["x"] + frame["width"] + 0.5
    assert name_box["x"] == pytest.approx(frame["x"], abs=0.5), "the name stays where it is"
    assert name_box["x"] + name_box["width"] <= shown["x"], "and leaves room for the last column"


def test_wide_screens_show_the_whole_table(screen: Page, pages: dict[str, str]) -> None:
    screen.goto(pages["shipped"])
    wide = screen.locator(".scroll").first.evaluate("box => box.scrollWidth > box.clientWidth")
    assert wide == (screen.evaluate("innerWidth") < 1000)


def test_a_title_sorts_by_its_column(browser: Browser, pages: dict[str, str]) -> None:
    screen = browser.new_page(viewport={"width": 360, "height": 740})
    screen.goto(pages["crowded"])
    for column in [column for column in COLUMNS if column.group != NAME and column not in told_once(crowded().rows)]:
        screen.get_by_role("button", name=column.title, exact=True).click()
        place = screen.evaluate("[...document.querySelectorAll('th[aria-sort]')].findIndex(t => t.ariaSort !== 'none')")
        values = screen.locator(f"tbody td:nth-child({place + 1})").evaluate_all(
            "cells => cells.map(c => +c.dataset.v)"
        )
        assert len(values) == len(crowded().rows)
        assert values == sorted(values)
    first = screen.get_by_role("button", name="recipe")
    first.click()
    first.click()
    names = screen.locator("tbody .recipe").all_inner_texts()
    assert names[0].startswith("int8")
    assert names[-1].startswith("int4-asym-g128")
    screen.close()


@pytest.mark.parametrize("name", ["shipped", "crowded"])
def test_axe_finds_nothing(screen: Page, pages: dict[str, str], axe_source: str, name: str) -> None:
    screen.goto(pages[name])
    screen.evaluate(f"() => {{ {axe_source} }}")
    found = screen.evaluate("async () => (await axe.run({resultTypes: ['violations']})).violations")
    assert not [(rule["id"], node["target"], node["failureSummary"]) for rule in found for node in rule["nodes"]]
