"""`litellm` against a live server: whole, streamed, tools, and its kinds of errors."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from edge.runtime.llm import LLM
from tests.edge.server.clients.conversations import HELLO, LIMIT, TOO_LONG, TOOL, WEATHER
from tests.edge.server.clients.serving import MODEL
from tests.edge.server.live import Live

# litellm's own models do not fit what its serializer expects of them.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]


@pytest.fixture(scope="module", autouse=True)
def what_it_leaves_open() -> Iterator[None]:
    """An event loop, which it makes for itself where there is none and never closes, and the clients that it keeps."""
    import litellm

    with asyncio.Runner() as runner:
        runner.get_loop()  # which makes it this thread's
        yield
    kept = litellm.in_memory_llm_clients_cache.cache_dict
    while kept:
        kept.popitem()[1].close()


def asked(live: Live, messages: list[dict[str, Any]] = HELLO, **options: Any) -> Any:  # Any: for the tests' ease
    import litellm

    known = {"model": f"openai/{MODEL}", "api_base": f"{live.url}/v1", "api_key": "none", "num_retries": 0}
    return litellm.completion(messages=messages, **{**known, "max_tokens": LIMIT, **options})


def test_an_answer_is_that_of_one_process(live: Live, single: LLM) -> None:
    expected = single.chat(HELLO, max_new_tokens=LIMIT).text()
    whole = asked(live)
    assert whole.choices[0].message.content == expected
    assert whole.usage.completion_tokens == LIMIT
    chunks = asked(live, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected


def test_a_tool_is_called(live: Live, single: LLM) -> None:
    forced = {"type": "function", "function": {"name": "get_weather"}}
    (expected,) = single.chat(WEATHER, tools=[TOOL], tool_choice=forced, max_new_tokens=64).answer().tool_calls
    choice = asked(live, WEATHER, tools=[TOOL], tool_choice=forced, max_tokens=64).choices[0]
    (call,) = choice.message.tool_calls
    assert (call.function.name, call.function.arguments) == ("get_weather", expected.arguments)
    assert choice.finish_reason == "tool_calls"


@pytest.mark.parametrize("streamed", [False, True])
def test_kinds_of_errors(live: Live, *, streamed: bool) -> None:
    from litellm.exceptions import BadRequestError, ContextWindowExceededError, NotFoundError

    with pytest.raises(ContextWindowExceededError, match="8192 tokens"):
        asked(live, [{"role": "user", "content": TOO_LONG}], stream=streamed)
    with pytest.raises(BadRequestError, match="temperature is 3"):
        asked(live, temperature=3, stream=streamed)
    with pytest.raises(NotFoundError, match="other"):
        asked(live, model="openai/other", stream=streamed)


def test_responses(live: Live, single: LLM) -> None:
    import litellm

    expected = single.chat(HELLO, max_new_tokens=LIMIT).text()
    found: Any = litellm.responses(
        model=f"openai/{MODEL}", api_base=f"{live.url}/v1", api_key="none", input=HELLO, max_output_tokens=LIMIT
    )
    assert found.output[0].content[0].text == expected
