"""Answers on the wire: texts, calls, ends, figures and log-probabilities, over scripted answers."""

from __future__ import annotations

import math
from typing import Any

import pytest

from edge.api import scripted_llm
from edge.runtime.chunk import Answer, Stats
from edge.runtime.engines.scripted import noise, replies
from edge.runtime.errors import CacheFullError, ClosedError, ContextLengthError, DeviceError
from edge.runtime.llm import LLM
from edge.runtime.messages import ToolCall
from edge.wire.answers import Head, chat_completion, message_of, usage
from edge.wire.chat_request import ChatRequest
from edge.wire.completion_request import CompletionRequest
from edge.wire.errors import RequestError, error_answer

Body = dict[str, Any]
HEAD = Head("id-1", 0, "model", "fp_1")
HELLO: list[Body] = [{"role": "user", "content": "Hello"}]
WEATHER: Body = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
ANSWER = 'weather\n{"city": "Köln 😀"}'


def answered(llm: LLM, **fields: Any) -> Body:
    request = ChatRequest.from_body({"messages": HELLO, **fields})
    return request.answer(HEAD, [stream.answer() for stream in request.start(llm)], llm)


def completed(llm: LLM, **fields: Any) -> Body:
    request = CompletionRequest.from_body(fields)
    return request.answer(HEAD, [stream.answer() for stream in request.start(llm)], llm)


def test_a_text_has_the_shape_of_the_protocol() -> None:
    llm = scripted_llm(replies({"Hello": "Hello to you"}))
    assert answered(llm, user="someone") == {
        "id": "id-1",
        "object": "chat.completion",
        "created": 0,
        "model": "model",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello to you", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 7, "completion_tokens": 13, "total_tokens": 20},
        "system_fingerprint": "fp_1",
    }


@pytest.mark.parametrize(("limit", "reason"), [(None, "tool_calls"), (18, "length")])
def test_a_call_has_null_for_its_text(limit: int | None, reason: str) -> None:
    """One that is cut is not a call that can be carried out, and nothing of it is lost."""
    llm = scripted_llm(replies(lambda _: ANSWER))
    (choice,) = answered(llm, tools=[WEATHER], max_tokens=limit)["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert choice["message"]["content"] is None
    assert choice["finish_reason"] == reason
    assert call["type"] == "function"
    assert call["id"].startswith("call_")
    assert call["function"]["name"] == "weather"
    arguments = call["function"]["arguments"]
    assert '{"city": "Köln 😀"}'.startswith(arguments)
    assert (arguments == '{"city": "Köln 😀"}') == (limit is None)


def test_ends_are_three_words() -> None:
    llm = scripted_llm(replies(lambda _: "one two three"))
    assert answered(llm)["choices"][0]["finish_reason"] == "stop"
    assert answered(llm, stop=["two"])["choices"][0]["finish_reason"] == "stop"
    assert answered(llm, max_tokens=3)["choices"][0]["finish_reason"] == "length"
    late = Answer("one", (1, 2), "deadline", Stats(3, 0, 2, 1.0, 1.0))
    (choice,) = chat_completion(HEAD, [late], llm.tokenizer, logprobs=False)["choices"]
    assert (choice["finish_reason"], choice["edge"]) == ("length", {"finish_reason": "deadline"})


def test_a_deadline_before_the_first_token() -> None:
    llm = scripted_llm(noise())
    too_late = Answer("", (), "deadline")
    with pytest.raises(RequestError) as found:
        chat_completion(HEAD, [too_late], llm.tokenizer, logprobs=False)
    answer = error_answer(found.value)
    assert (answer.status, answer.code, answer.type) == (504, "deadline_exceeded", "server_error")


def test_log_probabilities_join_to_the_text() -> None:
    """Nothing of the stop text or the stop id is among them, as it is not in the text."""
    llm = scripted_llm(replies(lambda _: "Grüße 😀! STOP and more"))
    for fields in ({}, {"stop": "STOP"}, {"max_tokens": 9}):
        (choice,) = answered(llm, logprobs=True, top_logprobs=2, **fields)["choices"]
        content = choice["logprobs"]["content"]
        data = bytes(byte for entry in content for byte in entry["bytes"])
        assert data.decode("utf-8", "replace") == choice["message"]["content"]
        assert all(len(entry["top_logprobs"]) == 2 and math.isfinite(entry["logprob"]) for entry in content)
        assert all(entry["top_logprobs"][0]["logprob"] == entry["logprob"] for entry in content)
    (choice,) = answered(llm, logprobs=True)["choices"]
    assert choice["logprobs"]["content"][0]["top_logprobs"] == []


def test_completions_have_the_older_lists() -> None:
    llm = scripted_llm(noise())
    fields: Body = {"prompt": ["ab", [99, 100]], "max_tokens": 4, "logprobs": 3, "n": 2, "seed": 5, "temperature": 1}
    found = completed(llm, **fields)
    assert found["object"] == "text_completion"
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2, 3]
    assert found["usage"] == {"prompt_tokens": 4, "completion_tokens": 16, "total_tokens": 20}
    for choice in found["choices"]:
        lists = choice["logprobs"]
        assert {len(found) for found in lists.values()} == {4}
        assert lists["text_offset"] == [sum(map(len, lists["tokens"][:i])) for i in range(4)]
    first, second = (llm.generate(p, max_new_tokens=4, temperature=1, seed=6).text() for p in ("ab", [99, 100]))
    assert [found["choices"][i]["text"] for i in (1, 3)] == [first, second]


def test_an_echo_begins_with_its_prompt() -> None:
    llm = scripted_llm(noise())
    plain = completed(llm, prompt=["ab", [99, 100]], max_tokens=3, n=2)["choices"]
    echoed = completed(llm, prompt=["ab", [99, 100]], max_tokens=3, n=2, echo=True)["choices"]
    assert [c["text"] for c in echoed] == [p + c["text"] for p, c in zip(("ab", "ab", "cd", "cd"), plain, strict=True)]


def test_ids_of_tokens_when_they_are_wanted() -> None:
    llm = scripted_llm(replies({"Hello": "Hi"}))
    assert answered(llm, return_token_ids=True)["choices"][0]["token_ids"] == [72, 105, 260]
    assert completed(llm, prompt="a", max_tokens=2, return_token_ids=True)["choices"][0]["token_ids"]


def test_text_beside_a_call_stays() -> None:
    answer = Answer("Let me see.", (1,), "tool_calls", tool_calls=(ToolCall("weather", "{}", "call_1"),))
    assert message_of(answer)["content"] == "Let me see."
    assert usage([answer.stats]) == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ClosedError("closed"), 503, "shutting_down"),
        (CacheFullError("full"), 503, "cache_full"),
        (DeviceError("/home/user/model.bin broke"), 500, "internal_error"),
        (ValueError("/home/user/model.bin broke"), 500, "internal_error"),
        (ContextLengthError("too long", param="prompt"), 400, "context_length_exceeded"),
    ],
)
def test_errors_that_no_body_is_to_blame_for(error: Exception, status: int, code: str) -> None:
    answer = error_answer(error)
    assert (answer.status, answer.code) == (status, code)
    assert "/home" not in answer.message
    assert ("/home" in error_answer(error, private=True).message) == isinstance(error, DeviceError)
