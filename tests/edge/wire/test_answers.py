"""Answers on the wire: texts, calls, ends, figures and log-probabilities, over scripted answers."""

from __future__ import annotations

import codecs
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
TEXT = "ab😀<|user|>Köln"
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
    fields["return_token_ids"] = True
    found = completed(llm, **fields)
    assert found["object"] == "text_completion"
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2, 3]
    assert found["usage"] == {"prompt_tokens": 4, "completion_tokens": 16, "total_tokens": 20}
    for choice in found["choices"]:
        lists = choice["logprobs"]
        assert {len(found) for found in lists.values()} == {4}
        data = [bytes([i]) for i in choice["token_ids"]]
        assert lists["tokens"] == [chr(i) if i < 128 else f"bytes:\\x{i:02x}" for i in choice["token_ids"]]
        assert lists["text_offset"] == [characters(b"".join(data[:i])) for i in range(4)]
        assert all(len(best) >= 3 for best in lists["top_logprobs"])
    first, second = (llm.generate(p, max_new_tokens=4, temperature=1, seed=6).text() for p in ("ab", [99, 100]))
    assert [found["choices"][i]["text"] for i in (1, 3)] == [first, second]


def characters(data: bytes) -> int:
    """How many characters are complete."""
    return len(codecs.getincrementaldecoder("utf-8")("replace").decode(data))


def test_an_echo_has_log_probabilities_of_its_prompt() -> None:
    """lm-eval counts them: one for each token sent, null first, and one for each made, stop ids included."""
    llm = scripted_llm(noise())
    for prompt, text in ((TEXT, TEXT), (llm.tokenizer.encode(TEXT), TEXT)):
        ids = llm.tokenizer.encode(TEXT)
        (choice,) = completed(llm, prompt=prompt, max_tokens=3, logprobs=2, echo=True, return_token_ids=True)["choices"]
        wanted = llm.generate(ids, max_new_tokens=3, logprobs=2, prompt_logprobs=2).answer()
        assert choice["text"] == text + wanted.text
        lists = choice["logprobs"]
        assert {len(found) for found in lists.values()} == {len(ids) + 3}
        entries = [*wanted.prompt_logprobs, *wanted.logprobs]
        assert lists["token_logprobs"] == [None if entry is None else entry.logprob for entry in entries]
        assert lists["top_logprobs"][0] is None
        for best, entry in zip(lists["top_logprobs"][1:], entries[1:], strict=True):
            assert entry is not None
            assert max(best.values()) == entry.top[0][1]
            assert entry.logprob in best.values()
            assert len(best) == len({*dict(entry.top), entry.token_id})
        assert "<|user|>" in lists["tokens"]
        for token, offset in zip(lists["tokens"][: len(ids)], lists["text_offset"], strict=False):
            assert token.startswith("bytes:") or text[offset:].startswith(token)
        assert lists["text_offset"][len(ids)] == len(text)
        assert choice["token_ids"] == list(wanted.token_ids), "of the answer"


def test_an_echo_of_nothing_else() -> None:
    llm = scripted_llm(noise())
    (choice,) = completed(llm, prompt="abc", max_tokens=0, echo=True)["choices"]
    assert (choice["text"], choice["logprobs"], choice["finish_reason"]) == ("abc", None, "length")
    found = completed(llm, prompt=["abc", [100, 101, 102]], max_tokens=0, echo=True, logprobs=0, n=2)
    assert [choice["text"] for choice in found["choices"]] == ["abc", "abc", "def", "def"]
    assert found["usage"] == {"prompt_tokens": 6, "completion_tokens": 0, "total_tokens": 6}
    for choice in found["choices"]:
        assert choice["logprobs"]["tokens"] == list(choice["text"])
        assert choice["logprobs"]["text_offset"] == [0, 1, 2]
        assert [len(best or ()) for best in choice["logprobs"]["top_logprobs"]] == [0, 1, 1]


def test_a_stop_id_is_one_of_the_tokens() -> None:
    """Otherwise, a program that drops the last entry, as made after the scored text, would drop one of the text's."""
    llm = scripted_llm(lambda held: 260)
    (choice,) = completed(llm, prompt="abc", max_tokens=1, echo=True, logprobs=1)["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("abc", "stop")
    assert choice["logprobs"]["tokens"] == ["a", "b", "c", "<|endoftext|>"]
    assert choice["logprobs"]["text_offset"] == [0, 1, 2, 3]


@settings(max_examples=60)
@given(
    prompts=st.lists(st.text(min_size=1, max_size=8) | st.lists(st.integers(0, 260), min_size=1, max_size=8),
                     min_size=1, max_size=3),
    tokens=st.integers(0, 5),
    n=st.integers(1, 2),
    logprobs=st.none() | st.integers(0, 3),
    stop=st.none() | st.text(min_size=1, max_size=2),
)  # fmt: skip
def test_a_stream_adds_up_to_the_whole(
    prompts: list[str | list[int]], tokens: int, n: int, logprobs: int | None, stop: str | None
) -> None:
    llm = scripted_llm(noise(2))
    fields: Body = {"prompt": prompts, "max_tokens": tokens, "echo": True, "logprobs": logprobs, "n": n, "stop": stop}
    whole = completed(llm, **fields)
    request = CompletionRequest.from_body(fields)
    events = request.events(HEAD, llm)
    told = list(events.begin())
    for index, stream in enumerate(request.start(llm)):
        for chunk in stream:
            told += events.push(index, chunk)
    told += events.end()
    for choice in whole["choices"]:
        parts = [
            part
            for event in told
            if isinstance(event.data, dict)
            for part in event.data["choices"]
            if part["index"] == choice["index"]
        ]
        assert "".join(part["text"] for part in parts) == choice["text"]
        assert parts[-1]["finish_reason"] == choice["finish_reason"]
        if logprobs is not None:
            lists = [part["logprobs"] for part in parts if part["logprobs"] is not None]
            for name, found in choice["logprobs"].items():
                assert [entry for part in lists for entry in part[name]] == found


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


@pytest.mark.parametrize("more", [{}, {"add_generation_prompt": False}])
def test_an_answer_that_continues_the_last_message(more: Body) -> None:
    """It has only what is new, whole and in a stream."""
    llm = scripted_llm(replies({"Hello": "Hello to you"}))
    fields: Body = {
        "messages": [*HELLO, {"role": "assistant", "content": "Hello "}],
        "continue_final_message": True,
        "logprobs": True,
        **more,
    }
    found = answered(llm, **fields)
    assert found["choices"][0]["message"] == {"role": "assistant", "content": "to you", "refusal": None}
    assert [entry["token"] for entry in found["choices"][0]["logprobs"]["content"]] == list("to you")
    assert found["usage"]["prompt_tokens"] == len("|Hello|Hello ")
    request = ChatRequest.from_body(fields)
    events = request.events(HEAD, llm)
    told = list(events.begin())
    for index, stream in enumerate(request.start(llm)):
        for chunk in stream:
            told += events.push(index, chunk)
    deltas = [c["delta"] for e in told if isinstance(e.data, dict) for c in e.data["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == "to you"
