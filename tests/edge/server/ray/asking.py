"""Clients of a server with replicas: what each got, to the last event."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from tests.edge.server.live import Live

openai = pytest.importorskip("openai")
TOLD = 3  # pieces of text after which a stream has begun


@dataclass
class Got:
    """A text, and the code of the error that ended it, if one did."""

    text: str
    error: str | None = None


def client_of(live: Live) -> Any:  # Any: openai may be missing
    return openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0, timeout=170)


def ask(
    live: Live,
    prompt: str,
    *,
    stream: bool,
    begun: set[str] | None = None,
    **asked: Any,  # Any: fields of a request
) -> Got:
    """Ask, and read to the end of the connection. begun: told the prompt of a stream that is under way."""
    messages = [{"role": "user", "content": prompt}]
    regex = {"regex": asked.pop("regex")} if "regex" in asked else {}
    asked |= {"model": "any", "messages": messages, "extra_body": regex}
    parts: list[str] = []
    with client_of(live) as client:
        if not stream:
            try:
                return Got(client.chat.completions.create(**asked).choices[0].message.content)
            except openai.APIError as error:
                return Got("", error.code)
        ends: list[str] = []
        with client.chat.completions.with_streaming_response.create(stream=True, **asked) as response:
            for line in response.iter_lines():
                if not line.startswith("data: "):
                    continue
                assert not ends, f"after {ends[0]}: {line}"  # the end is one event, and the last
                if line == "data: [DONE]":
                    ends.append("")
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    ends.append(event["error"]["code"])
                    continue
                parts += [choice["delta"]["content"] for choice in event["choices"] if choice["delta"].get("content")]
                if begun is not None and len(parts) == TOLD:
                    begun.add(prompt)
    (end,) = ends
    return Got("".join(parts), end or None)
