"""The `openai` package against a live server: what it gets over HTTP is what the model says in one process."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import pytest
from pydantic import BaseModel

from edge.runtime.llm import LLM
from tests.edge.server.clients.conversations import HELLO, LIMIT, RESULT, TOOL, WEATHER
from tests.edge.server.clients.serving import MODEL, wait_until_free
from tests.edge.server.live import Live

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types.chat import ChatCompletionMessage

pytestmark = pytest.mark.slow
FORCED: Any = {"type": "function", "function": {"name": "get_weather"}}


@pytest.fixture(scope="module")
def client(live: Live) -> Iterator[OpenAI]:
    from openai import OpenAI

    with OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0, timeout=60) as found:
        yield found


def asked(client: OpenAI, messages: list[dict[str, Any]] = HELLO, **options: Any) -> Any:  # Any: for the tests' ease
    options = {"model": MODEL, "max_tokens": LIMIT, **options}
    return client.chat.completions.create(messages=cast("Any", messages), **options)


def test_models(client: OpenAI) -> None:
    found = next(iter(client.models.list()))
    assert (found.id, client.models.retrieve(MODEL).id) == (MODEL, MODEL)


@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "top_p": 0.9, "seed": 7}], ids=["greedy", "seed"])
def test_an_answer_is_that_of_one_process(client: OpenAI, single: LLM, options: dict[str, Any]) -> None:
    expected = single.chat(HELLO, max_new_tokens=LIMIT, **options).answer()
    whole = asked(client, **options)
    assert whole.choices[0].message.content == expected.text
    assert whole.choices[0].finish_reason == "length"
    assert expected.stats is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (expected.stats.prompt_tokens, LIMIT)
    chunks = list(asked(client, **options, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == expected.text
    assert {(chunk.id, chunk.created, chunk.model) for chunk in chunks} == {(chunks[0].id, chunks[0].created, MODEL)}
    assert chunks[0].choices[0].delta.role == "assistant"
    *_, last, usage = chunks
    assert last.choices[0].finish_reason == "length"
    assert (usage.choices, usage.usage.completion_tokens) == ([], LIMIT)
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_no_limit_is_to_the_end_of_the_answer(client: OpenAI, single: LLM) -> None:
    expected = single.chat(HELLO).answer()
    whole = client.chat.completions.create(model=MODEL, messages=cast("Any", HELLO))
    assert whole.choices[0].message.content == expected.text
    assert whole.choices[0].finish_reason == "stop"


def test_a_second_turn_finds_the_first_in_the_cache(client: OpenAI) -> None:
    first = asked(client)
    messages = [*HELLO, {"role": "assistant", "content": first.choices[0].message.content}]
    second = asked(client, [*messages, {"role": "user", "content": "And one more?"}])
    block = 32
    read = first.usage.total_tokens
    assert second.usage.prompt_tokens_details.cached_tokens >= read - block


@pytest.mark.parametrize("streamed", [False, True])
def test_two_rounds_of_a_tool(client: OpenAI, single: LLM, *, streamed: bool) -> None:
    expected = single.chat(WEATHER, tools=[TOOL], tool_choice=FORCED, max_new_tokens=64).answer()
    (call,) = expected.tool_calls
    options: dict[str, Any] = {"tools": [TOOL], "tool_choice": FORCED, "max_tokens": 64}
    if streamed:
        with client.chat.completions.stream(model=MODEL, messages=cast("Any", WEATHER), **options) as stream:
            choice = stream.get_final_completion().choices[0]
    else:
        choice = asked(client, WEATHER, **options).choices[0]
    message: ChatCompletionMessage = choice.message
    assert (message.content or None, choice.finish_reason) == (None, "tool_calls")
    (made,) = message.tool_calls or []
    assert made.type == "function"
    assert (made.id, made.function.name, made.function.arguments) == (call.id, "get_weather", call.arguments)
    assert set(json.loads(call.arguments)) == {"city"}
    told = message.model_dump(exclude_none=True)
    again = [*WEATHER, told, {"role": "tool", "tool_call_id": made.id, "content": RESULT}]
    second = asked(client, again, tools=[TOOL], tool_choice="none")
    asked_again = [*WEATHER, expected.message.to_dict(), {"role": "tool", "tool_call_id": call.id, "content": RESULT}]
    in_one_process = single.chat(asked_again, tools=[TOOL], tool_choice="none", max_new_tokens=LIMIT)
    assert second.choices[0].message.content == in_one_process.text()
    assert second.usage.prompt_tokens_details.cached_tokens > 0


class City(BaseModel):
    name: str
    country: str
    capital: bool


def test_an_answer_is_held_to_a_schema(client: OpenAI) -> None:
    question: Any = [{"role": "user", "content": "Describe Paris."}]
    found = client.chat.completions.parse(model=MODEL, messages=question, response_format=City, max_tokens=80)
    city = found.choices[0].message.parsed
    assert isinstance(city, City)
    whole = asked(client, question, response_format={"type": "json_object"}, max_tokens=80)
    content = whole.choices[0].message.content
    assert content.startswith("{")
    assert whole.choices[0].finish_reason == "length" or isinstance(json.loads(content), dict)


def test_log_probabilities(client: OpenAI) -> None:
    whole = asked(client, logprobs=True, top_logprobs=3)
    entries = whole.choices[0].logprobs.content
    assert len(entries) == LIMIT
    data = bytes(byte for entry in entries for byte in entry.bytes)
    assert data.decode("utf-8", "replace") == whole.choices[0].message.content
    assert all(len(entry.top_logprobs) == 3 and math.isfinite(entry.logprob) for entry in entries)
    chunks = asked(client, logprobs=True, top_logprobs=3, stream=True)
    streamed = [
        entry
        for chunk in chunks
        if chunk.choices and chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content
    ]
    assert streamed == entries


def test_several_answers(client: OpenAI, single: LLM) -> None:
    options: dict[str, Any] = {"temperature": 1.0, "seed": 3}
    expected = [stream.text() for stream in single.chat_samples(HELLO, 2, max_new_tokens=LIMIT, **options)]
    assert expected[0] != expected[1]
    whole = asked(client, n=2, **options)
    assert [choice.message.content for choice in whole.choices] == expected
    texts = ["", ""]
    for chunk in asked(client, n=2, stream=True, **options):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == expected


def test_a_stop_text_is_not_shown(client: OpenAI) -> None:
    whole = asked(client, max_tokens=40)
    text = whole.choices[0].message.content
    stop = text[len(text) // 2 :][:3]
    for found in (asked(client, max_tokens=40, stop=[stop]), asked(client, max_tokens=40, stop=stop)):
        assert found.choices[0].message.content == text[: text.index(stop)]
        assert found.choices[0].finish_reason == "stop"


def test_completions(client: OpenAI, single: LLM) -> None:
    expected = single.generate("Tea is", max_new_tokens=LIMIT).text()
    whole = client.completions.create(model=MODEL, prompt="Tea is", max_tokens=LIMIT)
    assert whole.choices[0].text == expected
    chunks = client.completions.create(model=MODEL, prompt="Tea is", max_tokens=LIMIT, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == expected


def test_leaving_in_mid_stream_frees_everything(client: OpenAI, live: Live) -> None:
    wait_until_free(live)
    stream = asked(client, [{"role": "user", "content": "Count from 1 to 1000."}], max_tokens=4000, stream=True)
    for number, _ in enumerate(stream):
        if number == 5:
            assert live.get("/page/status.json").json["running"] == 1
            break
    stream.close()
    wait_until_free(live)


def test_leaving_before_a_whole_answer_frees_everything(client: OpenAI, live: Live) -> None:
    wait_until_free(live)
    messages = [{"role": "user", "content": "Count from 1 to 1000."}]
    begun = time.monotonic()
    with pytest.raises(Exception, match="timed out"):
        asked(client, messages, max_tokens=4000, extra_body={"ignore_eos": True}, timeout=1.0)
    assert time.monotonic() - begun < 10  # its answer would take longer
    wait_until_free(live)
