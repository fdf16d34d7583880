"""The loop in which a model uses tools: what it calls, what it is told, and how it ends.

A scripted model answers the last message that it sees, results included; the end of the file asks a real one.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edge
from edge.api import scripted_llm
from edge.runtime.chat import ChatTemplate
from edge.runtime.engines.scripted import STOP_IDS, ScriptedEngine, replies, tokenizer_json
from edge.runtime.errors import PromptError, SettingsError
from edge.runtime.llm import LLM
from edge.runtime.session import ChatSession
from edge.runtime.tokenizer import Tokenizer
from edge.tools.events import Call, Done, Result, Text
from edge.tools.loop import run_loop
from edge.tools.loop_async import run_loop_async
from edge.tools.rounds import MAX_RESULT
from edge.tools.tool import Tool
from tests.edge.tools.stock import (
    ANSWER,
    ANSWERS,
    CALL,
    DECLARED,
    QUESTION,
    TOOL,
    WAYS,
    collected,
    done,
    raising,
    results,
    stock,
    text,
)


@pytest.fixture
def llm() -> Iterator[LLM]:
    with scripted_llm(replies(ANSWERS, otherwise="What?")) as found:
        yield found


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("is_async", [False, True])
def test_a_call_is_run_and_its_result_answered(llm: LLM, way: str, is_async: bool) -> None:
    if is_async:
        events = asyncio.run(collected(run_loop_async(llm, QUESTION, WAYS[way])))
    else:
        events = list(run_loop(llm, [{"role": "user", "content": QUESTION}], WAYS[way]))
    kinds = [type(event) for event in events if not isinstance(event, Text)]
    assert kinds == [Call, Result, Done]
    assert text(events) == ANSWER
    (result,) = results(events)
    assert (result.call.name, json.loads(result.call.arguments)) == ("stock", {"item": "apples"})
    assert (result.text, result.error) == ("37", False)
    last = done(events)
    assert (last.ended_by, last.rounds, last.answer.text) == ("answer", 2, ANSWER)
    assert [message.role for message in last.messages] == ["user", "assistant", "tool", "assistant"]
    assert last.messages[2].tool_call_id == result.call.id == last.messages[1].tool_calls[0].id


def test_without_tools_it_is_one_answer(llm: LLM) -> None:
    assert done(list(run_loop(llm, "Thanks"))).answer.text == ANSWERS["Thanks"]


def test_a_session_continues(llm: LLM) -> None:
    """It keeps the tools, so that what was computed with them is found again."""
    session = ChatSession(llm, system="Be brief.")
    first = done(list(run_loop(session, QUESTION, [stock])))
    second = done(list(run_loop(session, "Thanks", [stock])))
    assert first.messages == second.messages[:5]
    assert second.messages == tuple(session.messages)
    assert second.answer.text == ANSWERS["Thanks"]
    assert second.answer.stats is not None
    assert second.answer.stats.cached_tokens >= len(llm.encode_chat(first.messages, tools=session.tools)) - 16
    chunks = list(session.send("Thanks"))
    assert chunks[-1].stats is not None
    assert chunks[-1].stats.cached_tokens >= second.answer.stats.prompt_tokens


def test_messages_may_end_with_results(llm: LLM) -> None:
    before = done(list(run_loop(llm, QUESTION, [stock]))).messages[:-1]
    assert done(list(run_loop(llm, list(before), [stock]))).answer.text == ANSWER


def test_every_round_begins_where_the_last_one_ended() -> None:
    counts = {f"Result of count:\n{i}": f'count\n{{"after": {i}}}' for i in range(1, 6)}
    script = replies({"Count to six": 'count\n{"after": 0}', **counts, "Result of count:\n6": "Six!"})

    def count(after: int) -> int:
        """Return the next number."""
        return after + 1

    with scripted_llm(script) as llm:
        last = done(list(run_loop(llm, "Count to six", [count])))
    assert (last.answer.text, last.rounds) == ("Six!", 7)
    for earlier, later in pairwise([answer.stats for answer in last.answers]):
        assert earlier is not None
        assert later is not None
        assert later.cached_tokens >= earlier.prompt_tokens + earlier.new_tokens - 16


def test_the_last_round_may_not_call() -> None:
    with scripted_llm(replies({}, otherwise=CALL)) as llm:
        events = list(run_loop(llm, QUESTION, [stock], max_rounds=3))
    last = done(events)
    assert (last.ended_by, last.rounds) == ("max_rounds", 3)
    assert len(results(events)) == 2
    assert not last.messages[-1].tool_calls
    assert last.answer.text == CALL  # it wanted to; what it wrote is shown and nothing is run


def test_a_call_that_was_cut_is_not_run(llm: LLM) -> None:
    events = list(run_loop(llm, QUESTION, [stock], max_new_tokens=12))
    assert not results(events)
    assert (done(events).ended_by, done(events).answer.finish_reason) == ("cut", "length")


def test_an_error_does_not_end_the_loop(llm: LLM) -> None:
    events = list(run_loop(llm, QUESTION, {"stock": Tool(DECLARED, raising(ValueError("closed")))}))
    assert [(result.text, result.error) for result in results(events)] == [("ValueError: closed", True)]
    assert done(events).answer.text == "What?"  # what the script answers to a result that it does not know


def given_back(llm: LLM, result: str) -> Result:
    (found,) = results(list(run_loop(llm, QUESTION, [Tool(DECLARED, lambda arguments: result)])))
    return found


@cache
def any_llm() -> LLM:
    return scripted_llm(replies(ANSWERS, otherwise="What?"))


@settings(max_examples=50)
@given(st.text(st.characters(), max_size=40))
def test_every_text_can_be_a_result(result: str) -> None:
    """Half characters too, which no prompt can hold."""
    assert given_back(any_llm(), result).text == result.encode("utf-8", "replace").decode()


def test_long_results_are_cut() -> None:
    with scripted_llm(replies(ANSWERS, otherwise="What?"), max_context=100_000, num_blocks=8192) as llm:
        assert given_back(llm, "a" * MAX_RESULT).text == "a" * MAX_RESULT
        assert given_back(llm, "a" * (MAX_RESULT + 5)).text == "a" * MAX_RESULT + "\n[cut: 5 more characters]"
    with scripted_llm(replies(ANSWERS, otherwise="What?"), max_context=4000) as llm:
        found = given_back(llm, "é" * 1000)  # two tokens each
        assert found.text == "é" * 500 + "\n[cut: 500 more characters]"


def test_an_interrupt_in_a_tool_passes(llm: LLM) -> None:
    """The call waits in the session, and can be answered later."""
    session = ChatSession(llm)
    with pytest.raises(KeyboardInterrupt):
        list(run_loop(session, QUESTION, [Tool(DECLARED, raising(KeyboardInterrupt()))]))
    (call,) = session.pending
    assert "".join(chunk.text for chunk in session.send_results([(call, "37")])) == ANSWER


def test_without_llguidance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing holds arguments to their schema; wrong ones are told, and the model may try again."""
    monkeypatch.setitem(sys.modules, "llguidance", None)
    told = "Error: the arguments of stock are {'item': 3}: Expected `str`, got `int` - at `$.item`; expected item"
    script = replies({**ANSWERS, "And?": 'stock\n{"item": 3}', f"Result of stock:\n{told}": CALL})
    with scripted_llm(script) as llm:
        events = list(run_loop(llm, "And?", [stock]))
        assert [(result.text, result.error) for result in results(events)] == [(told, True), ("37", False)]
        assert (text(events), done(events).rounds) == (ANSWER, 3)
        with pytest.raises(SettingsError, match="llguidance is not installed"):
            list(run_loop(llm, QUESTION, [stock], tool_choice="required"))


NATIVE_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.metadata }}\n{% for tool in m.tools or [] %}"
    "{{ 'python' if tool.type == 'python' else tool.function.name }}{% endfor %}{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_a_native_tool_is_declared_as_the_template_knows_it() -> None:
    seen: list[Mapping[str, Any]] = []

    def run(arguments: Mapping[str, Any]) -> str:
        seen.append(arguments)
        return "42"

    declaration = {"type": "function", "function": {"name": "python", "description": "Run code."}}
    tool = Tool(declaration, run, native={"type": "python"})
    tokenizer = Tokenizer.from_text(tokenizer_json())
    answers = {"\nWhat is 6 * 7?": "python\nprint(6 * 7)"}
    llm = LLM.from_engine(
        ScriptedEngine(replies(answers, otherwise="It is 42.")),
        tokenizer,
        template=ChatTemplate(NATIVE_TEMPLATE, tokenizer.markup),
        stop_ids=STOP_IDS,
    )
    session = ChatSession(llm)
    events = run_loop(session, "What is 6 * 7?", [tool], max_rounds=2)
    assert isinstance(next(events), Call)
    assert isinstance(next(events), Result)
    events.close()
    assert session.tools == (tool.native,)
    assert seen == [{"code": "print(6 * 7)"}]
    with scripted_llm(replies({})) as other:
        session = ChatSession(other)
        run_loop(session, "What is 6 * 7?", [tool])
        assert session.tools == (declaration,)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tools": "stock"}, "tools is 'stock', expected a list of functions"),
        ({"tools": 7}, "tools is 7, expected"),
        ({"tools": [7]}, "a tool is 7, expected a function or a Tool"),
        ({"tools": [stock, stock]}, "second tool named 'stock'"),
        ({"tools": {"": stock}}, "the name of a tool is ''"),
        ({"tools": {7: stock}}, "the name of a tool is 7"),
        ({"tools": {"a\nb": TOOL}}, "a name on one line"),
        ({"max_rounds": 1}, "max_rounds is 1, expected a whole number from 2 to 1000"),
        ({"max_rounds": "many"}, "max_rounds is 'many'"),
        ({"tool_choice": "stocks"}, "tool_choice names 'stocks'"),
        ({"tool_choice": 7}, "tool_choice is 7"),
        ({"messages": []}, "messages is empty"),
        ({"messages": 7}, "messages is 7"),
        ({"messages": [{"role": "user"}]}, "content is missing"),
        ({"model": "glm"}, "the model is 'glm', expected an LLM or a ChatSession"),
    ],
)
@pytest.mark.parametrize("loop", [run_loop, run_loop_async])
def test_what_is_refused_is_refused_at_once(llm: LLM, loop: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises((SettingsError, PromptError), match=said):
        loop(**{"model": llm, "messages": QUESTION, "tools": [stock], **options})


def test_the_public_face() -> None:
    for name in edge.tools.__all__:
        assert getattr(edge.tools, name) is not None
    assert dir(edge.tools) == sorted(edge.tools.__all__)
    with pytest.raises(AttributeError, match="no attribute 'run_lop'"):
        edge.tools.run_lop  # type: ignore[attr-defined]  # noqa: B018


def phone(name: str) -> str:
    """Look up the phone number of a person."""
    return f"The phone number of {name} is 555-0142."


def multiply(a: int, b: int) -> str:
    """Multiply two numbers."""
    return f"{a} * {b} = {a * b}"


async def add(a: int, b: int) -> str:
    """Add two numbers."""
    return f"{a} + {b} = {a + b}"


@pytest.mark.parametrize(
    ("question", "name", "arguments", "answer"),
    [
        ("What is the phone number of Alice?", "phone", {"name": "Alice"}, "555-0142"),
        ("What is 21 * 13?", "multiply", {"a": 21, "b": 13}, "273"),
        ("What is 31 + 48?", "add", {"a": 31, "b": 48}, "79"),
    ],
)
def test_a_real_model_uses_three_functions(
    demo_llm: LLM, question: str, name: str, arguments: dict[str, Any], answer: str
) -> None:
    """Held by llguidance to a call of the named function at first, and free afterwards."""
    pytest.importorskip("llguidance")
    messages = [{"role": "system", "content": "Answer in one sentence."}, {"role": "user", "content": question}]
    options: Any = {"tool_choice": name, "max_new_tokens": 40}
    events = list(run_loop(demo_llm, messages, [phone, multiply, add], **options))
    (result,) = results(events)
    assert (result.call.name, json.loads(result.call.arguments), result.error) == (name, arguments, False)
    assert answer in result.text
    last = done(events)
    assert answer in last.answer.text
    assert (last.ended_by, last.rounds) == ("answer", 2)
    earlier, later = (found.stats for found in last.answers)
    assert earlier is not None
    assert later is not None
    block = demo_llm.engine.pool.block_size
    assert later.cached_tokens >= earlier.prompt_tokens + earlier.new_tokens - block
