"""A whole server in a thread, and how much its model holds; for tests that treat it badly."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import edge
from edge.runtime.engines.scripted import END
from edge.runtime.llm import LLM
from edge.server.service import Service, Stage
from tests.edge.server.live import running
from tests.edge.server.raw import Answer, exchange, request, wait_until

JSON = "Content-Type: application/json"
CHAT = "/v1/chat/completions"
KEY = "a-key-of-this-test"
HI = {"role": "user", "content": "hi"}
BAD = "invalid_request_error"


@dataclass
class Server:
    port: int
    service: Service
    end: Callable[[], None]
    thread: threading.Thread

    @property
    def llm(self) -> LLM:
        return self.service.llm

    def post(self, path: str, body: Any, *headers: str) -> Answer:  # Any: JSON
        return exchange(self.port, posted(path, body, *headers))

    def get(self, path: str, *headers: str) -> Answer:
        return exchange(self.port, request("GET", path, *headers))

    def chat(self, text: str = "hi", **fields: object) -> Answer:
        return self.post(CHAT, {"messages": [{"role": "user", "content": text}], **fields})

    def is_free(self) -> bool:
        """Whether nothing runs or waits, and no block is held but by the cache of prefixes."""
        stats = self.llm.stats
        pool = self.llm.engine.pool
        nobody = not (self.service.num_active or stats.running or stats.waiting)
        return nobody and pool.num_blocks - pool.num_free == stats.prefixes.blocks


def posted(path: str, body: Any, *headers: str) -> bytes:  # Any: JSON, or the bytes of a body
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return request("POST", path, JSON, *headers, body=raw)


@contextmanager
def serving(open_model: Callable[[Stage], LLM], **options: Any) -> Iterator[Server]:  # Any: fields of ServerSettings
    """Run a server."""
    with running(open_model, **{"names": ("tiny", "alias"), **options}) as found:
        yield Server(int(found.url.rsplit(":", 1)[1]), found.service, found.end, found.thread)


@contextmanager
def serving_script(
    script: Callable[[Sequence[int]], int],
    num_blocks: int = 1024,
    **options: Any,  # Any: as above
) -> Iterator[Server]:
    """Run a server whose model follows a script; waits until it is ready."""
    with serving(lambda _: edge.scripted_llm(script, num_blocks=num_blocks), **options) as server:
        wait_until(lambda: server.service.state == "ready")
        yield server


def endless(step_s: float = 0.0) -> Callable[[Sequence[int]], int]:
    """Return a script of one letter after the other, each of which takes a while."""

    def next_id(held: Sequence[int]) -> int:
        time.sleep(step_s)
        return ord("a") + len(held) % 26

    return next_id


def short(held: Sequence[int]) -> int:
    """A script of one letter, and the end."""
    return END if held[-1] == ord("a") else ord("a")


def shape(answer: Answer) -> tuple[object, ...]:
    """Return the status of an error, and its type, code and param."""
    error = answer.error
    return answer.status, error["type"], error["code"], error["param"]


def chat(**fields: object) -> bytes:
    """Return a request for a chat of one message."""
    return posted(CHAT, {"messages": [HI], **fields})
