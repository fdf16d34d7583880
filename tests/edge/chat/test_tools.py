"""Calls of a chat: shown with their results, answered, and never left without a result."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

import edge
from edge.runtime.errors import ToolError
from edge.runtime.llm import LLM
from edge.runtime.messages import ToolCall
from edge.runtime.session import ChatSession
from edge.runtime.settings import generation_settings
from edge.terminal import tool_rounds
from edge.terminal.answering import Answering
from edge.terminal.chat import Chat
from edge.terminal.tool_rounds import ToolRounds
from edge.tools.tool import Tool
from tests.edge.chat.test_chat import Lines, read_documents, same

Shown = pytest.CaptureFixture[str]
Run = Callable[[Mapping[str, Any]], Any]
PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}


def tool(name: str, run: Run, native: str | None = None) -> Tool:
    function = {"name": name, "description": f"What {name} does.\nAnd how.", "parameters": PARAMETERS}
    declared = {"type": "function", "function": function}
    return Tool(declared, run, None if native is None else {"type": native})


def answer(question: str) -> str:
    """Calls what a question begins with, and repeats what results say."""
    name, _, arguments = question.partition(" ")
    return f"{name}\n{arguments}" if arguments.startswith("{") else f"It is {question.strip()[-20:]}"


@pytest.fixture
def llm() -> Iterator[LLM]:
    with edge.scripted_llm(edge.replies(answer)) as model:
        yield model


def chat(llm: LLM, lines: Lines, *tools: Tool) -> tuple[ChatSession, int]:
    session = ChatSession(llm)
    answering = Answering(session, generation_settings(), same)
    rounds = ToolRounds(tools, llm.tool_format.native)
    return session, Chat(session, lines, answering, options={}, read_documents=read_documents, tools=rounds).run()


def add(arguments: Mapping[str, Any]) -> str:
    return str(arguments["a"] + arguments["b"])


async def add_later(arguments: Mapping[str, Any]) -> str:
    return add(arguments)


@pytest.mark.parametrize("run", [add, add_later])
def test_a_call_is_run_and_its_result_answered(llm: LLM, capsys: Shown, run: Run) -> None:
    session, code = chat(llm, Lines('add {"a": 20, "b": 22}'), tool("add", run))
    out, error = capsys.readouterr()
    assert error.splitlines() == ['-> add {"a": 20, "b": 22}', "<- 42"]
    assert out.endswith("42\n")
    assert out.startswith("It is ")
    assert code == 0
    assert [message.role for message in session.messages] == ["user", "assistant", "tool", "assistant"]
    assert session.messages[1].tool_calls[0].arguments == '{"a": 20, "b": 22}'
    assert session.messages[2].text == "42"


def raising(error: Exception) -> Run:
    def run(_: Mapping[str, Any]) -> str:
        raise error

    return run


@pytest.mark.parametrize(
    ("run", "told"),
    [
        (add, "error: KeyError: 'b'"),
        (raising(ToolError("the sandbox has ended")), "error: the sandbox has ended"),
        (raising(ValueError("two\nlines")), "error: ValueError: two lines"),
        (raising(RecursionError()), "error: RecursionError: "),
    ],
)
def test_errors_go_to_the_model(llm: LLM, capsys: Shown, run: Run, told: str) -> None:
    session, code = chat(llm, Lines('add {"a": 1}'), tool("add", run))
    assert session.messages[2].text == told
    assert not session.pending
    assert (code, len(session.messages)) == (0, 4)
    assert capsys.readouterr().err.splitlines()[1] == f"<- {told}".rstrip()


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (ToolCall("add", '{"a": 1e400}'), "error: the arguments are not valid JSON"),
        (ToolCall("add", "[1]"), "error: the arguments are not a JSON object; give one"),
        (ToolCall("add", '{"a": 1'), "error: the arguments are not valid JSON"),
        (ToolCall("sub", "{}"), "error: there is no tool 'sub'; there are add"),
    ],
)
def test_calls_that_cannot_be_run(call: ToolCall, told: str) -> None:
    """Which an answer may hold where nothing holds it to a schema."""
    assert ToolRounds([tool("add", add)], frozenset()).result(call).startswith(told)


def test_rounds_have_a_limit(capsys: Shown) -> None:
    with edge.scripted_llm(edge.replies({}, otherwise='add\n{"a": 1, "b": 1}')) as llm:
        session, _ = chat(llm, Lines("go"), tool("add", add))
    assert capsys.readouterr().err.count("-> add") == tool_rounds.MAX_ROUNDS + 1
    assert session.messages[-1].text == "[not run: 10 rounds of calls are the limit]"
    assert not session.pending


def test_ctrl_c_in_a_tool_leaves_no_call_without_a_result(llm: LLM, capsys: Shown) -> None:
    def interrupted(_: Mapping[str, Any]) -> str:
        raise KeyboardInterrupt

    session, code = chat(llm, Lines('wait {"a": 1}', "hello"), tool("wait", interrupted))
    assert [message.role for message in session.messages] == ["user", "assistant", "tool", "user", "assistant"]
    assert session.messages[2].text == "[stopped by the user]"
    assert "(stopped)" in capsys.readouterr().err
    assert code == 0
    with pytest.raises(KeyboardInterrupt):
        chat(llm, Lines('wait {"a": 1}', is_terminal=False), tool("wait", interrupted))


def test_a_result_that_does_not_fit_ends_the_round(capsys: Shown) -> None:
    with edge.scripted_llm(edge.replies(answer), max_context=900) as llm:
        lines = Lines('long {"a": 1}', "hello", is_terminal=False)
        session, code = chat(llm, lines, tool("long", lambda _: "x" * 2000))
    assert code == 1
    assert not session.pending
    assert session.messages[-1].text == "It is hello"
    assert "edge: " in capsys.readouterr().err


def test_switching(llm: LLM, capsys: Shown) -> None:
    call = 'add {"a": 20, "b": 22}'
    lines = Lines("/tools", "/tools off", call, "/tools list", "/tools on", call)
    session, _ = chat(llm, lines, tool("add", add))
    out, error = capsys.readouterr()
    assert out.count("add: What add does. And how.\n") == 2
    assert [m.role for m in session.messages] == ["user", "assistant", "user", "assistant", "tool", "assistant"]
    assert session.messages[1].text == 'add\n{"a": 20, "b": 22}'
    assert error.splitlines()[:3] == ["(tools are on)", "(tools are off)", "(tools are off)"]


def test_without_tools(llm: LLM, capsys: Shown) -> None:
    assert chat(llm, Lines("/tools", "/tools on", is_terminal=False))[1] == 1
    assert capsys.readouterr().err.count("there are no tools; name some") == 2


def test_a_tool_that_the_template_knows_is_told_by_its_type() -> None:
    tools = (tool("python", add, "python"), tool("add", add))
    known = ToolRounds(tools, frozenset({"python"})).declarations
    assert known[0] == {"type": "python"}
    assert known[1]["function"]["name"] == "add"
    assert json.loads(json.dumps(ToolRounds(tools, frozenset()).declarations))[0]["function"]["name"] == "python"
