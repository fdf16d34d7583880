"""A kiosk forgets its visitor, and only when nobody is there and nothing is being answered."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.edge.web.fake_server import FakeServer, Json, Step, delta, ending, serving, spoken, text_of
from tests.edge.web.visitor import Visitor, visit

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow

IDLE_S, WARNING_S = 1.6, 0.8
CONFIG: Json = {
    "title": "City Museum",
    "greeting": "Ask about the collection",
    "suggestions": ["Where is the exit?", "من رسم الحصان؟"],
    "languages": ["en", "zh", "ar"],
    "placeholder": "Your question",
    "system": "You are a guide.",
    "max_prompt_chars": 40,
    "idle_seconds": IDLE_S,
    "idle_warning_seconds": WARNING_S,
}


def script(body: Json) -> Iterator[Step]:
    """Answer at once, or for longer than a kiosk waits."""
    if text_of(body) == "slow":
        for number in range(25):
            yield delta(f"figure {number} ")
            yield 0.1
        yield from ending()
    elif text_of(body) == "hang":
        yield 8.0
    else:
        yield from spoken("The secret is 4711.")


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeServer]:
    with serving(script) as server:
        yield server


@pytest.fixture
def visitor(browser: Browser, fake: FakeServer) -> Iterator[Visitor]:
    fake.config = dict(CONFIG)
    fake.bodies.clear()
    fake.forgotten = 0
    with visit(browser, f"{fake.url}?kiosk=1") as found:
        yield found


def everything(visitor: Visitor) -> str:
    """Return all that the browser holds of a visitor."""
    held = visitor.page.evaluate(
        """async () => JSON.stringify([
            document.documentElement.outerHTML, location.href, document.title, document.cookie, history.state,
            {...localStorage}, {...sessionStorage}, (await indexedDB.databases()).map((found) => found.name),
            await caches.keys(), [...document.querySelectorAll('textarea, input')].map((field) => field.value),
        ])"""
    )
    return str(held)


def test_the_operators_words_and_nothing_else(visitor: Visitor, fake: FakeServer) -> None:
    assert visitor.page.title() == "City Museum"
    assert visitor.page.locator("#greeting").inner_text() == "Ask about the collection"
    for hidden in ("#sidebar", "#menu", "#attach", "#status"):
        assert not visitor.page.locator(hidden).is_visible()
    visitor.page.get_by_role("button", name="Where is the exit?").click()
    visitor.sees("4711")
    assert fake.bodies[-1]["messages"][0] == {"role": "system", "content": "You are a guide."}
    assert visitor.page.locator("#message").get_attribute("maxlength") == "40"
    size = visitor.page.evaluate("() => parseFloat(getComputedStyle(document.querySelector('#message')).fontSize)")
    assert size >= 20


def test_stop_is_on_the_screen(visitor: Visitor) -> None:
    visitor.write("slow")
    visitor.page.get_by_role("button", name="Stop").click()
    visitor.sees("Stopped.")


def test_a_visitor_is_forgotten(visitor: Visitor, fake: FakeServer) -> None:
    visitor.page.get_by_role("button", name="中文").click()
    visitor.ask("My name is Ada")
    assert fake.bodies[-1]["messages"][0]["content"].endswith("Answer in Chinese.")
    visitor.page.fill("#message", "unsent thought")
    visitor.page.evaluate("() => { localStorage.x = 'Ada'; sessionStorage.x = 'Ada'; location.hash = 'Ada'; }")
    assert "Ada" in everything(visitor)
    visitor.page.locator("#idle").wait_for()
    assert "秒后清除" in visitor.page.locator("#idle-text").inner_text()
    visitor.page.locator("#idle").wait_for(state="hidden")
    visitor.page.locator("#greeting").get_by_text("Ask about the collection").wait_for()
    assert fake.forgotten == 1, "the server drops keys and values, too"
    held = everything(visitor)
    for trace in ("Ada", "4711", "unsent", "edge-chat", "Answer in"):
        assert trace not in held
    assert visitor.page.url == f"{fake.url}?kiosk=1"
    visitor.page.keyboard.press("Control+z")
    assert visitor.page.input_value("#message") == "", "a field that is undone brings nothing back"
    visitor.ask("next one")
    assert "Ada" not in str(fake.bodies[-1])


def test_the_clock_stands_still_while_an_answer_runs(visitor: Visitor) -> None:
    visitor.write("slow")
    for _ in range(10):
        visitor.page.wait_for_timeout(200)
        assert not visitor.page.locator("#idle").is_visible()
    visitor.answer()
    ended = time.monotonic()
    visitor.page.locator("#idle").wait_for()
    assert time.monotonic() - ended > IDLE_S - WARNING_S - 0.5
    assert "figure 24" in everything(visitor), "the warning comes before anything is gone"


def test_a_touch_ends_the_warning(visitor: Visitor) -> None:
    visitor.ask("hello")
    visitor.page.locator("#idle").wait_for()
    assert visitor.page.evaluate("() => document.activeElement.id") == "idle-stay"
    visitor.page.keyboard.press("Enter")
    visitor.page.locator("#idle").wait_for(state="hidden")
    visitor.page.wait_for_timeout(500)
    assert visitor.questions == ["hello"]
    visitor.page.locator("#idle").wait_for()
    visitor.page.keyboard.press("Escape")
    visitor.page.wait_for_timeout(500)
    assert not visitor.page.locator("#idle").is_visible()
    visitor.page.locator("#idle").wait_for()
    visitor.page.mouse.move(5, 5)
    visitor.page.locator("#idle").wait_for(state="hidden")
    visitor.page.locator("#idle").wait_for()
    visitor.page.click("#idle-forget", delay=300)
    visitor.page.locator("#greeting").wait_for()
    assert visitor.questions == []


def test_a_server_that_died_does_not_hold_the_clock(visitor: Visitor) -> None:
    visitor.page.clock.install()
    visitor.page.reload()
    visitor.page.wait_for_selector("body.ready")
    visitor.page.clock.pause_at(visitor.page.evaluate("() => Date.now()") / 1000 + 1)  # or it goes on by itself as well
    visitor.write("hang")
    visitor.sees("Waiting")
    visitor.page.clock.run_for(59_000)
    visitor.sees("has been silent for 59 s")
    assert not visitor.page.locator("#idle").is_visible()
    visitor.page.clock.run_for(2_000)
    visitor.sees("The answer could not be finished.")
    visitor.page.clock.run_for(round(1000 * IDLE_S) + 500)
    assert visitor.questions == []


def test_start_over(visitor: Visitor) -> None:
    visitor.write("slow")
    visitor.sees("figure 3")
    visitor.page.click("#restart")
    visitor.page.locator("#greeting").wait_for()
    visitor.page.wait_for_timeout(500)
    assert "figure" not in everything(visitor), "the running answer was stopped, and writes no more"


def test_an_untouched_page_does_not_warn(visitor: Visitor) -> None:
    visitor.page.wait_for_timeout(1000 * IDLE_S + 300)
    assert not visitor.page.locator("#idle").is_visible()


def test_back_zoom_and_menus_lead_nowhere(visitor: Visitor, fake: FakeServer) -> None:
    visitor.ask("hello")
    visitor.page.evaluate("() => history.back()")
    visitor.page.wait_for_timeout(200)
    assert visitor.page.url == f"{fake.url}?kiosk=1"
    assert visitor.questions == ["hello"]
    prevented = visitor.page.evaluate(
        """() => ['contextmenu', 'dragstart', 'drop'].map((name) => {
            const event = new Event(name, {bubbles: true, cancelable: true});
            document.querySelector('#log').dispatchEvent(event);
            return event.defaultPrevented;
        })"""
    )
    assert prevented == [True, True, True]


def test_the_server_can_say_that_it_is_a_kiosk(browser: Browser, fake: FakeServer) -> None:
    fake.config = {**CONFIG, "kiosk": True}
    with visit(browser, fake.url) as visitor:
        assert not visitor.page.locator("#sidebar").is_visible()
        visitor.ask("hello")
        visitor.page.locator("#idle").wait_for()
        visitor.page.locator("#idle").wait_for(state="hidden")
        assert visitor.questions == []
        assert "edge-chat" not in everything(visitor)
