"""A server that is full, loading, silent, locked, gone or broken is told in words, and can be asked again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.edge.web.fake_server import FakeServer, Json, Refusal, Step, delta, ending, serving, spoken, text_of
from tests.edge.web.visitor import Visitor, visit

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow


class Script:
    """Says what the last message asks for, once: the next try is answered."""

    def __init__(self) -> None:
        self.done: set[str] = set()

    def __call__(self, body: Json) -> Iterator[Step]:
        text = text_of(body)
        if text not in self.done:
            self.done.add(text)
            yield from self._trouble(text)
        yield from spoken("Here you are.")

    def _trouble(self, text: str) -> Iterator[Step]:
        if text.startswith("full"):
            raise Refusal(429, "queue_full", retry_after=float(text.split()[1]))
        if text == "loading":
            raise Refusal(503, "loading", retry_after=1)
        if text == "too long":
            raise Refusal(400, "context_length_exceeded", "This model's maximum context length is 8192 tokens.")
        if text == "error":
            yield delta("This begins well, but")
            yield {"error": {"message": "the cache is full", "type": "server_error", "code": "cache_full"}}
        if text == "cut":
            yield delta("Half of a")
            yield from self._end()
        if text == "hush":
            yield 5.0
        if text == "slow pings":
            for _ in range(3):
                yield 5.2
                yield ": ping\n\n"
        if text == "pings":
            for _ in range(4):
                yield ": ping\n\n"
                yield 1.1
        if text == "limit":
            yield delta("All there")
            yield from ending("length")

    def _end(self) -> Iterator[Step]:
        raise ConnectionResetError
        yield


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeServer]:
    with serving(Script()) as server:
        yield server


@pytest.fixture
def visitor(browser: Browser, fake: FakeServer) -> Iterator[Visitor]:
    fake.config, fake.key, fake.health = {}, None, (200, {"status": "ok"})
    assert isinstance(fake.script, Script)
    fake.script.done.clear()
    with visit(browser, fake.url) as found:
        yield found


def test_a_full_server_is_asked_again_when_it_said(visitor: Visitor) -> None:
    begun = time.monotonic()
    visitor.write("full 2")
    visitor.sees("The server is busy. Next try in 2 s.")
    visitor.sees("Next try in 1 s.")
    visitor.sees("Here you are.")
    assert time.monotonic() - begun > 1.5
    assert len(visitor.questions) == 1


def test_a_full_server_can_be_asked_at_once_or_given_up(visitor: Visitor, fake: FakeServer) -> None:
    visitor.write("full 30")
    visitor.sees("The server is busy.")
    visitor.page.get_by_role("button", name="Try again").click()
    visitor.sees("Here you are.")
    visitor.page.click("#new")
    visitor.write("full 31")
    visitor.sees("The server is busy.")
    visitor.page.keyboard.press("Escape")
    visitor.sees("Stopped.")
    visitor.page.get_by_role("button", name="Try again").click()
    visitor.sees("Here you are.")


def test_a_server_that_loads_answers_once_it_is_ready(visitor: Visitor, fake: FakeServer) -> None:
    fake.health = (503, {"status": "loading", "progress": 0.4})
    visitor.write("loading")
    visitor.sees("The model is being loaded…")
    assert visitor.page.locator(".activity progress").evaluate("bar => bar.value") == 0.4
    fake.health = (200, {"status": "ok"})
    visitor.sees("Here you are.")


def test_loading_is_shown_before_anything_is_asked(browser: Browser, fake: FakeServer) -> None:
    fake.health = (503, {"status": "loading", "progress": 0.25})
    with visit(browser, fake.url) as visitor:
        visitor.page.locator("#banner").get_by_text("The model is being loaded…").wait_for()
        assert visitor.page.locator("#loading").evaluate("bar => bar.value") == 0.25
        fake.health = (200, {"status": "ok"})
        visitor.page.locator("#banner").wait_for(state="hidden")


def test_silence_is_told_within_five_seconds(visitor: Visitor) -> None:
    visitor.write("hush")
    visitor.sees("Waiting")
    begun = time.monotonic()
    visitor.sees("The server has been silent for")
    assert time.monotonic() - begun < 30
    assert "silent for 4 s" in visitor.page.locator("#announcer").inner_text()
    visitor.sees("Here you are.")
    assert "silent" not in visitor.page.locator("#log").inner_text()


def test_pings_are_signs_of_life(visitor: Visitor) -> None:
    visitor.page.evaluate(
        """() => {
            globalThis.seen = 0;
            const note = () => { if (/silent/.test(document.querySelector('#log').textContent)) globalThis.seen++; };
            new MutationObserver(note).observe(document.querySelector('#log'), {subtree: true, childList: true});
        }"""
    )
    visitor.write("pings")
    visitor.sees("Here you are.")
    assert visitor.page.evaluate("() => globalThis.seen") == 0


def test_an_error_in_a_stream_is_told_and_can_be_tried_again(visitor: Visitor, fake: FakeServer) -> None:
    visitor.write("error")
    visitor.sees("The cache is full")
    assert visitor.answer() == "This begins well, but"
    visitor.sees("The answer broke off here.")
    visitor.page.get_by_role("button", name="Try again").click()
    visitor.sees("Here you are.")
    assert visitor.answers.count() == 1, "the broken answer gave way"
    assert [message["role"] for message in fake.bodies[-1]["messages"]] == ["user"]


def test_a_stream_that_is_cut_is_told(visitor: Visitor) -> None:
    visitor.write("cut")
    visitor.sees("The connection ended before the answer did.")
    visitor.page.reload()
    visitor.page.wait_for_selector("body.ready")
    visitor.page.get_by_role("button", name="cut", exact=True).click()
    visitor.sees("The answer broke off here.")


def test_a_conversation_that_is_too_long_is_told_in_the_servers_words(visitor: Visitor) -> None:
    visitor.write("too long")
    visitor.sees("This model's maximum context length is 8192 tokens.")


def test_an_answer_that_was_cut_by_its_limit_says_so(visitor: Visitor) -> None:
    assert visitor.ask("limit") == "All there"
    visitor.sees("The answer ended at its limit of length.")


def test_a_server_that_is_gone(browser: Browser) -> None:
    with serving(Script()) as fake:
        port = fake.port
        with visit(browser, fake.url) as visitor:
            visitor.page.route("**/v1/**", lambda route: route.abort("connectionrefused"))
            visitor.write("hello")
            visitor.sees("The server cannot be reached.")
            visitor.page.unroute_all()
            visitor.page.get_by_role("button", name="Try again").click()
            visitor.sees("Here you are.")
            visitor.complaints[:] = [text for text in visitor.complaints if "ERR_CONNECTION_REFUSED" not in text]
    assert port


def test_a_key_is_asked_for_and_kept_in_memory(visitor: Visitor, fake: FakeServer) -> None:
    fake.key = "s3cret"
    visitor.write("hello")
    visitor.page.locator("#key").wait_for()
    visitor.page.fill("#set-key", "wrong")
    visitor.page.press("#set-key", "Enter")
    visitor.page.wait_for_function("() => document.querySelector('#set-key').value === ''")
    visitor.page.fill("#set-key", "s3cret")
    visitor.page.click("#key-save")
    visitor.sees("Here you are.")
    kept = visitor.page.evaluate(
        """async () => {
            const names = await indexedDB.databases();
            const opened = await new Promise((resolve) => {
                const opening = indexedDB.open(names[0].name);
                opening.onsuccess = () => resolve(opening.result);
            });
            const all = [];
            for (const name of opened.objectStoreNames) {
                all.push(await new Promise((resolve) => {
                    const asking = opened.transaction(name).objectStore(name).getAll();
                    asking.onsuccess = () => resolve(asking.result);
                }));
            }
            return JSON.stringify([all, {...localStorage}, {...sessionStorage}, document.cookie, location.href,
                document.documentElement.outerHTML]);
        }"""
    )
    assert "hello" in kept
    assert "s3cret" not in kept
    visitor.page.click("#new")
    visitor.write("more")
    visitor.sees("Here you are.")
    visitor.page.reload()
    visitor.page.locator("#key").wait_for()
