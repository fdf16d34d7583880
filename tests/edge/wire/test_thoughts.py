"""What a model thinks before it answers, in each protocol: apart from the answer, whole as streamed, and counted."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edge.api import scripted_llm
from edge.runtime.chat import ChatTemplate
from edge.runtime.engines.scripted import ASSISTANT, STOP_IDS, TEMPLATE, ScriptedEngine, replies, tokenizer_json
from edge.runtime.llm import LLM
from edge.runtime.tokenizer import Tokenizer
from edge.wire.answers import Head
from edge.wire.anthropic_request import AnthropicRequest
from edge.wire.chat_request import ChatRequest
from edge.wire.errors import RequestError
from edge.wire.responses_request import ResponsesRequest
from tests.edge.wire.test_anthropic_answers import put_together as anthropic_message
from tests.edge.wire.test_responses_answers import put_together as response_output

Body = dict[str, Any]
HELLO: list[Body] = [{"role": "user", "content": "Hello"}]
HEAD = Head("id_1", 7, "scripted")
THINKS = [261, *b"Hm. So", 262, *b"Hi!"]  # <think>Hm. So</think>Hi!


@pytest.fixture
def llm() -> LLM:
    """A model whose tokenizer has the tags."""
    described = json.loads(tokenizer_json())
    for token_id, tag in ((261, "<think>"), (262, "</think>")):
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        described["added_tokens"].append({"id": token_id, "content": tag, "special": False, **flags})
    tokenizer = Tokenizer.from_text(json.dumps(described))

    def script(keys: Any) -> int:
        written = len(keys) - 1 - max(i for i, key in enumerate(keys) if key == ASSISTANT)
        return THINKS[written] if written < len(THINKS) else STOP_IDS[0]

    engine = ScriptedEngine(script, vocab_size=263)
    return LLM.from_engine(engine, tokenizer, template=ChatTemplate(TEMPLATE, tokenizer.markup), stop_ids=STOP_IDS)


def test_a_chat_has_thoughts_beside_its_content_and_counts_them(llm: LLM) -> None:
    asked = {"messages": HELLO, "stream_options": {"include_usage": True}}
    request = ChatRequest.from_body(asked)
    whole = request.answer(HEAD, [stream.answer() for stream in request.start(llm)], llm)
    message = whole["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("Hm. So", "Hi!")
    assert whole["usage"]["completion_tokens_details"] == {"reasoning_tokens": 8}, "with the two tags"
    request = ChatRequest.from_body({**asked, "stream": True})
    events = request.events(HEAD, llm)
    found = [*events.begin()]
    (stream,) = request.start(llm)
    for chunk in stream:
        found += events.push(0, chunk)
    data = [event.data for event in (*found, *events.end()) if isinstance(event.data, dict)]
    deltas = [choice["delta"] for one in data for choice in one["choices"]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Hm. So"
    assert "".join(delta.get("content") or "" for delta in deltas) == "Hi!"
    assert not any(delta.get("content") and delta.get("reasoning_content") for delta in deltas)
    assert data[-1]["usage"] == whole["usage"]


def test_they_may_be_sent_back_and_change_nothing(llm: LLM) -> None:
    turn = {"role": "assistant", "content": "Hi!"}
    ids = [llm.encode_chat([*HELLO, {**turn, **more}, *HELLO]) for more in ({}, {"reasoning_content": "Hm. So"})]
    assert ids[0] == ids[1]


def test_a_response_has_an_item_of_thoughts(llm: LLM) -> None:
    request = ResponsesRequest.from_body({"input": "Hello"})
    whole = request.answer(HEAD, [stream.answer() for stream in request.start(llm)], llm)
    thoughts, message = whole["output"]
    assert thoughts["type"] == "reasoning"
    assert thoughts["content"] == [{"type": "reasoning_text", "text": "Hm. So"}]
    assert message["content"][0]["text"] == "Hi!"
    assert whole["usage"]["output_tokens_details"] == {"reasoning_tokens": 8}
    request = ResponsesRequest.from_body({"input": "Hello", "stream": True})
    events = request.events(HEAD, llm)
    found = [*events.begin()]
    (stream,) = request.start(llm)
    for chunk in stream:
        found += events.push(0, chunk)
    streamed = response_output([*found, *events.end()])
    assert streamed["output"] == whole["output"]
    again = ResponsesRequest.from_body({"input": [{"role": "user", "content": "Hello"}, *whole["output"]]})
    assert [message["role"] for message in again.chat.messages if isinstance(message, dict)] == ["user", "assistant"]


@pytest.mark.parametrize("thinking", [None, {"type": "enabled", "budget_tokens": 1024}, {"type": "adaptive"}])
def test_a_message_has_a_block_of_thoughts(thinking: Body | None, llm: LLM) -> None:
    asked = {"messages": HELLO, "max_tokens": 50, "thinking": thinking}
    request = AnthropicRequest.from_body(asked)
    whole = request.answer(HEAD, [stream.answer() for stream in request.start(llm)], llm)
    assert whole["content"] == [
        {"type": "thinking", "thinking": "Hm. So", "signature": ""}, {"type": "text", "text": "Hi!"},
    ]  # fmt: skip
    request = AnthropicRequest.from_body({**asked, "stream": True})
    events = request.events(HEAD, llm)
    found = [*events.begin()]
    (stream,) = request.start(llm)
    for chunk in stream:
        found += events.push(0, chunk)
    assert anthropic_message([*found, *events.end()])["content"] == whole["content"]
    replayed = {"messages": [*HELLO, {"role": "assistant", "content": whole["content"]}, *HELLO]}
    assert AnthropicRequest.from_body(replayed).count(llm) > 0


def test_a_model_that_does_not_think_refuses_to() -> None:
    asked = {"messages": HELLO, "thinking": {"type": "enabled", "budget_tokens": 1024}}
    with pytest.raises(RequestError, match="asks a model to think that does not") as found:
        AnthropicRequest.from_body(asked).start(scripted_llm(replies({})))
    assert (found.value.code, found.value.param) == ("unsupported_parameter", "thinking")
