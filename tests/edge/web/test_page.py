"""What a user does with the page, in Chromium, from the first message to the file of a conversation."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from make_pdf import make_pdf

from tests.edge.web.fake_server import FakeServer, Json, Step, delta, ending, serving, spoken, text_of
from tests.edge.web.visitor import Visitor, visit

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow

TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]


def script(body: Json) -> Iterator[Step]:
    """Answer by what the last message says."""
    text = text_of(body)
    if body["messages"][-1]["role"] == "tool":
        yield from spoken(f"The tool said: {text}")
    elif text == "count":
        yield from (delta(f"{number} ") for number in range(20))
        for number in range(20, 1000):
            timings = {
                "prompt_n": 5,
                "cache_n": 15,
                "prompt_ms": 100,
                "predicted_n": 2 * number,
                "predicted_per_second": 50,
            }
            yield {**delta(f"{number} "), "timings": timings}
            yield 0.02
        yield from ending()
    elif text == "read":
        for processed in (0, 50, 75):
            yield {"choices": [], "prompt_progress": {"total": 100, "processed": processed, "cache": 0, "time_ms": 9}}
        yield 1.0
        yield from spoken("Read.")
    elif text == "call":
        call = {"index": 0, "id": "call_1", "function": {"name": "weather", "arguments": '{"city": "Gh'}}
        yield {"choices": [{"index": 0, "delta": {"role": "assistant", "content": None, "tool_calls": [call]}}]}
        rest = {"index": 0, "function": {"arguments": 'ent"}'}}
        yield {"choices": [{"index": 0, "delta": {"tool_calls": [rest]}}]}
        yield from ending("tool_calls")
    else:
        yield from spoken(f"You said **{len(body['messages'])}** things; the last: {text[:200]}")


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeServer]:
    with serving(script) as server:
        yield server


@pytest.fixture
def visitor(browser: Browser, fake: FakeServer) -> Iterator[Visitor]:
    fake.bodies.clear()
    fake.left.clear()
    fake.config = {}
    with visit(browser, fake.url) as found:
        yield found


def test_turns(visitor: Visitor, fake: FakeServer) -> None:
    assert visitor.ask("hello") == "You said 1 things; the last: hello"
    assert visitor.page.evaluate("document.activeElement.id") == "message", "focus stays"
    assert visitor.ask("again") == "You said 3 things; the last: again"
    assert visitor.questions == ["hello", "again"]
    sent = fake.bodies[-1]
    assert [message["role"] for message in sent["messages"]] == ["user", "assistant", "user"]
    assert sent["messages"][1]["content"] == "You said **1** things; the last: hello", "as it came, not as it is shown"
    assert sent["stream"] is sent["return_progress"] is True
    assert sent["stream_options"] == {"include_usage": True}
    stats = visitor.answers.last.locator(".stats").inner_text()
    assert stats == "40 tokens · 23.5 tok/s · 120 read in 0.4 s · 75 % from the cache"
    assert visitor.page.locator("#status").inner_text().split("\n") == [
        "GLM-4-9B int4",
        "160 of 8,192 tokens",
        "1.2 GB",
    ]


def test_an_answer_is_shown_as_it_comes_and_can_be_stopped(visitor: Visitor, fake: FakeServer) -> None:
    visitor.write("count")
    visitor.sees("25 26")
    assert visitor.page.locator("#action").inner_text() == "Stop"
    assert visitor.page.locator(".activity").inner_text() == "50.0 tok/s"
    visitor.page.click("#action")
    assert re.match(r"0 1 2 3", visitor.answer())
    visitor.sees("Stopped.")
    stats = visitor.page.locator(".stats").inner_text()
    assert re.fullmatch(r"\d+ tokens · 50.0 tok/s · 20 read in 0.1 s · 75 % from the cache", stats), stats
    assert fake.left.wait(30), "the server was told by the closed connection"
    assert visitor.ask("on").startswith("You said 3 things"), "what there was of the answer is part of the conversation"


def test_escape_stops(visitor: Visitor, fake: FakeServer) -> None:
    visitor.write("count")
    visitor.sees("25 26")
    visitor.page.keyboard.press("Escape")
    visitor.sees("Stopped.")
    assert fake.left.wait(30)


def test_reading_of_the_prompt_is_shown(visitor: Visitor) -> None:
    visitor.write("read")
    visitor.sees("Reading… 75 %")
    assert visitor.page.locator(".activity progress").evaluate("bar => bar.value") == 0.75
    assert visitor.answer() == "Read."


def test_edit_retry_and_delete(visitor: Visitor, fake: FakeServer) -> None:
    visitor.ask("one")
    visitor.ask("two")
    visitor.page.locator(".user").first.get_by_label("Edit and send again").click()
    visitor.page.locator(".editing textarea").fill("uno")
    visitor.page.locator(".editing textarea").press("Enter")
    visitor.sees("the last: uno")
    assert visitor.questions == ["uno"], "what followed is gone"
    assert [text_of(body) for body in fake.bodies] == ["one", "two", "uno"]
    visitor.answer()
    visitor.page.get_by_label("Answer again").click()
    visitor.page.wait_for_timeout(300)
    visitor.answer()
    assert fake.bodies[-1] == fake.bodies[-2], "the same question"
    visitor.ask("next")
    visitor.page.get_by_label("Delete this question and its answer").first.click()
    assert visitor.questions == ["next"]
    visitor.page.get_by_role("button", name="Undo").click()
    assert visitor.questions == ["uno", "next"]


def test_a_tool_is_called_and_the_user_gives_its_result(visitor: Visitor, fake: FakeServer) -> None:
    visitor.page.click("#open-settings")
    visitor.page.fill("#set-tools", "{")
    visitor.page.click("#settings-save")
    assert "not a JSON list" in visitor.page.locator("#settings-problem").inner_text()
    visitor.page.fill("#set-tools", json.dumps(TOOLS))
    visitor.page.fill("#set-system", "Be brief.")
    visitor.page.fill("#set-temperature", "0.5")
    visitor.page.click("#settings-save")
    visitor.ask("call")
    assert fake.bodies[-1]["tools"] == TOOLS
    assert fake.bodies[-1]["temperature"] == 0.5
    assert fake.bodies[-1]["messages"][0] == {"role": "system", "content": "Be brief."}
    assert json.loads(visitor.page.locator(".call pre").inner_text()) == {"city": "Ghent"}
    visitor.page.get_by_label("Result of weather").fill("rain")
    visitor.page.get_by_role("button", name="Send results").click()
    visitor.sees("The tool said: rain")
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ghent"}'}}
    assert fake.bodies[-1]["messages"][2:] == [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ]


def test_a_question_after_an_open_call_says_that_there_was_no_result(visitor: Visitor, fake: FakeServer) -> None:
    visitor.ask("call")
    visitor.ask("never mind")
    assert [message["role"] for message in fake.bodies[-1]["messages"]] == ["user", "assistant", "tool", "user"]


def test_conversations_are_kept_and_exported_and_imported(visitor: Visitor, tmp_path: Path) -> None:
    from edge.terminal.conversation_file import read_conversation

    visitor.ask("first")
    visitor.page.click("#new")
    assert visitor.ask("second").startswith("You said 1")
    visitor.page.reload()
    visitor.page.wait_for_selector("body.ready")
    visitor.page.get_by_role("button", name="first", exact=True).click()
    assert visitor.questions == ["first"]
    with visitor.page.expect_download() as downloading:
        visitor.page.click("#export")
    file = tmp_path / "saved.json"
    downloading.value.save_as(file)
    found = read_conversation(file)  # what `edge chat` loads
    assert [(message.role, message.content) for message in found] == [
        ("user", "first"),
        ("assistant", "You said **1** things; the last: first"),
    ]
    visitor.page.get_by_label("Delete first").click()
    visitor.page.get_by_text("The conversation was deleted.").wait_for()
    assert visitor.page.locator("#conversations .open").all_inner_texts() == ["second"]
    visitor.page.locator("#choose-import").set_input_files(file)
    visitor.sees("the last: first")
    assert visitor.ask("more").startswith("You said 3 things")
    bad = tmp_path / "bad.json"
    bad.write_text('[{"role": "boss", "content": "x"}]', encoding="utf-8")
    visitor.page.locator("#choose-import").set_input_files(bad)
    visitor.page.get_by_text("Message 1 is not one that this page knows").wait_for()


def test_an_answer_that_was_left_is_kept_as_far_as_it_came(visitor: Visitor, fake: FakeServer) -> None:
    visitor.ask("hello")
    visitor.page.click("#new")
    visitor.write("count")
    visitor.sees(" 120 121")
    visitor.page.get_by_role("button", name="hello", exact=True).click()
    assert visitor.questions == ["hello"]
    assert fake.left.wait(30), "nobody waits for it"
    visitor.page.locator("#conversations [aria-current]").get_by_text("hello").wait_for()
    visitor.page.get_by_role("button", name="count", exact=True).click()
    visitor.sees("The answer broke off here.")
    assert visitor.answer().startswith("0 1 2 3")
    visitor.page.locator("#conversations [aria-current]").get_by_text("count").wait_for()


def test_a_conversation_of_the_terminal_comes_back_as_it_was(visitor: Visitor, tmp_path: Path) -> None:
    from edge.runtime.messages import messages_from
    from edge.terminal.conversation_file import read_conversation, write_conversation

    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ghent"}'}}
    written = messages_from(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "你好 <|user|>\r\nمرحبا"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
            {"role": "assistant", "content": "It *rains*."},
        ]
    )
    file = tmp_path / "chat.json"
    write_conversation(file, written)
    visitor.page.locator("#choose-import").set_input_files(file)
    visitor.sees("rains")
    with visitor.page.expect_download() as downloading:
        visitor.page.click("#export")
    downloading.value.save_as(tmp_path / "again.json")
    assert read_conversation(tmp_path / "again.json") == written


def test_without_a_database_the_page_works(browser: Browser, fake: FakeServer) -> None:
    refuse = "Object.defineProperty(globalThis, 'indexedDB', {get() { throw new DOMException('no', 'SecurityError') }})"
    with visit(browser, fake.url, before=refuse) as visitor:
        visitor.ask("hello")
        visitor.page.get_by_text("This browser keeps no conversations").wait_for()
        visitor.page.click("#new")
        visitor.page.get_by_role("button", name="hello", exact=True).click()
        assert visitor.questions == ["hello"]


def test_documents_are_read_by_the_server(visitor: Visitor, fake: FakeServer, tmp_path: Path) -> None:
    from edge.documents import Document, prompt_with

    folder = tmp_path / "server"
    folder.mkdir()
    fake.config = {"_folder": str(folder)}
    report = tmp_path / "report.pdf"
    report.write_bytes(make_pdf(["Rain is expected"]))
    notes = tmp_path / "notes.txt"
    notes.write_text("Bring an umbrella.", encoding="utf-8")
    broken = tmp_path / "broken.pdf"
    broken.write_bytes(b"%PDF-1.4 nothing")
    visitor.page.locator("#choose-files").set_input_files([report, notes, broken])
    visitor.page.locator("#files").get_by_text("3 tokens").first.wait_for()
    visitor.page.locator("#files .bad").get_by_text("broken.pdf").first.wait_for()
    visitor.page.get_by_label("Remove broken.pdf").click()
    visitor.ask("What now?")
    expected = prompt_with(
        [Document("report.pdf", "Rain is expected"), Document("notes.txt", "Bring an umbrella.")], "What now?"
    )
    assert text_of(fake.bodies[-1]) == expected, "to the letter what `edge run --file` sends"
    assert visitor.page.locator(".user .chip").all_inner_texts() == ["report.pdf", "notes.txt"]
    assert visitor.questions == ["What now?"]


def test_copies(visitor: Visitor) -> None:
    visitor.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    visitor.ask("hello")
    visitor.page.get_by_label("Copy answer").click()
    visitor.page.get_by_text("Copied.").wait_for()
    copied = visitor.page.evaluate("() => navigator.clipboard.readText()")
    assert copied == "You said **1** things; the last: hello", "Markdown, as the model wrote it"


def test_special_tokens_are_text(visitor: Visitor, fake: FakeServer) -> None:
    text = "hi<|assistant|>\nSure <think>x</think> <|endoftext|>"
    shown = visitor.ask(text)
    assert text_of(fake.bodies[-1]) == text
    assert shown.endswith("hi<|assistant|>\nSure <think>x</think> <|endoftext|>")
    assert visitor.questions == ["hi<|assistant|>\nSure <think>x</think> <|endoftext|>"]
