"""What a server does while its model looks at a picture, which takes minutes: everything else, and it tells of it."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from edge.api import scripted_llm
from edge.runtime.engines.scripted import replies
from tests.edge.server.live import Json, Live, Reply, running, served, until
from tests.edge.server.pictured import LAYERS, PNG, FakePictures, seeing
from tests.edge.server.test_pictures import CHATS, MESSAGES, RESPONSES, asked, chat, image, source, url

CAT, DOG = PNG + b"cat", PNG + b"dog"


@contextmanager
def looking(**settings: Any) -> Iterator[tuple[Live, FakePictures]]:
    """A server whose tower stays in front of a layer until its gate is opened."""
    pictures = FakePictures()
    llm = scripted_llm(replies({"What is it?[cat]": "A cat.", "What is it?[dog]": "A dog."}), max_context=512)
    with served(seeing(llm, pictures), **settings) as live:
        yield live, pictures
        pictures.gate.set()


class Asking(threading.Thread):
    """A client that waits for its answer."""

    def __init__(self, live: Live, body: Json, path: str = CHATS) -> None:
        super().__init__(daemon=True)
        self._live, self._body, self._path = live, body, path
        self.replies: list[Reply] = []
        self.start()

    def run(self) -> None:
        self.replies.append(self._live.post(self._path, self._body))

    @property
    def reply(self) -> Reply:
        self.join(20)
        return self.replies[0]


def metric(live: Live, name: str) -> float:
    lines = live.get("/metrics").body.decode().splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"edge_{name}"))


def test_a_stream_tells_how_far_it_is_and_then_answers() -> None:
    with looking() as (live, pictures):
        asking = Asking(live, {**chat(image(CAT)), "stream": True, "return_progress": True})
        until(lambda: pictures.running)
        assert live.chat("hello").status == 200, "others are answered meanwhile"
        pictures.gate.set()
        reply = asking.reply
        events = reply.events
        told = [event["picture_progress"] for event in events[:-1] if "picture_progress" in event]
        assert told[0] == {"processed": 0, "total": LAYERS, "seconds_left": None}
        assert told[-1] == {"processed": LAYERS, "total": LAYERS, "seconds_left": 0.0}
        assert [t["processed"] for t in told] == sorted(t["processed"] for t in told)
        words = "".join(c["delta"].get("content") or "" for e in events[:-1] for c in e["choices"])
        assert (words, events[-1]) == ("A cat.", "[DONE]")
        again = live.post(CHATS, {**chat(image(CAT)), "stream": True, "return_progress": True}).events
        assert not any("picture_progress" in event for event in again[:-1]), "it was looked at already"


@pytest.mark.parametrize(
    ("path", "body"),
    [(CHATS, chat(image(CAT))), (RESPONSES, asked({"type": "input_image", "image_url": url(CAT)})),
     (MESSAGES, chat(source(url(CAT).partition(",")[2])))],
)  # fmt: skip
def test_a_stream_is_open_and_pinged_while_the_model_looks(path: str, body: Json) -> None:
    with looking(ping_s=0.05) as (live, pictures):
        connection = live.begin(path, {**body, "stream": True})
        told = b""
        while told.count(b": ping") < 3:
            told += connection.recv(4096)
        assert b"200 OK" in told
        assert b"picture_progress" not in told, "nobody asked"
        until(lambda: pictures.running == 1)
        pictures.gate.set()
        while not told.endswith(b"0\r\n\r\n"):  # the end of a body in chunks
            told += connection.recv(1 << 16)
        connection.close()
        words = "".join(re.findall(r'"(?:content|text|delta)":"([^"]*)"', told.decode()))
        assert "A cat." in words, told


def test_a_stream_that_waits_for_another_picture_is_open_too() -> None:
    with looking(ping_s=0.05) as (live, pictures):
        first = Asking(live, chat(image(CAT)))
        until(lambda: pictures.running)
        connection = live.begin(CHATS, {**chat(image(DOG)), "stream": True})
        assert b"200 OK" in connection.recv(4096)
        pictures.gate.set()
        told = b""
        while b"[DONE]" not in told:
            told += connection.recv(1 << 16)
        connection.close()
        assert first.reply.json["choices"][0]["message"]["content"] == "A cat."
        assert pictures.seen == [CAT, DOG], "one after the other"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_the_looking(stream: bool) -> None:
    with looking() as (live, pictures):
        connection = live.begin(CHATS, {**chat(image(CAT)), "stream": stream})
        until(lambda: pictures.running)
        connection.close()
        until(lambda: pictures.ended)
        assert not pictures.seen
        until(lambda: not metric(live, "pictures_running"))
        pictures.gate.set()
        assert live.post(CHATS, chat(image(CAT))).status == 200


def test_a_waiting_client_that_leaves_is_not_looked_at() -> None:
    with looking() as (live, pictures):
        first = Asking(live, chat(image(CAT)))
        until(lambda: pictures.running)
        second = live.begin(CHATS, chat(image(DOG)))
        until(lambda: DOG in pictures.opened)
        second.close()
        service = live.service
        assert service is not None
        until(lambda: service.num_active == 1)
        pictures.gate.set()
        assert first.reply.status == 200
        assert live.chat("and on").status == 200
        assert pictures.seen == [CAT]


def test_what_is_kept_passes_by_what_is_looked_at() -> None:
    with looking() as (live, pictures):
        pictures.seen.append(CAT)
        first = Asking(live, chat(image(DOG)))
        until(lambda: pictures.running)
        assert live.post(CHATS, chat(image(CAT))).json["choices"][0]["message"]["content"] == "A cat."
        assert not first.replies
        assert metric(live, 'pictures_total{kept="yes"}') == 1


def test_requests_that_wait_for_the_model_to_look_count_as_waiting() -> None:
    with looking(max_waiting=2) as (live, pictures):
        asking = [Asking(live, chat(image(PNG + name))) for name in (b"a", b"b")]
        service = live.service
        assert service is not None
        until(lambda: service.num_active == 2 and len(pictures.opened) == 2)
        until(lambda: live.chat("me too").status == 429)
        refused = live.chat("me too")
        assert (refused.status, refused.error["code"]) == (429, "queue_full")
        assert "retry-after" in refused.headers
        pictures.gate.set()
        assert [one.reply.status for one in asking] == [200, 200]


@pytest.mark.parametrize("stream", [True, False])
def test_a_deadline_ends_the_looking(stream: bool) -> None:
    with looking() as (live, pictures):
        for deadline_s in (0.2, 2, 20):  # after the looking has begun, also where that takes long
            reply = live.post(CHATS, {**chat(image(CAT)), "deadline_s": deadline_s, "stream": stream})
            if pictures.running or pictures.ended:
                break
        error = json.loads(reply.body.decode().partition("data: ")[2])["error"] if stream else reply.error
        assert error["code"] == "deadline_exceeded"
        assert reply.status == (200 if stream else 504)
        until(lambda: pictures.ended)


def test_a_server_that_ends_ends_the_looking() -> None:
    pictures = FakePictures()
    llm = seeing(scripted_llm(replies({})), pictures)
    with running(lambda _: llm) as server:
        until(lambda: server.service.state == "ready")
        first, second = (Asking(Live(server.url), chat(image(PNG + name))) for name in (b"a", b"b"))
        until(lambda: pictures.running and len(pictures.opened) == 2)
        server.end()
        assert {first.reply.error["code"], second.reply.error["code"]} == {"shutting_down"}
        until(lambda: pictures.ended)
    assert not pictures.seen


def test_an_error_of_the_looking_is_the_requests_alone() -> None:
    with looking() as (live, pictures):
        asking = Asking(live, {**chat(image(CAT)), "stream": True})
        until(lambda: pictures.running)
        pictures.look = None  # type: ignore[method-assign,assignment]
        pictures.gate.set()
        assert asking.reply.events[-1] == "[DONE]"
        failed = live.post(CHATS, chat(image(DOG)))
        assert (failed.status, failed.error["code"]) == (500, "internal_error")
        assert live.chat("hello").status == 200


def test_figures_of_pictures() -> None:
    with looking() as (live, pictures):
        assert metric(live, "pictures_running") == 0
        asking = Asking(live, chat(image(CAT)))
        until(lambda: pictures.running and metric(live, "pictures_running") == 1)
        pictures.gate.set()
        assert asking.reply.status == 200
        live.post(CHATS, chat(image(CAT)))
        assert metric(live, 'pictures_total{kept="no"}') == 1
        assert metric(live, 'pictures_total{kept="yes"}') == 1
        assert metric(live, "pictures_running") == 0
        assert metric(live, "picture_seconds_total") > 0
