"""For every reader, keyboard, script and screen: axe-core, input methods, announcements, widths, directions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import pytest

from tests.edge.web.fake_server import FakeServer, Json, Step, delta, ending, serving, spoken, text_of
from tests.edge.web.visitor import Visitor, visit

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow

RICH = """## Tides

1. One [link](https://example.org) and `code`
2. Two

| Body | Share |
|---|--:|
| Moon | 68 % |

```python
height = 1.2 * cos(2 * pi * t / 12.42)  # metres, and a line that is much longer than a narrow screen can show at once
```

> Both at once.

Averyveryveryveryveryveryveryveryveryveryveryveryveryveryveryveryveryveryveryveryveryverylongword
"""
CHINESE = "潮汐是由月球和太阳的**引力**造成的。\n\n- 月球约占三分之二\n- 太阳约占三分之一"
ARABIC = "يحدث المد بسبب **جاذبية** القمر.\n\n1. القمر أقوى\n2. الشمس أضعف\n\n> اقتباس\n\nEnglish at the end."
WIDTHS = [(360, 740), (1280, 800), (1920, 1080)]
Theme = Literal["light", "dark"]


def script(body: Json) -> Iterator[Step]:
    """Answer with text of each kind."""
    text = text_of(body)
    if text == "call":
        call = {"index": 0, "id": "c", "function": {"name": "weather", "arguments": '{"city": "Ghent"}'}}
        yield {"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}
        yield from ending("tool_calls")
    elif text == "sentences":
        for part in ("The first ", "sentence. The sec", "ond one", " is *here*. A third"):
            yield delta(part)
            yield 0.3
        yield from ending()
    elif text == "error":
        yield {"error": {"message": "the cache is full", "code": "cache_full"}}
    else:
        yield from spoken({"zh": CHINESE, "ar": ARABIC}.get(text, RICH))


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeServer]:
    with serving(script) as server:
        yield server


@pytest.fixture
def visitor(browser: Browser, fake: FakeServer) -> Iterator[Visitor]:
    fake.config = {}
    fake.bodies.clear()
    with visit(browser, fake.url) as found:
        yield found


def grave(visitor: Visitor, axe: str, state: str) -> list[str]:
    """Return what axe-core calls serious or critical in the page as it is."""
    visitor.page.evaluate(f"() => {{ {axe} }}")
    found = visitor.page.evaluate("async () => (await axe.run({resultTypes: ['violations']})).violations")
    return [
        f"{state}: {rule['id']} at {node['target']}: {node['failureSummary']}"
        for rule in found
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_grave(browser: Browser, fake: FakeServer, axe_source: str, theme: Theme) -> None:
    fake.config = {"suggestions": ["One", "Two"]}
    with visit(browser, fake.url, theme=theme) as visitor:
        found = grave(visitor, axe_source, "fresh")
        visitor.ask("rich")
        visitor.ask("ar")
        visitor.ask("call")
        found += grave(visitor, axe_source, "answers and a call")
        visitor.write("error")
        visitor.sees("The cache is full")
        found += grave(visitor, axe_source, "error")
        visitor.page.locator(".user").first.get_by_label("Edit and send again").click()
        found += grave(visitor, axe_source, "editing")
        visitor.page.click("#open-settings")
        found += grave(visitor, axe_source, "settings")
    fake.config = {"idle_seconds": 4, "idle_warning_seconds": 2, "languages": ["en", "ar"], "suggestions": ["One"]}
    with visit(browser, f"{fake.url}?kiosk=1", theme=theme, size=(1920, 1080)) as visitor:
        found += grave(visitor, axe_source, "kiosk")
        visitor.page.get_by_role("button", name="العربية").click()
        visitor.ask("rich")
        visitor.page.locator("#idle").wait_for()
        found += grave(visitor, axe_source, "kiosk's warning")
    with visit(browser, fake.url, theme=theme, size=(360, 740)) as visitor:
        visitor.page.click("#menu")
        found += grave(visitor, axe_source, "menu")
    assert not found


def test_enter_of_an_input_method_does_not_send(visitor: Visitor, fake: FakeServer) -> None:
    devtools = visitor.page.context.new_cdp_session(visitor.page)
    visitor.page.focus("#message")
    devtools.send("Input.imeSetComposition", {"text": "ni hao", "selectionStart": 6, "selectionEnd": 6})
    key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 229}
    devtools.send("Input.dispatchKeyEvent", {"type": "rawKeyDown", **key})
    devtools.send("Input.insertText", {"text": "你好"})
    devtools.send("Input.dispatchKeyEvent", {"type": "keyUp", **key})
    visitor.page.wait_for_timeout(200)
    assert visitor.page.input_value("#message") == "你好"
    assert not fake.bodies, "the Enter that chose a word sent nothing"
    visitor.page.press("#message", "Shift+Enter")
    visitor.page.keyboard.type("x")
    assert visitor.page.input_value("#message") == "你好\nx"
    visitor.page.press("#message", "Enter")
    visitor.sees("Tides")
    assert text_of(fake.bodies[-1]) == "你好\nx"


def test_an_enter_while_composing_does_not_send_whatever_its_code(visitor: Visitor, fake: FakeServer) -> None:
    visitor.page.fill("#message", "hello")
    for properties in ("isComposing: true, keyCode: 13", "isComposing: false, keyCode: 229"):
        visitor.page.evaluate(
            f"""() => document.querySelector('#message').dispatchEvent(
                new KeyboardEvent('keydown', {{key: 'Enter', bubbles: true, cancelable: true, {properties}}}))"""
        )
    visitor.page.wait_for_timeout(200)
    assert not fake.bodies


def test_announcements_are_sentences(visitor: Visitor) -> None:
    visitor.page.evaluate(
        """() => {
            globalThis.said = [];
            const note = (changes) => changes.forEach((change) =>
                change.addedNodes.forEach((node) => globalThis.said.push(node.textContent)));
            new MutationObserver(note).observe(document.querySelector('#announcer'), {childList: true});
        }"""
    )
    visitor.ask("sentences")
    assert visitor.page.evaluate("() => globalThis.said") == [
        "The first sentence.",
        "The second one is here.",
        "A third",
    ]
    log = visitor.page.get_by_role("log")
    assert log.get_attribute("aria-live") == "off", "the log itself is silent, or each token would be read out"
    assert visitor.page.locator("#announcer").get_attribute("aria-live") == "polite"


def test_focus_stays_where_it_was_when_an_answer_ends(visitor: Visitor) -> None:
    visitor.ask("rich")
    visitor.page.fill("#message", "sentences")
    visitor.page.press("#message", "Enter")
    visitor.page.get_by_label("Copy code").focus()
    visitor.answer()
    assert visitor.page.evaluate("() => document.activeElement.ariaLabel") == "Copy code"


def test_everything_works_from_the_keyboard(visitor: Visitor, fake: FakeServer) -> None:
    keyboard = visitor.page.keyboard
    keyboard.type("rich")
    keyboard.press("Enter")
    visitor.sees("Tides")
    visitor.answer()
    reached: list[str] = []
    for _ in range(40):
        keyboard.press("Tab")
        name = visitor.page.evaluate(
            "() => document.activeElement.ariaLabel || document.activeElement.textContent.slice(0, 40)"
        )
        reached.append(str(name))
    for name in (
        "New chat", "rich", "Delete rich", "Import", "Export", "Settings", "Conversation", "Edit and send again",
        "Copy message", "Delete this question and its answer", "link", "Code", "Copy code", "Copy answer",
        "Answer again", "Attach files", "Message", "Send",
    ):  # fmt: skip
        assert name in reached
    visitor.page.get_by_label("Answer again").focus()
    keyboard.press("Enter")
    visitor.wait_for("document.activeElement.id === 'message'")
    visitor.answer()
    assert len(fake.bodies) == 2


@pytest.mark.parametrize("size", WIDTHS, ids=lambda size: str(size[0]))
def test_nothing_is_wider_than_the_screen(browser: Browser, fake: FakeServer, size: tuple[int, int]) -> None:
    for query in ("", "?kiosk=1"):
        fake.config = {"suggestions": ["A suggestion that is as long as suggestions get " * 3], "idle_seconds": 60}
        with visit(browser, fake.url + query, size=size) as visitor:
            for text in ("rich", "zh", "ar", "call", "word" * 60):
                visitor.ask(text)
            wide = visitor.page.evaluate(
                """() => [document.documentElement, document.body, document.querySelector('#scroller')]
                    .map((node) => node.scrollWidth - node.clientWidth)"""
            )
            assert wide == [0, 0, 0]
            box = visitor.page.locator("#action").bounding_box()
            assert box is not None
            assert box["x"] + box["width"] <= size[0]
            assert box["y"] + box["height"] <= size[1], "Send and Stop are on the screen"


def test_each_block_has_the_direction_of_its_text(visitor: Visitor) -> None:
    visitor.ask("ar")
    found = visitor.page.evaluate(
        """() => [...document.querySelectorAll('.answer .block')].map((node) => getComputedStyle(node).direction)"""
    )
    assert found == ["rtl", "rtl", "rtl", "ltr"]
    last = visitor.answers.last.locator(".block").last
    assert last.inner_text() == "English at the end."
    assert "潮汐" in visitor.ask("zh")
    assert visitor.answers.last.locator("li").count() == 2
