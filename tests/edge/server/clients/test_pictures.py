"""Pictures from the clients that people have, to servers with tiny models that see: as answered in one process."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import edge
from edge.commands.serve import EXPECTED_CLIENTS
from edge.runtime.llm import LLM
from edge.runtime.messages import ImagePart, Message, TextPart
from edge.runtime.settings import EngineSettings
from tests.edge.server.clients.serving import MODEL, serving, wait_until_free
from tests.edge.server.clients.test_page import WITH_PICTURES
from tests.edge.server.live import Live

pytestmark = pytest.mark.slow

LIMIT = 12
QUESTION = "What is it?"
ENGINES = ("openvino", "onnx")


def picture(colour: int = 0) -> bytes:
    pillow: Any = pytest.importorskip("PIL.Image")
    found = io.BytesIO()
    gradient = pillow.linear_gradient("L").resize((70, 56))
    pillow.merge("RGB", [gradient, gradient.rotate(180), pillow.new("L", (70, 56), colour)]).save(found, "PNG")
    return found.getvalue()


CAT = picture()


def url(data: bytes = CAT) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def asked(data: bytes = CAT) -> list[Message]:
    return [Message("user", (ImagePart(data=data), TextPart(QUESTION)))]


@pytest.fixture(scope="module", params=["4v", "41v"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny_pictures import make_4v, make_glm4v

    folder = tmp_path_factory.mktemp(request.param)
    make: Any = make_4v if request.param == "4v" else make_glm4v
    make(folder / "checkpoint")
    edge.export(folder / "checkpoint", folder / "bundle")
    return folder / "bundle"


@pytest.fixture(scope="module", params=ENGINES)
def pair(
    request: pytest.FixtureRequest, bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Live, LLM]]:
    """A server, and the same model on the same engine without one; neither knows what the other looked at."""
    kept, engine = tmp_path_factory.mktemp("kept"), request.param
    settings = EngineSettings(
        engine=engine, reproducible=True, expected_clients=EXPECTED_CLIENTS, kept_pictures_folder=kept
    )
    options = ["--engine", engine, "--reproducible", "--self-test", "off", "--any-model"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(kept / "cache"))
        with serving(bundle, kept / "log.txt", *options) as live, LLM(bundle, settings) as llm:
            yield live, llm


def figures(live: Live) -> dict[str, float]:
    lines = live.get("/metrics").body.decode().splitlines()
    return {line.split()[0]: float(line.split()[1]) for line in lines if line.startswith("edge_picture")}


def test_openai_gets_what_one_process_says(pair: tuple[Live, LLM]) -> None:
    from openai import OpenAI

    live, llm = pair
    expected = llm.chat(asked(), max_new_tokens=LIMIT, ignore_stop_ids=True).answer()
    parts: Any = [{"type": "image_url", "image_url": {"url": url()}}, {"type": "text", "text": QUESTION}]
    extra = {"return_token_ids": True, "ignore_eos": True, "return_progress": True}
    with OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0, timeout=120) as client:

        def answer(**more: Any) -> Any:
            return client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": parts}], max_tokens=LIMIT, extra_body=extra, **more
            )

        chunks = list(answer(stream=True))
        told = [chunk.picture_progress for chunk in chunks if hasattr(chunk, "picture_progress")]
        assert told[0]["processed"] == 0
        assert told[-1]["processed"] == told[-1]["total"] == 3
        ids = [i for chunk in chunks for choice in chunk.choices for i in getattr(choice, "token_ids", None) or ()]
        assert tuple(ids) == expected.token_ids
        whole = answer()
        assert tuple(whole.choices[0].token_ids) == expected.token_ids
        assert whole.choices[0].message.content == expected.text
        assert expected.stats is not None
        assert whole.usage.prompt_tokens == expected.stats.prompt_tokens
        assert whole.usage.prompt_tokens_details.cached_tokens > 0, "its rows are in the cache"
        response: Any = client.responses.create(
            model=MODEL,
            max_output_tokens=LIMIT,
            input=[{"role": "user", "content": [
                {"type": "input_image", "image_url": url(), "detail": "auto"}, {"type": "input_text", "text": QUESTION},
            ]}],
            extra_body={"ignore_eos": True},
        )  # fmt: skip
        assert response.usage.input_tokens == expected.stats.prompt_tokens
    assert figures(live)['edge_pictures_total{kept="no"}'] == 1
    wait_until_free(live)


def test_a_message_of_anthropics_gets_the_same(pair: tuple[Live, LLM]) -> None:
    live, llm = pair
    expected = llm.chat(asked(), max_new_tokens=LIMIT).answer()
    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(CAT).decode()}
    content = [{"type": "image", "source": source}, {"type": "text", "text": QUESTION}]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": LIMIT}
    message = live.post("/v1/messages", body).json
    texts = "".join(block["text"] for block in message["content"] if block["type"] == "text")
    thoughts = "".join(block["thinking"] for block in message["content"] if block["type"] == "thinking")
    assert (texts, thoughts) == (expected.text, expected.reasoning)
    assert expected.stats is not None
    assert live.post("/v1/messages/count_tokens", body).json == {"input_tokens": expected.stats.prompt_tokens}


def test_two_pictures_with_the_same_words_have_answers_of_their_own(pair: tuple[Live, LLM]) -> None:
    live, llm = pair
    found = []
    for data in (CAT, picture(255), CAT):
        llm.clear_cache()
        expected = llm.chat(asked(data), max_new_tokens=LIMIT, ignore_stop_ids=True).answer()
        parts = [{"type": "image_url", "image_url": {"url": url(data)}}, {"type": "text", "text": QUESTION}]
        body = {"messages": [{"role": "user", "content": parts}], "max_tokens": LIMIT, "ignore_eos": True}
        reply = live.post("/v1/chat/completions", {**body, "return_token_ids": True}).json
        assert tuple(reply["choices"][0]["token_ids"]) == expected.token_ids
        found.append(expected.token_ids)
    assert found[0] == found[2]


def test_the_server_says_that_it_sees_and_refuses_what_is_no_picture(pair: tuple[Live, LLM]) -> None:
    live, llm = pair
    assert llm.pictures is not None
    assert live.get("/v1/models").json["data"][0]["capabilities"] == ["completion", "vision"]
    most = live.get("/page/status.json").json["pictures"]["most"]
    assert most == llm.pictures.spec.max_pictures
    for data in (b"GIF89a", b"<svg xmlns='http://www.w3.org/2000/svg'/>", CAT[:60]):
        parts = [{"type": "image_url", "image_url": {"url": url(data)}}]
        reply = live.post("/v1/chat/completions", {"messages": [{"role": "user", "content": parts}]})
        assert (reply.status, reply.error["param"]) == (400, "messages[0].content[0].image_url.url"), reply.error
    if most == 1:
        parts = [{"type": "image_url", "image_url": {"url": url()}}] * 2
        reply = live.post("/v1/chat/completions", {"messages": [{"role": "user", "content": parts}]})
        assert reply.status == 400
        assert "one picture" in reply.error["message"]


@pytest.mark.parametrize("text", WITH_PICTURES)
def test_the_example_on_the_page_runs_as_it_is_printed(text: str, pair: tuple[Live, LLM], tmp_path: Path) -> None:
    live, _ = pair
    (tmp_path / "photo.jpg").write_bytes(CAT)
    assert "http://127.0.0.1:8000" in text
    done = subprocess.run(
        [sys.executable, "-c", text.replace("http://127.0.0.1:8000", live.url)],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
