"""/tokenize, /detokenize and /tokenizer_info: the tokens that are computed, text that comes back, and nothing odd."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.api import scripted_llm
from edge.runtime.chat import ChatTemplate
from edge.runtime.engines.scripted import SPECIAL, TEMPLATE, noise, tokenizer_json
from edge.runtime.errors import EdgeError
from edge.runtime.llm import LLM
from edge.runtime.tokenizer import Tokenizer
from edge.wire.chat_request import ChatRequest
from edge.wire.completion_request import CompletionRequest
from edge.wire.errors import RequestError, error_answer
from edge.wire.tokenizing import detokenize, tokenize, tokenizer_info

Body = dict[str, Any]
HELLO: list[Body] = [{"role": "user", "content": "Hello <|user|>"}]
BEGUN: list[Body] = [*HELLO, {"role": "assistant", "content": "Well"}]
TOOL: Body = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
LLM_ = scripted_llm(noise(), max_context=1024)


def test_a_text() -> None:
    assert tokenize({"prompt": "hi<|user|>", "model": "any"}, LLM_) == {
        "tokens": [104, 105, 257],
        "count": 3,
        "max_model_len": 1024,
    }
    found = tokenize({"prompt": "h é", "return_token_strs": True, "add_special_tokens": False}, LLM_)
    assert found["token_strs"] == ["h", "Ġ", "Ã", "©"]  # as the vocabulary writes them
    assert tokenize({"prompt": ""}, LLM_)["tokens"] == []


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": HELLO},
        {"messages": HELLO, "tools": [TOOL], "chat_template_kwargs": {"a": 1}},
        {"messages": BEGUN, "continue_final_message": True, "add_generation_prompt": False},
    ],
)
def test_tokens_are_those_that_are_computed(fields: Body) -> None:
    """What a request reads is what /tokenize says of the same fields."""
    found = tokenize(fields, LLM_)
    (stream,) = ChatRequest.from_body({**fields, "max_tokens": 1}).start(LLM_)
    assert stream._request.ids[: stream._request.num_prompt_tokens] == found["tokens"]
    assert found["count"] == len(found["tokens"])
    stream.close()
    whole = tokenize({"messages": BEGUN, "add_generation_prompt": False}, LLM_)
    assert whole["tokens"] == LLM_.encode_chat(BEGUN, add_generation_prompt=False)


@given(text=st.text(max_size=20) | st.lists(st.sampled_from([*SPECIAL, "a", "ü", "😀"]), max_size=5).map("".join))
def test_text_comes_back(text: str) -> None:
    ids = tokenize({"prompt": text}, LLM_)["tokens"]
    assert detokenize({"tokens": ids}, LLM_) == {"prompt": text}
    if ids:
        (stream,) = CompletionRequest.from_body({"prompt": text, "max_tokens": 1}).start(LLM_)
        assert stream._request.ids[: len(ids)] == ids
        stream.close()


@given(ids=st.lists(st.integers(0, 260), max_size=20))
def test_any_ids_are_text(ids: list[int]) -> None:
    found = detokenize({"tokens": ids}, LLM_)["prompt"]
    expected = b"".join(SPECIAL[i - 256].encode() if i >= 256 else bytes([i]) for i in ids)
    assert found == expected.decode("utf-8", "replace")
    json.dumps(found).encode()


def test_what_the_tokenizer_would_add(shared: Path) -> None:
    """GLM-4's puts two tokens before a text; nothing else here does, so they are added on request."""
    tokenizer = Tokenizer(shared / "glm4-tokenizer" / "tokenizer.json")
    llm = LLM.from_engine(LLM_.engine, tokenizer)
    plain = tokenizer.encode("Hello")
    assert tokenize({"prompt": "Hello"}, llm)["tokens"] == plain
    assert tokenize({"prompt": "Hello", "add_special_tokens": True}, llm)["tokens"] == [151331, 151333, *plain]
    assert tokenize({"prompt": "a", "add_special_tokens": True}, LLM_)["tokens"] == [97]
    assert detokenize({"tokens": [151331, 151333, *plain]}, llm) == {"prompt": "[gMASK]<sop>Hello"}


def test_what_is_told_of_the_tokenizer(tiny_bundle: Path) -> None:
    llm = LLM(tiny_bundle)
    found = tokenizer_info(llm)
    config = json.loads((tiny_bundle / "tokenizer_config.json").read_text(encoding="utf-8"))
    stop = llm.tokenizer.token_text(llm.bundle.manifest.stop_token_ids[0])
    assert found["chat_template"] == (tiny_bundle / "chat_template.jinja").read_text(encoding="utf-8")
    assert found["eos_token"] == config.get("eos_token", stop)
    assert {name: found[name] for name in ("bos_token", "pad_token", "unk_token")} == {
        name: config.get(name) for name in ("bos_token", "pad_token", "unk_token")
    }
    plain = tokenizer_info(LLM_)
    assert (plain["eos_token"], plain["chat_template"]) == ("<|user|>", TEMPLATE)
    base = LLM.from_engine(LLM_.engine, LLM_.tokenizer)
    assert set(tokenizer_info(base).values()) == {None}
    named = ChatTemplate(TEMPLATE, named_tokens={"eos_token": "<e>", "bos_token": "<b>", "pad_token": "<p>"})
    found = tokenizer_info(LLM.from_engine(LLM_.engine, Tokenizer.from_text(tokenizer_json()), template=named))
    assert (found["eos_token"], found["bos_token"], found["pad_token"]) == ("<e>", "<b>", "<p>")


REFUSED: list[tuple[Callable[[Body, LLM], Body], Body, str, str | None]] = [
    (tokenize, {}, "missing_required_parameter", "prompt"),
    (tokenize, {"prompt": None}, "missing_required_parameter", "prompt"),
    (tokenize, {"prompt": 5}, "invalid_type", "prompt"),
    (tokenize, {"prompt": ["a"]}, "invalid_type", "prompt"),
    (tokenize, {"prompt": "a", "messages": HELLO}, "unknown_parameter", "prompt"),
    (tokenize, {"prompt": "a", "add_special_tokens": 1}, "invalid_type", "add_special_tokens"),
    (tokenize, {"prompt": "a", "return_token_strs": "yes"}, "invalid_type", "return_token_strs"),
    (tokenize, {"prompt": "a", "promt": "b"}, "unknown_parameter", "promt"),
    (tokenize, {"messages": []}, "invalid_value", "messages"),
    (tokenize, {"messages": "x"}, "invalid_type", "messages"),
    (tokenize, {"messages": [{"role": "user"}]}, "missing_required_parameter", "messages[0].content"),
    (tokenize, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "unsupported_content",
     "messages[0].content[0]"),
    (tokenize, {"messages": HELLO, "add_special_tokens": True}, "unsupported_parameter", "add_special_tokens"),
    (tokenize, {"messages": HELLO, "chat_template": "x"}, "unsupported_parameter", "chat_template"),
    (tokenize, {"messages": HELLO, "continue_final_message": True}, "invalid_value", "messages[0].role"),
    (tokenize, {"messages": BEGUN, "continue_final_message": True, "add_generation_prompt": True}, "invalid_value",
     "add_generation_prompt"),
    (tokenize, {"messages": HELLO, "tools": [5]}, "invalid_type", "tools[0]"),
    (tokenize, {"messages": HELLO, "chat_template_kwargs": {"messages": []}}, "invalid_value",
     "chat_template_kwargs.messages"),
    (detokenize, {}, "missing_required_parameter", "tokens"),
    (detokenize, {"tokens": 5}, "invalid_type", "tokens"),
    (detokenize, {"tokens": ["a"]}, "invalid_type", "tokens[0]"),
    (detokenize, {"tokens": [1, True]}, "invalid_type", "tokens[1]"),
    (detokenize, {"tokens": [1, 1.5]}, "invalid_type", "tokens[1]"),
    (detokenize, {"tokens": [-1]}, "invalid_value", "tokens[0]"),
    (detokenize, {"tokens": [0, 261]}, "invalid_value", "tokens[1]"),
    (detokenize, {"tokens": [10**30]}, "invalid_value", "tokens[0]"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("function", "body", "code", "param"), REFUSED, ids=lambda value: getattr(value, "__name__", str(value)[:60])
)
def test_a_wrong_body(function: Callable[[Body, LLM], Body], body: Body, code: str, param: str | None) -> None:
    with pytest.raises(RequestError) as found:
        function(body, LLM_)
    told = error_answer(found.value)
    assert (told.status, told.code, told.param) == (400, code, param), told.message


def check_refused(error: EdgeError) -> None:
    assert error_answer(error).status == 400, repr(error)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "x"]), inner),
    max_leaves=6,
)
NAMES = st.sampled_from([
    "prompt", "messages", "tokens", "tools", "model", "add_special_tokens", "return_token_strs",
    "add_generation_prompt", "continue_final_message", "chat_template_kwargs", "x",
])  # fmt: skip


@settings(max_examples=200)
@given(
    body=st.dictionaries(NAMES, VALUES | st.just(HELLO), max_size=4), function=st.sampled_from([tokenize, detokenize])
)
def test_any_body_is_answered_or_refused(body: Body, function: Callable[[Body, LLM], Body]) -> None:
    try:
        found = function(body, LLM_)
    except EdgeError as error:
        check_refused(error)
    else:
        json.dumps(found, allow_nan=False).encode()


def test_a_long_text_that_no_context_holds() -> None:
    """Its length is what a client wants to know."""
    found = tokenize({"prompt": "x" * 5000}, LLM_)
    assert (found["count"], found["max_model_len"]) == (5000, 1024)
    with pytest.raises(RequestError):
        CompletionRequest.from_body({"prompt": found["tokens"]}).start(LLM_)
