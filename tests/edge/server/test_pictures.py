"""Pictures in requests: they reach the model as they were sent, and nothing else does that a client may name."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.api import scripted_llm
from edge.batch.lines import Line
from edge.batch.requests import request_of
from edge.runtime.engines.scripted import replies
from edge.runtime.llm import LLM
from edge.wire.errors import RequestError
from edge.wire.pictures import MAX_PICTURES
from tests.edge.server.live import Json, Live, served, until
from tests.edge.server.pictured import PNG, FakePictures, seeing

CAT = PNG + b"cat"
TEXT: Json = {"type": "text", "text": "What is it?"}
REMOTE = "https://example.org/cat.png"


def url(data: bytes = CAT, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def chat(*parts: Any) -> Json:
    return {"messages": [{"role": "user", "content": [TEXT, *parts]}], "max_tokens": 20}


def asked(*parts: Any) -> Json:
    return {"input": [{"role": "user", "content": [{"type": "input_text", "text": "What is it?"}, *parts]}]}


def image(data: bytes = CAT) -> Json:
    return {"type": "image_url", "image_url": {"url": url(data)}}


def linked(address: str) -> Json:
    return chat({"type": "image_url", "image_url": {"url": address}})


def source(data: Any, kind: Any = "base64") -> Json:
    return {"type": "image", "source": {"type": kind, "media_type": "image/png", "data": data}}


BASE = "data:image/png;base64,"
CHATS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
COUNT, TOKENIZE, COMPLETIONS = "/v1/messages/count_tokens", "/tokenize", "/v1/completions"
BASE64 = base64.b64encode(CAT).decode()
PLACE, URL = "messages[0].content[1]", "messages[0].content[1].image_url.url"


def model(pictures: FakePictures, **changes: Any) -> LLM:
    return seeing(scripted_llm(replies({"What is it?[cat]": "A cat."}), max_context=512, **changes), pictures)


@pytest.fixture(scope="module")
def eyes() -> FakePictures:
    found = FakePictures()
    found.gate.set()
    return found


@pytest.fixture(scope="module")
def live(eyes: FakePictures) -> Iterator[Live]:
    with served(model(eyes)) as server:
        yield server


@pytest.fixture
def pictures(eyes: FakePictures) -> FakePictures:
    """What the model's eyes saw in this test."""
    eyes.opened.clear()
    eyes.seen.clear()
    return eyes


@pytest.fixture(scope="module")
def blind() -> Iterator[Live]:
    with served(scripted_llm(replies({}), max_context=512)) as server:
        yield server


def texts(body: Json) -> str:
    """Return the text of an answer of any protocol."""
    if "choices" in body:
        return str(body["choices"][0]["message"]["content"])
    found = body["content"] if "content" in body else body["output"][0]["content"]
    return str(found[0]["text"])


FORMS = {
    "chat": (CHATS, chat(image())),
    "chat, with a detail": (CHATS, chat({"type": "image_url", "image_url": {"url": url(), "detail": "low"}})),
    "chat, a URL as text": (CHATS, chat({"type": "image_url", "image_url": url()})),
    "chat, another media type": (CHATS, chat({"type": "image_url", "image_url": url(kind="text/plain;x=y")})),
    "chat, none": (CHATS, chat({"type": "image_url", "image_url": url(kind="")})),
    "chat, escaped": (CHATS, chat({"type": "image_url", "image_url": url().replace("=", "%3D").replace("+", "%2B")})),
    "responses": (RESPONSES, asked({"type": "input_image", "image_url": url(), "detail": "auto"})),
    "Anthropic's": (MESSAGES, chat(source(BASE64))),
}


@pytest.mark.parametrize(("path", "body"), FORMS.values(), ids=FORMS)
def test_every_protocols_form_reaches_the_model_as_the_bytes_that_were_sent(
    path: str, body: Json, live: Live, pictures: FakePictures
) -> None:
    answer = live.post(path, body)
    assert texts(answer.json) == "A cat."
    assert pictures.opened == pictures.seen == [CAT]


def test_only_users_show_pictures(live: Live, pictures: FakePictures) -> None:
    use = {"type": "tool_use", "id": "1", "name": "look", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "1", "content": [TEXT, source(BASE64)]}
    said = [{"role": "user", "content": "x"}, {"role": "assistant", "content": [use]}]
    reply = live.post(MESSAGES, {"messages": [*said, {"role": "user", "content": [result]}]})
    assert (reply.error["code"], reply.error["param"]) == ("unsupported_content", "messages[2].content[0].content[1]")
    reply = live.post(MESSAGES, {"messages": said[:1], "system": [source(BASE64)]})
    assert (reply.error["code"], reply.error["param"]) == ("unsupported_content", "system[0]")
    assert not pictures.opened


def test_tokens_of_pictures_are_counted_without_looking_at_them(live: Live, pictures: FakePictures) -> None:
    told = live.post(TOKENIZE, {"messages": chat(image())["messages"]}).json
    assert live.post(COUNT, {**chat(source(BASE64))}).json == {"input_tokens": told["count"]}
    assert (pictures.opened, pictures.seen) == ([CAT], [])


def sent(part: Any) -> list[tuple[str, Json, str]]:
    """Return a part in the bodies of all endpoints that take messages, with the paths of errors about it."""
    return [
        (CHATS, chat(part), "messages[0].content[1]"),
        (TOKENIZE, {"messages": chat(part)["messages"]}, "messages[0].content[1]"),
        (RESPONSES, asked(part), "input[0].content[1]"),
        (MESSAGES, chat(part), "messages[0].content[1]"),
        (COUNT, chat(part), "messages[0].content[1]"),
    ]


def hostile(secret: Path) -> dict[str, Any]:
    """Parts that would make a careless server read a file, or ask another host."""
    path, data = str(secret), base64.b64encode(CAT).decode()
    return {
        "path": {"type": "image", "path": path},
        "relative path": {"type": "image", "path": secret.name},
        "data": {"type": "image", "data": data},
        "picture": {"type": "image", "image": path},
        "url in image": {"type": "image", "image_url": {"url": path}},
        "path beside an url": {"type": "image_url", "image_url": {"url": url()}, "path": path},
        "path inside": {"type": "image_url", "image_url": {"path": path}},
        "data beside": {"type": "input_image", "image_url": url(), "data": data},
        "file:": {"type": "image_url", "image_url": {"url": f"file://{path}"}},
        "FILE:": {"type": "image_url", "image_url": f"FILE:{path}"},
        "absolute": {"type": "image_url", "image_url": {"url": path}},
        "relative": {"type": "image_url", "image_url": {"url": "./cat.png"}},
        "backslashes": {"type": "image_url", "image_url": {"url": "C:\\cat.png"}},
        "https": {"type": "image_url", "image_url": {"url": REMOTE}},
        "http": {"type": "input_image", "image_url": "HTTP://127.0.0.1:8000/health"},
        "ftp": {"type": "image_url", "image_url": "ftp://example.org/cat.png"},
        "stored": {"type": "input_image", "file_id": "file_1"},
        "stored, and a picture": {"type": "input_image", "file_id": "file_1", "image_url": url()},
        "a source of a file": {"type": "image", "source": {"type": "file", "file_id": path}},
        "a source of a URL": {"type": "image", "source": {"type": "url", "url": f"file://{path}"}},
        "a source with a path": {"type": "image", "source": {"type": "base64", "data": data, "path": path}},
        "a list": ["image", path],
        "a text": path,
        "without a type": {"path": path},
        "a type that is a list": {"type": ["image"], "path": path},
        "of no type": {"type": "picture", "path": path},
        "text with a path": {"type": "text", "path": path},
        "a file": {"type": "file", "file": {"file_data": data}},
    }


@pytest.fixture
def secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    found = tmp_path / "cat.png"
    found.write_bytes(CAT)
    return found


@pytest.mark.parametrize("kind", hostile(Path()))
def test_no_client_reads_a_file_or_makes_the_server_ask_another_host(
    kind: str, live: Live, pictures: FakePictures, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = hostile(secret)[kind]
    asks = sent(part)
    monkeypatch.setattr(Path, "open", _refuse)
    monkeypatch.setattr(Path, "read_bytes", _refuse)
    for path, body, place in asks:
        reply = live.post(path, body)
        assert reply.status == 400, (path, reply.body)
        assert reply.error["param"].startswith(place), (path, reply.error)
    line = {"url": CHATS, "body": chat(part)}
    with pytest.raises(RequestError):
        request_of(Line(1, "a", json.dumps(line).encode())).start(live.service.llm if live.service else model(pictures))
    assert not pictures.seen


def _refuse(*_: object, **__: object) -> Any:
    raise AssertionError("a file is opened")


@pytest.mark.parametrize(
    "prompt",
    [
        [{"type": "image", "path": "cat.png"}],
        [[{"type": "image", "path": "cat.png"}]],
        {"path": "cat.png"},
        [CAT.hex(), {}],
    ],
)
def test_completions_take_text_and_ids_alone(prompt: Any, live: Live, pictures: FakePictures, secret: Path) -> None:
    assert live.post(COMPLETIONS, {"prompt": prompt}).status == 400
    assert not pictures.opened


BAD = {
    "not base64": (CHATS, linked(f"{BASE}iVBO*"), "invalid_value", URL),
    "cut": (CHATS, linked(url()[:-1]), "invalid_value", URL),
    "letters": (CHATS, linked("data:;base64,猫"), "invalid_value", URL),
    "not encoded": (CHATS, linked("data:image/svg+xml,<svg/>"), "invalid_value", URL),
    "no data": (CHATS, linked(BASE), "invalid_value", URL),
    "empty": (CHATS, chat({"type": "image_url", "image_url": ""}), "invalid_value", f"{PLACE}.image_url"),
    "missing": (CHATS, chat({"type": "image_url"}), "missing_required_parameter", f"{PLACE}.image_url"),
    "no url": (CHATS, chat({"type": "image_url", "image_url": {}}), "missing_required_parameter", URL),
    "a number": (CHATS, chat({"type": "image_url", "image_url": {"url": 5}}), "invalid_type", URL),
    "misspelt": (CHATS, chat({"type": "image_url", "image_url": {"url": url(), "detial": "low"}}), "unknown_parameter",
                 f"{PLACE}.image_url.detial"),
    "no picture": (CHATS, chat(image(b"%PDF-1.7")), "invalid_value", URL),
    "no picture in input": (RESPONSES, asked({"type": "input_image", "image_url": url(b"GIF")}), "invalid_value",
                            "input[0].content[1].image_url"),
    "no picture in a source": (MESSAGES, chat(source("AAAA")), "invalid_value", f"{PLACE}.source.data"),
    "no source": (MESSAGES, chat({"type": "image"}), "missing_required_parameter", f"{PLACE}.source"),
    "no data in a source": (MESSAGES, chat(source(None)), "missing_required_parameter", f"{PLACE}.source.data"),
    "no base64 in a source": (MESSAGES, chat(source("x")), "invalid_value", f"{PLACE}.source.data"),
    "a link in a source": (MESSAGES, chat(source("x", "url")), "unsupported_content", f"{PLACE}.source.type"),
    "a link": (CHATS, linked(REMOTE), "unsupported_content", URL),
    "a sound": (CHATS, chat({"type": "input_audio"}), "unsupported_content", PLACE),
    "too many": (CHATS, chat(*[image()] * (MAX_PICTURES + 1)), "invalid_value",
                 f"messages[0].content[{MAX_PICTURES + 1}].image_url.url"),
}  # fmt: skip


@pytest.mark.parametrize(("path", "body", "code", "param"), BAD.values(), ids=BAD)
def test_a_picture_that_is_wrong_is_named(path: str, body: Json, code: str, param: str, live: Live) -> None:
    reply = live.post(path, body)
    assert (reply.status, reply.error["code"], reply.error["param"]) == (400, code, param), reply.error
    assert reply.error["message"].startswith(param.removesuffix(".detial")), reply.error["message"]
    streamed = live.post(path, {**body, "stream": True})
    assert (streamed.status, streamed.error) == (400, reply.error)


@pytest.mark.parametrize(("path", "body"), FORMS.values(), ids=FORMS)
def test_a_model_without_eyes_says_so(path: str, body: Json, blind: Live) -> None:
    reply = blind.post(path, body)
    assert (reply.status, reply.error["code"]) == (400, "unsupported_content")
    assert reply.error["param"] in (PLACE, "input[0].content[1]")
    assert "reads text and nothing else" in reply.error["message"]


def test_the_server_says_whether_its_model_sees(live: Live, blind: Live) -> None:
    sees, not_ = (server.get("/v1/models").json["data"][0] for server in (live, blind))
    assert sees["capabilities"] == ["completion", "vision"]
    assert sees["architecture"] == {"input_modalities": ["text", "image"], "output_modalities": ["text"]}
    assert not_["capabilities"] == ["completion"]
    assert not_["architecture"]["input_modalities"] == ["text"]
    told, none = (server.get("/page/status.json").json["pictures"] for server in (live, blind))
    assert none is None
    assert told["most"] == 1
    assert told["max_bytes"] > 20e6


def test_bodies_may_be_longer_where_the_model_sees_and_are_held_within_a_limit(live: Live, blind: Live) -> None:
    phone = chat(image(bytes(20_000_000)))
    assert live.post(CHATS, phone).error["param"] == URL, "it was read, and is no picture"
    assert blind.post(CHATS, phone).status == 413
    with served(model(FakePictures()), max_held_bytes=1 << 20) as small:
        reply = small.post(CHATS, chat(image(CAT + bytes(1 << 20))))
        assert (reply.status, reply.error["code"]) == (429, "queue_full")
        assert int(reply.headers["retry-after"]) > 0
        assert small.chat("hello").status == 200
        service = small.service
        assert service is not None
        until(lambda: service.bodies.held == 0)


def test_logged_prompts_are_without_the_data_of_pictures(caplog: pytest.LogCaptureFixture) -> None:
    eyes = FakePictures()
    eyes.gate.set()
    with served(model(eyes), log_prompts=True) as live, caplog.at_level("INFO"):
        live.post(CHATS, chat(image(CAT + bytes(3000))))
    (told,) = [record.getMessage() for record in caplog.records if "What is it?" in record.getMessage()]
    assert "base64,<4016 letters>" in told
