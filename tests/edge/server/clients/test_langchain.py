"""`langchain-openai` against a live server: whole, streamed, tools, schemas, and a full context."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from edge.runtime.llm import LLM
from tests.edge.server.clients.conversations import HELLO, LIMIT, RESULT, TOO_LONG, TOOL, WEATHER
from tests.edge.server.clients.serving import MODEL
from tests.edge.server.live import Live

# langchain's own models do not fit what its serializer expects of them.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]
QUESTION = HELLO[0]["content"]


def chat(live: Live, **options: Any) -> Any:  # Any: `ChatOpenAI`, which is imported late
    from langchain_openai import ChatOpenAI

    known: dict[str, Any] = {"base_url": f"{live.url}/v1", "api_key": "none", "model": MODEL, "max_retries": 0}
    return ChatOpenAI(**{**known, "max_tokens": LIMIT, **options})


def test_an_answer_is_that_of_one_process(live: Live, single: LLM) -> None:
    expected = single.chat(HELLO, max_new_tokens=LIMIT).text()
    found = chat(live).invoke(QUESTION)
    assert (found.content, found.usage_metadata["output_tokens"]) == (expected, LIMIT)
    assert "".join(chunk.content for chunk in chat(live).stream(QUESTION)) == expected
    assert [answer.content for answer in chat(live).batch([QUESTION, QUESTION])] == [expected, expected]
    by_responses = chat(live, use_responses_api=True)
    assert by_responses.invoke(QUESTION).text == expected
    assert "".join(chunk.text for chunk in by_responses.stream(QUESTION)) == expected


def test_two_rounds_of_a_tool(live: Live, single: LLM) -> None:
    from langchain_core.messages import HumanMessage, ToolMessage

    forced = {"type": "function", "function": {"name": "get_weather"}}
    expected = single.chat(WEATHER, tools=[TOOL], tool_choice=forced, max_new_tokens=64).answer()
    asked = HumanMessage(WEATHER[0]["content"])
    called = chat(live, max_tokens=64).bind_tools([TOOL], tool_choice="get_weather").invoke([asked])
    (call,) = called.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", expected.tool_calls[0].parsed())
    result = ToolMessage(RESULT, tool_call_id=call["id"])
    second = chat(live).bind_tools([TOOL], tool_choice="none").invoke([asked, called, result])
    again = [*WEATHER, expected.message.to_dict()]
    again.append({"role": "tool", "tool_call_id": expected.tool_calls[0].id, "content": RESULT})
    assert second.content == single.chat(again, tools=[TOOL], tool_choice="none", max_new_tokens=LIMIT).text()


class City(BaseModel):
    """A city."""

    name: str
    capital: bool


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_an_answer_is_held_to_a_schema(live: Live, method: str) -> None:
    found = chat(live, max_tokens=80).with_structured_output(City, method=method).invoke("Describe Paris.")
    assert isinstance(found, City)


def test_a_full_context_is_recognised(live: Live) -> None:
    from langchain_core.exceptions import ContextOverflowError

    with pytest.raises(ContextOverflowError):
        chat(live).invoke(TOO_LONG)
    with pytest.raises(ContextOverflowError):
        list(chat(live).stream(TOO_LONG))
