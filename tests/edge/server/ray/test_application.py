"""The application for `serve run`: its arguments, and that Serve answers with it."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

import edge
from edge.runtime.cluster import joined

pytest.importorskip("ray")

from edge.server.ray import app

OBJECTS = 80 << 20


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({}, "bundle is missing"),
        ({"bundle": "/there", "port": "80"}, "port"),
        ({"bundle": "/there", "replicas": "none"}, "replicas"),
        ({"bundle": "/there", "fetch": "https://there"}, "needs sha256"),
    ],
)
def test_an_argument_that_is_wrong_is_named(args: dict[str, str], said: str) -> None:
    with pytest.raises(edge.SettingsError, match=said):
        app(args)


@pytest.mark.slow
def test_serve_answers_with_it_as_a_model_alone(demo_bundle: Path) -> None:
    from ray import serve

    messages = [{"role": "user", "content": "What is rain?"}]
    with edge.load(demo_bundle, engine="openvino", reproducible=True, threads=1) as llm:
        alone = llm.chat(messages, max_new_tokens=16, temperature=0).text()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with joined(None, num_cpus=1, object_store_bytes=OBJECTS):
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        try:
            given = {"bundle": str(demo_bundle), "replicas": "1", "threads": "1"}
            serve.run(app({**given, "engine": "openvino", "reproducible": "true", "names": "planets"}))
            body = {"model": "planets", "messages": messages, "max_tokens": 16, "temperature": 0}
            url = f"http://127.0.0.1:{port}/v1/chat/completions"
            asked = Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
            with urlopen(asked, timeout=60) as answer:
                assert json.load(answer)["choices"][0]["message"]["content"] == alone
        finally:
            serve.shutdown()  # type: ignore[no-untyped-call]
