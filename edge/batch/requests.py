"""A line of the input as a request, and what became of it as a line of the output.

In: lines; bodies and errors. Out: requests of the protocol (`edge.wire`), and JSON in OpenAI's form:

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {...}}
    {"id": "...", "custom_id": "a", "response": {"status_code": 200, "request_id": "...", "body": {...}}, "error": null}

Nothing in an output line depends on the time, on chance, or on what else was computed: ids and missing seeds are hashes
of the custom_id. Knows nothing about models.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace

from edge.batch.lines import MAX_BYTES, Line
from edge.runtime.errors import shown
from edge.runtime.produced_ids import ProducedIds
from edge.wire.answers import Head, JsonBody
from edge.wire.body import read_body
from edge.wire.chat_request import ChatRequest
from edge.wire.completion_request import CompletionRequest
from edge.wire.errors import TOO_LARGE, RequestError

WireRequest = ChatRequest | CompletionRequest
_URLS: Mapping[str, tuple[type[WireRequest], str]] = {  # and what their ids begin with
    "/v1/chat/completions": (ChatRequest, "chatcmpl"),
    "/v1/completions": (CompletionRequest, "cmpl"),
}
_SEED_BYTES = 6  # so that even JavaScript reads the number as it is


def request_of(line: Line) -> WireRequest:
    """Return what a line asks for. Raises RequestError."""
    if line.raw is None:
        raise RequestError(
            f"line {line.number} has more than {MAX_BYTES:,} bytes; make it shorter",
            code="request_too_large",
            status=TOO_LARGE,
        )
    given = read_body(line.raw)
    method, url, body = (given.get(key) for key in ("method", "url", "body"))
    if method not in (None, "POST"):
        raise RequestError(f"method is {shown(method)}, expected 'POST'", code="invalid_value", param="method")
    if url is None or body is None:
        missing = "url" if url is None else "body"
        raise RequestError(f"{missing} is missing", code="missing_required_parameter", param=missing)
    if not isinstance(url, str) or url not in _URLS:
        expected = " or ".join(map(repr, _URLS))
        raise RequestError(f"url is {shown(url)}, expected {expected}", code="invalid_value", param="url")
    if not isinstance(body, dict):
        raise RequestError(f"body is {shown(body)}, expected an object", code="invalid_type", param="body")
    if body.get("seed") is None:
        body = {**body, "seed": int.from_bytes(_digest("seed", line)[:_SEED_BYTES])}
    request = _URLS[url][0].from_body(body)
    if request.settings.stream:
        raise RequestError(
            "stream is true, which a batch does not support: it writes whole answers; leave it out",
            code="unsupported_parameter",
            param="stream",
        )
    if isinstance(request, ChatRequest):
        return replace(request, memory=ProducedIds(0))  # or it would matter which lines are answered in one process
    return request


def head_of(line: Line, request: WireRequest, model: str, run: str) -> Head:
    """Return what the body of an answer begins with. run: the hash of everything that decides the output."""
    prefix = next(prefix for kind, prefix in _URLS.values() if isinstance(request, kind))
    return Head(f"{prefix}-{_id('answer', line)}", 0, model, f"fp_{run[:10]}")


def name_calls(line: Line, body: JsonBody) -> None:
    """Give the calls of tools in an answer ids of their own: two lines may ask the same."""
    for choice in body["choices"]:
        for index, call in enumerate(choice.get("message", {}).get("tool_calls", ())):
            place = f"call {choice['index']} {index}"
            call["id"] = f"call_{_id(place, line)}"


def line_id(line: Line) -> str:
    """Return the id of an output line."""
    return f"batch_req_{_id('line', line)}"


def request_id(line: Line, run: str) -> str:
    """Return the id of the answer in an output line, which also tells of which run it is."""
    return f"req_{_id(run, line)}"


def output_line(line: Line, run: str, status: int, body: JsonBody) -> bytes:
    """Return an output line, without its end."""
    response = {"status_code": status, "request_id": request_id(line, run), "body": body}
    found = {"id": line_id(line), "custom_id": line.custom_id, "response": response, "error": None}
    return json.dumps(found, ensure_ascii=False).encode()


def _id(purpose: str, line: Line) -> str:
    return _digest(purpose, line).hex()[:24]


def _digest(purpose: str, line: Line) -> bytes:
    name = f"line {line.number}" if line.custom_id is None else f"custom_id {line.custom_id}"
    return hashlib.sha256(f"{purpose} {name}".encode()).digest()
