"""The `openai` package's responses against a live server: whole, streamed, tools, schemas, errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import pytest
from pydantic import BaseModel

from edge.runtime.llm import LLM
from tests.edge.server.clients.conversations import HELLO, LIMIT, PARAMETERS, RESULT, TOO_LONG, TOOL, WEATHER
from tests.edge.server.clients.serving import MODEL, wait_until_free
from tests.edge.server.live import Live

if TYPE_CHECKING:
    from openai import OpenAI

pytestmark = pytest.mark.slow
QUESTION: str = HELLO[0]["content"]
FLAT: dict[str, Any] = {"type": "function", **TOOL["function"]}
FORCED: dict[str, Any] = {"type": "function", "name": "get_weather"}


@pytest.fixture(scope="module")
def client(live: Live) -> Iterator[OpenAI]:
    from openai import OpenAI

    with OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0, timeout=60) as found:
        yield found


def asked(client: OpenAI, given: Any = QUESTION, **options: Any) -> Any:  # Any: for the tests' ease
    known = {"model": MODEL, "input": given, "max_output_tokens": LIMIT}
    return client.responses.create(**cast("Any", {**known, **options}))


def test_an_answer_is_that_of_one_process(client: OpenAI, single: LLM) -> None:
    messages = [{"role": "system", "content": "Be brief."}, *HELLO]
    expected = single.chat(messages, max_new_tokens=LIMIT).answer()
    assert expected.stats is not None
    whole = asked(client, instructions="Be brief.")
    assert whole.output_text == expected.text
    assert (whole.object, whole.status, whole.incomplete_details.reason) == (
        "response",
        "incomplete",
        "max_output_tokens",
    )
    assert (whole.usage.input_tokens, whole.usage.output_tokens) == (expected.stats.prompt_tokens, LIMIT)
    assert whole.id.startswith("resp_")
    as_items = asked(client, [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": QUESTION}])
    assert as_items.output_text == expected.text
    assert as_items.usage.input_tokens_details.cached_tokens > 0


def test_events_come_in_order(client: OpenAI, single: LLM) -> None:
    expected = single.chat(HELLO, max_new_tokens=LIMIT).text()
    events = list(asked(client, stream=True))
    kinds = [event.type.removeprefix("response.") for event in events]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == expected
    begin = ["created", "in_progress", "output_item.added", "content_part.added"]
    end = ["output_text.done", "content_part.done", "output_item.done", "incomplete"]
    assert kinds == [*begin, *["output_text.delta"] * len(deltas), *end]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].response.output_text == expected
    assert events[0].response.id == events[-1].response.id


def test_the_helper_puts_the_events_together(client: OpenAI, single: LLM) -> None:
    expected = single.chat(HELLO).text()
    with client.responses.stream(model=MODEL, input=QUESTION) as stream:
        texts = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert (texts[-1], final.output_text, final.status) == (expected, expected, "completed")


@pytest.mark.parametrize("streamed", [False, True])
def test_two_rounds_of_a_tool(client: OpenAI, single: LLM, *, streamed: bool) -> None:
    """What came back is sent again as it is, with the result after it."""
    expected = single.chat(WEATHER, tools=[TOOL], tool_choice=FORCED, max_new_tokens=64).answer()
    (call,) = expected.tool_calls
    given: list[Any] = [{"role": "user", "content": WEATHER[0]["content"]}]
    options: dict[str, Any] = {"tools": [{"type": "web_search"}, FLAT], "tool_choice": FORCED, "max_output_tokens": 64}
    first = asked(client, given, **options, stream=streamed)
    if streamed:
        events = list(first)
        pieces = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
        assert len(pieces) > 1
        assert "".join(pieces) == call.arguments
        first = events[-1].response
    (item,) = first.output
    assert (item.type, item.name, item.call_id) == ("function_call", "get_weather", call.id)
    assert (item.arguments, item.status, first.status) == (call.arguments, "completed", "completed")
    assert [tool.type for tool in first.tools] == ["function"]
    result = {"type": "function_call_output", "call_id": item.call_id, "output": RESULT}
    second = asked(client, [*given, *first.output, result], tools=[FLAT], tool_choice="none")
    asked_again = [*WEATHER, expected.message.to_dict(), {"role": "tool", "tool_call_id": call.id, "content": RESULT}]
    in_one_process = single.chat(asked_again, tools=[TOOL], tool_choice="none", max_new_tokens=LIMIT).answer()
    assert second.output_text == in_one_process.text
    assert in_one_process.stats is not None
    assert second.usage.input_tokens == in_one_process.stats.prompt_tokens
    assert second.usage.input_tokens_details.cached_tokens > 0


class City(BaseModel):
    name: str
    capital: bool


def test_an_answer_is_held_to_a_schema(client: OpenAI) -> None:
    found = client.responses.parse(model=MODEL, input="Describe Paris.", text_format=City, max_output_tokens=80)
    assert isinstance(found.output_parsed, City)
    form = {"format": {"type": "json_schema", "name": "city", "schema": PARAMETERS}}
    assert set(json.loads(asked(client, "Where is the Louvre?", text=form, max_output_tokens=80).output_text)) == {
        "city"
    }


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("options", "code", "param"),
    [
        ({"previous_response_id": "resp_1"}, "unsupported_parameter", "previous_response_id"),
        ({"conversation": "conv_1"}, "unsupported_parameter", "conversation"),
        ({"background": True}, "unsupported_parameter", "background"),
        ({"temperature": 3}, "invalid_value", "temperature"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "unsupported_content",
         "input[0].content[0]"),
        ({"input": TOO_LONG}, "context_length_exceeded", "input"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)  # fmt: skip
def test_what_is_wrong_with_a_request(
    client: OpenAI, options: dict[str, Any], code: str, param: str, *, streamed: bool
) -> None:
    from openai import BadRequestError

    with pytest.raises(BadRequestError) as found:
        asked(client, **options, stream=streamed)
    assert (found.value.code, found.value.param) == (code, param)


def test_leaving_in_mid_stream_frees_everything(client: OpenAI, live: Live) -> None:
    stream = asked(client, "Count from 1 to 1000.", max_output_tokens=4000, stream=True)
    for number, _ in enumerate(stream):
        if number == 8:
            assert live.get("/page/status.json").json["running"] == 1
            break
    stream.close()
    wait_until_free(live)
