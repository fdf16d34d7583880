"""Pictures on the page: chosen, pasted, dropped and photographed, sent as they are, shown, kept and forgotten."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.edge.web.fake_server import FakeServer, Json, Step, delta, ending, serving, spoken
from tests.edge.web.test_accessible import grave
from tests.edge.web.visitor import Visitor, visit

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow

ONE: Json = {"most": 1, "max_bytes": 1_000_000}
CAMERA = """() => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [64, 48];
    const paper = canvas.getContext("2d");
    setInterval(() => paper.fillRect(0, 0, Math.random() * 64, 48), 20);
    navigator.mediaDevices.getUserMedia = async () => (globalThis.filmed = canvas.captureStream(30));
}"""
REFUSED = """navigator.mediaDevices.getUserMedia = async () => { throw new DOMException("no", "NotAllowedError"); };"""
MISSING = """navigator.mediaDevices.getUserMedia = async () => { throw new DOMException("no", "NotFoundError"); };"""
INSECURE = """Object.defineProperty(navigator, "mediaDevices", { value: undefined });"""


def script(body: Json) -> Iterator[Step]:
    """Look at a picture for a while, think, or answer."""
    text = words(body)
    if text == "slowly":
        for processed, left in ((0, None), (12, 240.0), (40, 31.2)):
            progress = {"processed": processed, "total": 63, "seconds_left": left}
            yield {"choices": [], "picture_progress": progress}
            yield 1.0
        yield 60.0
    elif text == "think":
        for piece in ("First I ", "look.\nThen I see."):
            yield {"choices": [{"index": 0, "delta": {"reasoning_content": piece}, "finish_reason": None}]}
            yield 0.5
        yield delta("A **cat**.")
        yield from ending()
    else:
        yield from spoken(f"Seen {len(sent(body))} of {len(body['messages'])}.")


def words(body: Json) -> str:
    """Return the text of the last message."""
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def sent(body: Json) -> list[bytes]:
    """Return the bytes of all pictures of a body."""
    lists = [message["content"] for message in body["messages"] if isinstance(message["content"], list)]
    urls = [part["image_url"]["url"] for parts in lists for part in parts if part["type"] == "image_url"]
    return [base64.b64decode(url.partition(";base64,")[2], validate=True) for url in urls]


def picture(width: int = 80, height: int = 60, *, kind: str = "PNG", colour: int = 90) -> bytes:
    pillow: Any = pytest.importorskip("PIL.Image")
    found = io.BytesIO()
    pillow.effect_noise((width, height), colour).convert("RGB").save(found, kind)
    return found.getvalue()


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeServer]:
    with serving(script) as server:
        yield server


@pytest.fixture
def visitor(browser: Browser, fake: FakeServer) -> Iterator[Visitor]:
    fake.config, fake.pictures = {}, dict(ONE)
    fake.bodies.clear()
    fake.left.clear()
    with visit(browser, fake.url) as found:
        found.page.locator("#camera").wait_for()
        yield found


def attach(visitor: Visitor, data: bytes, name: str = "cat.png", kind: str = "image/png") -> None:
    visitor.page.set_input_files("#choose-files", {"name": name, "mimeType": kind, "buffer": data})


def chips(visitor: Visitor) -> list[str]:
    found: list[str] = visitor.page.locator("#files .chip").all_inner_texts()
    return [" ".join(text.split()) for text in found]


def wait_for_picture(visitor: Visitor) -> None:
    visitor.page.locator("#files .chip img").wait_for()
    visitor.wait_for("document.querySelector('#action').ariaDisabled !== 'true'")


def test_a_picture_is_sent_as_it_is_in_every_turn_and_shown(visitor: Visitor, fake: FakeServer) -> None:
    data = picture()
    attach(visitor, data)
    wait_for_picture(visitor)
    assert chips(visitor) == ["cat.png"]
    assert visitor.ask("What is it?") == "Seen 1 of 1."
    parts = fake.bodies[-1]["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["image_url", "text"]
    assert sent(fake.bodies[-1]) == [data]
    assert chips(visitor) == []
    shown = visitor.page.locator(".user img")
    assert (shown.get_attribute("alt"), shown.evaluate("image => image.naturalWidth > 0")) == ("cat.png", True)
    assert visitor.ask("And now?") == "Seen 1 of 3."
    assert sent(fake.bodies[-1]) == [data]


def test_a_second_picture_is_refused_in_words_before_it_is_sent(visitor: Visitor, fake: FakeServer) -> None:
    attach(visitor, picture())
    wait_for_picture(visitor)
    attach(visitor, picture(), "dog.png")
    visitor.page.locator("#files .bad").wait_for()
    assert "one picture in a conversation" in chips(visitor)[1]
    assert visitor.ask("Both?") == "Seen 1 of 1."
    attach(visitor, picture(), "dog.png")
    visitor.page.locator("#files .bad").wait_for()
    assert "Start a new one" in chips(visitor)[0]
    visitor.page.get_by_label("Remove dog.png").click()
    assert chips(visitor) == []
    fake.pictures = {**ONE, "most": 0}


def test_a_picture_can_be_taken_back(visitor: Visitor, fake: FakeServer) -> None:
    attach(visitor, picture())
    wait_for_picture(visitor)
    visitor.page.get_by_label("Remove cat.png").click()
    assert visitor.ask("Nothing?") == "Seen 0 of 1."
    assert isinstance(fake.bodies[-1]["messages"][0]["content"], str)


@pytest.mark.parametrize("event", ["paste", "drop"])
def test_pictures_are_pasted_and_dropped(event: str, visitor: Visitor, fake: FakeServer) -> None:
    data = picture()
    visitor.page.evaluate(
        """([event, text]) => {
            const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
            const given = new DataTransfer();
            given.items.add(new File([bytes], "image.png", { type: "image/png" }));
            const options = { bubbles: true, cancelable: true, clipboardData: given, dataTransfer: given };
            const made = event === "paste" ? new ClipboardEvent(event, options) : new DragEvent(event, options);
            document.body.dispatchEvent(made);
        }""",
        [event, base64.b64encode(data).decode()],
    )
    wait_for_picture(visitor)
    visitor.page.click("#action")
    visitor.sees("Seen 1 of 1.")
    assert sent(fake.bodies[-1]) == [data], "without words, too"


def test_what_is_too_large_is_made_smaller_and_that_is_said(visitor: Visitor, fake: FakeServer) -> None:
    data = picture(900, 700)
    assert len(data) > ONE["max_bytes"]
    attach(visitor, data)
    wait_for_picture(visitor)
    assert chips(visitor) == ["cat.png made smaller, so that it can be sent"]
    visitor.ask("What is it?")
    (small,) = sent(fake.bodies[-1])
    assert small.startswith(b"\xff\xd8")
    assert len(small) <= ONE["max_bytes"]


def test_what_is_no_picture_is_said(visitor: Visitor) -> None:
    attach(visitor, b"\x89PNG\r\n\x1a\nnot more")
    visitor.page.locator("#files .bad").wait_for()
    assert "cannot read this picture" in chips(visitor)[0]


def test_how_far_the_model_is_is_shown_and_stopping_ends_it(visitor: Visitor, fake: FakeServer) -> None:
    attach(visitor, picture())
    wait_for_picture(visitor)
    visitor.write("slowly")
    activity = visitor.page.locator(".activity")
    activity.get_by_text("Looking at the picture: 0 / 63", exact=True).wait_for()
    activity.get_by_text("Looking at the picture: 12 / 63, about 4 min left").wait_for()
    assert visitor.page.locator(".activity progress").evaluate("bar => bar.value") == pytest.approx(12 / 63)
    activity.get_by_text("Looking at the picture: 40 / 63, about 32 s left").wait_for()
    visitor.page.click("#action")
    visitor.sees("Stopped.")
    fake.left.wait(0.1)


def test_thoughts_are_folded_and_not_sent_back(visitor: Visitor, fake: FakeServer) -> None:
    visitor.write("think")
    visitor.page.locator(".activity").get_by_text("Thinking…").wait_for()
    assert visitor.answer() == "A cat."
    thoughts = visitor.page.locator("details.thoughts")
    assert not thoughts.locator("div").is_visible()
    thoughts.locator("summary").focus()
    visitor.page.keyboard.press("Enter")
    assert thoughts.locator("div").inner_text() == "First I look.\nThen I see."
    visitor.ask("and on")
    assert fake.bodies[-1]["messages"][1] == {"role": "assistant", "content": "A **cat**."}


def test_a_conversation_with_a_picture_outlives_the_page(visitor: Visitor, fake: FakeServer) -> None:
    data = picture()
    attach(visitor, data)
    wait_for_picture(visitor)
    visitor.ask("What is it?")
    visitor.page.reload()
    visitor.page.get_by_role("button", name="What is it?", exact=True).click()
    visitor.page.locator(".user img").wait_for()
    assert visitor.ask("And now?") == "Seen 1 of 3."
    assert sent(fake.bodies[-1]) == [data]
    visitor.page.get_by_label("Delete What is it?").click()
    visitor.page.reload()
    visitor.page.wait_for_selector("body.ready")
    visitor.page.wait_for_function(
        """async () => {
            const opening = indexedDB.open("edge-chat");
            await new Promise((resolve) => (opening.onsuccess = resolve));
            const asking = opening.result.transaction("pictures").objectStore("pictures").count();
            await new Promise((resolve) => (asking.onsuccess = resolve));
            opening.result.close();
            return asking.result === 0;
        }"""
    )


def test_a_conversation_is_exported_and_imported_with_its_picture(
    visitor: Visitor, fake: FakeServer, tmp_path: Path
) -> None:
    data = picture()
    attach(visitor, data)
    wait_for_picture(visitor)
    visitor.ask("What is it?")
    with visitor.page.expect_download() as download:
        visitor.page.click("#export")
    file = tmp_path / "conversation.json"
    download.value.save_as(file)
    visitor.page.click("#new")
    visitor.page.set_input_files("#choose-import", file)
    visitor.page.locator(".user img").wait_for()
    assert visitor.ask("And now?") == "Seen 1 of 3."
    assert sent(fake.bodies[-1]) == [data]


def test_a_text_model_has_neither_camera_nor_pictures(browser: Browser, fake: FakeServer) -> None:
    fake.config, fake.pictures = {}, None
    with visit(browser, fake.url) as visitor:
        visitor.ask("hello")
        assert not visitor.page.locator("#camera").is_visible()
        assert visitor.page.locator("#attach").is_visible()
        assert visitor.page.get_attribute("#choose-files", "accept") == ".txt,.md,.pdf,.docx,.html,.htm"


@pytest.mark.parametrize(
    ("before", "told"),
    [(REFUSED, "may not use the camera"), (MISSING, "No camera was found"), (INSECURE, "")],
    ids=["refused", "missing", "insecure"],
)
def test_a_camera_that_cannot_be_used_is_told(before: str, told: str, browser: Browser, fake: FakeServer) -> None:
    fake.config, fake.pictures = {}, dict(ONE)
    with visit(browser, fake.url, before=before) as visitor:
        visitor.page.wait_for_function("() => document.querySelector('#choose-files').accept.includes('image')")
        if not told:
            assert not visitor.page.locator("#camera").is_visible()
            return
        visitor.page.click("#camera")
        visitor.page.locator(".toast").get_by_text(told).wait_for()


def test_a_photograph_is_sent_and_the_camera_let_go(visitor: Visitor, fake: FakeServer) -> None:
    visitor.page.evaluate(CAMERA)
    visitor.page.click("#camera")
    visitor.page.get_by_role("button", name="Cancel").click()
    assert chips(visitor) == []
    visitor.page.click("#camera")
    visitor.wait_for("document.querySelector('video').videoWidth > 0")
    visitor.page.get_by_role("button", name="Take it").click()
    wait_for_picture(visitor)
    assert visitor.page.evaluate("globalThis.filmed.getTracks().every((track) => track.readyState === 'ended')")
    visitor.ask("What is it?")
    (data,) = sent(fake.bodies[-1])
    assert data.startswith(b"\xff\xd8")


@pytest.mark.parametrize("allowed", [True, False])
def test_a_kiosk_takes_pictures_where_its_operator_wants(allowed: bool, browser: Browser, fake: FakeServer) -> None:
    fake.pictures = dict(ONE)
    fake.config = {"idle_seconds": 60, **({"pictures": True} if allowed else {})}
    with visit(browser, f"{fake.url}?kiosk=1") as visitor:
        visitor.ask("hello")
        assert visitor.page.locator("#camera").is_visible() == allowed
        assert visitor.page.locator("#attach").is_visible() == allowed
        if not allowed:
            return
        assert visitor.page.get_attribute("#choose-files", "accept") == "image/*"
        attach(visitor, picture())
        wait_for_picture(visitor)
        visitor.ask("What is it?")
        visitor.page.click("#restart")
        held = visitor.page.evaluate("async () => [document.body.outerHTML, await indexedDB.databases()]")
        assert "data:image" not in held[0]
        assert held[1] == []


def test_a_kiosk_closes_the_camera_that_a_visitor_left_open(browser: Browser, fake: FakeServer) -> None:
    fake.pictures = dict(ONE)
    fake.config = {"idle_seconds": 3, "idle_warning_seconds": 1, "pictures": True}
    with visit(browser, f"{fake.url}?kiosk=1") as visitor:
        visitor.ask("hello")
        visitor.page.evaluate(CAMERA)
        visitor.page.click("#camera")
        visitor.wait_for("document.querySelector('video').videoWidth > 0")
        visitor.wait_for("!document.querySelector('dialog[open]')")
        visitor.wait_for("globalThis.filmed.getTracks().every((track) => track.readyState === 'ended')")
        assert visitor.answers.count() == 0


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_grave_in_pictures_and_thoughts(
    browser: Browser, fake: FakeServer, axe_source: str, theme: Any
) -> None:
    fake.config, fake.pictures = {}, dict(ONE)
    with visit(browser, fake.url, theme=theme) as visitor:
        visitor.page.locator("#camera").wait_for()
        attach(visitor, picture())
        wait_for_picture(visitor)
        attach(visitor, picture(), "dog.png")
        visitor.page.locator("#files .bad").wait_for()
        found = grave(visitor, axe_source, "attached")
        visitor.ask("think")
        visitor.page.locator("details.thoughts summary").click()
        found += grave(visitor, axe_source, "thoughts")
        visitor.page.evaluate(CAMERA)
        visitor.page.click("#camera")
        visitor.page.locator("#camera-view").wait_for()
        found += grave(visitor, axe_source, "camera")
    assert not found
