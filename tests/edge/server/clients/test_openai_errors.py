"""Every class of error that the `openai` package knows, from a live server with a key and little room."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from tests.edge.server.clients.conversations import HELLO
from tests.edge.server.clients.serving import MODEL, serving, wait_until_free
from tests.edge.server.live import Live

if TYPE_CHECKING:
    from openai import OpenAI

pytestmark = pytest.mark.slow
KEY = "key-of-the-test"
CONTEXT = 2048
# Room for one conversation of full length, in the tokens of this engine.
SMALL = ("--engine", "onnx", "--max-waiting", "1", "--max-context", str(CONTEXT), "--kv-cache-gb", "0.1")


@pytest.fixture(scope="module")
def live(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "keys.txt").write_text(f"another-key\n{KEY}\n", encoding="utf-8")
    with serving(demo_bundle, folder / "log.txt", "--api-key-file", str(folder / "keys.txt"), *SMALL) as found:
        yield replace(found, headers={"authorization": f"Bearer {KEY}"})
    log = (folder / "log.txt").read_text(encoding="utf-8")
    assert KEY not in log
    assert "tea" not in log


@pytest.fixture(scope="module")
def client(live: Live) -> Iterator[OpenAI]:
    from openai import OpenAI

    with OpenAI(base_url=f"{live.url}/v1", api_key=KEY, max_retries=0, timeout=60) as found:
        yield found


def asked(client: OpenAI, messages: Any = HELLO, **options: Any) -> Any:  # Any: for the tests' ease
    return client.chat.completions.create(**cast("Any", {"model": MODEL, "messages": messages, **options}))


def picture() -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}]}]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("options", "kind", "code", "param"),
    [
        ({"temperature": 3}, "BadRequestError", "invalid_value", "temperature"),
        ({"temperature": "hot"}, "BadRequestError", "invalid_type", "temperature"),
        ({"messages": [{"role": "boss", "content": "x"}]}, "BadRequestError", "invalid_value", "messages[0].role"),
        ({"messages": picture()}, "BadRequestError", "unsupported_content", "messages[0].content[0]"),
        ({"extra_body": {"temprature": 1}}, "BadRequestError", "unknown_parameter", "temprature"),
        ({"audio": {"voice": "x", "format": "wav"}}, "BadRequestError", "unsupported_parameter", "audio"),
        ({"model": "other"}, "NotFoundError", "model_not_found", "model"),
        ({"messages": [{"role": "user", "content": "tea " * 3000}]}, "BadRequestError", "context_length_exceeded",
         "messages"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)  # fmt: skip
def test_what_is_wrong_with_a_request(
    client: OpenAI, options: dict[str, Any], kind: str, code: str, param: str, *, streamed: bool
) -> None:
    """In a stream it is a status, too, and not an event."""
    import openai

    with pytest.raises(getattr(openai, kind)) as found:
        asked(client, **options, stream=streamed)
    error = found.value
    assert (error.code, error.param, error.type) == (code, param, "invalid_request_error")
    assert error.request_id is not None
    assert error.request_id.startswith("req_")


def test_a_full_context_has_figures(client: OpenAI) -> None:
    from openai import BadRequestError

    with pytest.raises(BadRequestError, match="maximum context length is 2048 tokens") as found:
        asked(client, [{"role": "user", "content": "tea " * 3000}])
    assert isinstance(found.value.body, dict)
    assert found.value.body["n_ctx"] == CONTEXT
    assert found.value.body["n_prompt_tokens"] > 3000


def test_a_wrong_key(live: Live) -> None:
    from openai import AuthenticationError, OpenAI

    for key in ("wrong", "key-of-the-tes", KEY + "x"):
        with (
            OpenAI(base_url=f"{live.url}/v1", api_key=key, max_retries=0) as client,
            pytest.raises(AuthenticationError) as found,
        ):
            asked(client)
        assert found.value.code == "invalid_api_key"
        assert key not in found.value.message.replace("wrong one", "")
        assert found.value.response.headers["www-authenticate"] == "Bearer"


def test_no_such_path(live: Live) -> None:
    from openai import NotFoundError, OpenAI

    with OpenAI(base_url=f"{live.url}/v9", api_key=KEY, max_retries=0) as client:
        with pytest.raises(NotFoundError) as found:
            asked(client)
        assert found.value.code == "not_found"
    with OpenAI(base_url=f"{live.url}/v1", api_key=KEY, max_retries=0) as client, pytest.raises(NotFoundError):
        client.embeddings.create(model=MODEL, input="x")


def test_a_deadline_before_the_first_token(client: OpenAI) -> None:
    from openai import APIError, InternalServerError

    with pytest.raises(InternalServerError) as found:
        asked(client, [{"role": "user", "content": "tea " * 1900}], extra_body={"deadline_s": 0.001})
    assert (found.value.status_code, found.value.code) == (504, "deadline_exceeded")
    assert found.value.response.headers["x-should-retry"] == "false"
    with pytest.raises(APIError, match="deadline"):
        list(
            asked(
                client, [{"role": "user", "content": "coffee " * 1900}], extra_body={"deadline_s": 0.001}, stream=True
            )
        )


def test_a_full_queue(client: OpenAI, live: Live) -> None:
    """One runs, one waits for its room, the next is told when to come again."""
    from openai import RateLimitError

    wait_until_free(live)
    long: dict[str, Any] = {"max_tokens": 800, "stream": True, "extra_body": {"ignore_eos": True}}
    running = asked(client, [{"role": "user", "content": "black " * 1200}], **long)
    next(iter(running))
    streams = list[Any]()

    def wait() -> None:
        streams.append(asked(client, [{"role": "user", "content": "green " * 1200}], **long))

    waiting = threading.Thread(target=wait)
    waiting.start()
    deadline = time.monotonic() + 60
    while live.get("/page/status.json").json["waiting"] == 0:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with pytest.raises(RateLimitError) as found:
        asked(client, [{"role": "user", "content": "white"}])
    assert (found.value.code, found.value.type) == ("queue_full", "rate_limit_error")
    assert int(found.value.response.headers["retry-after"]) >= 1
    running.close()
    waiting.join(30)
    for stream in streams:
        stream.close()
    wait_until_free(live)
    assert asked(client, max_tokens=2).choices[0].message.content
