"""`edge run --messages`: a saved conversation and the question that continues it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from edge import api, cli
from edge.runtime.engines.scripted import noise
from edge.runtime.llm import LLM

Body = dict[str, Any]
BUNDLE = str(Path(__file__).parent)  # any folder: what is loaded is the model below
TALK: list[Body] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi"},
]
QUESTION: Body = {"role": "user", "content": "And then?"}


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> LLM:
    """The model that every command loads: its answers follow from the whole prompt."""
    found = api.scripted_llm(noise())
    monkeypatch.setattr(api, "load", lambda *_, **__: found)
    monkeypatch.setattr(found, "close", lambda: None)
    return found


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[int]:
    assert cli.main(["run", BUNDLE, "--json", "--max-new-tokens", "12", *arguments]) == 0
    ids: list[int] = json.loads(capsys.readouterr().out)["token_ids"]
    return ids


def expected(llm: LLM, messages: list[Body]) -> list[int]:
    return list(llm.chat(messages, max_new_tokens=12).answer().token_ids)


def saved(tmp_path: Path, value: object) -> str:
    path = tmp_path / "talk.json"
    path.write_text(json.dumps(value))
    return str(path)


def test_a_conversation_is_answered_or_continued(llm: LLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, question = [*TALK, QUESTION], "And then?"
    wanted = expected(llm, whole)
    assert answer(capsys, "--messages", saved(tmp_path, whole)) == wanted
    assert answer(capsys, question, "--messages", saved(tmp_path, TALK)) == wanted
    assert answer(capsys, question, "--messages", saved(tmp_path, {"messages": TALK})) == wanted
    without = saved(tmp_path, whole[1:])
    assert answer(capsys, "--messages", without) == expected(llm, whole[1:]) != wanted
    assert answer(capsys, "--messages", without, "--system", "Be brief.") == wanted


def test_documents_go_with_the_question(llm: LLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from edge.documents.document import prompt_with
    from edge.documents.reader import read_document

    (tmp_path / "note.txt").write_text("The exit is on the left.")
    document = read_document(tmp_path / "note.txt")
    last = {"role": "user", "content": prompt_with([document], "Where?")}
    arguments = ("Where?", "--messages", saved(tmp_path, TALK), "--file", str(tmp_path / "note.txt"))
    assert answer(capsys, *arguments) == expected(llm, [*TALK, last])


@pytest.mark.parametrize(
    ("value", "arguments", "code", "said"),
    [
        (TALK, ["Go on", "--system", "x"], 2, "has a system message of its own; leave --system out"),
        ([], [], 1, "messages is empty"),
        ("Hello", [], 1, "expected a list"),
        ({}, [], 1, 'expected "messages" and nothing else'),
        ({"messages": TALK, "model": "x"}, ["Go on"], 1, "has ['model'], expected \"messages\""),
        ([{"role": "boss", "content": "x"}], [], 1, "messages[0].role is 'boss'"),
        ([QUESTION], ["--raw"], 2, "--messages needs the chat template"),
        ([QUESTION], [""], 2, "PROMPT is empty; give the user message"),
    ],
)
def test_what_cannot_be_continued_is_told_before_a_model_is_loaded(
    value: object, arguments: list[str], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", BUNDLE, "--messages", saved(tmp_path, value), *arguments]) == code
    assert said in capsys.readouterr().err


class Stdin(io.TextIOWrapper):
    """Something that is piped in, or a terminal, which would be waited for."""

    def __init__(self, text: str | None) -> None:
        super().__init__(io.BytesIO((text or "").encode()))
        self._is_terminal = text is None

    def isatty(self) -> bool:
        return self._is_terminal


def test_a_prompt_that_is_left_out_is_read_from_a_pipe(
    llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def piped(text: str, *arguments: str) -> list[int]:
        monkeypatch.setattr("sys.stdin", Stdin(text))
        return answer(capsys, *arguments)

    wanted = expected(llm, [QUESTION])
    assert piped("And then?") == piped("\ufeffAnd then?") == piped("And then?", "-") == wanted
    assert piped("And then?", "--system", "Be brief.") == expected(llm, [TALK[0], QUESTION]) != wanted
    assert piped("And then?", "--raw") == list(llm.generate("And then?", max_new_tokens=12).answer().token_ids)
    assert piped("And then?", "--messages", saved(tmp_path, TALK)) == expected(llm, [*TALK, QUESTION])
    assert piped("not read", "--messages", saved(tmp_path, [*TALK, QUESTION])) == expected(llm, [*TALK, QUESTION])
    assert piped("not read", "And then?") == wanted


@pytest.mark.parametrize(
    ("piped", "code", "said"),
    [
        (None, 2, "edge: PROMPT is missing; give the user message, or pipe it in\n"),
        ("", 1, "edge: PROMPT is empty: nothing came from standard input; give the user message\n"),
        (" \n", 1, "edge: PROMPT is empty: nothing came from standard input; give the user message\n"),
    ],
)
def test_there_is_something_to_answer(
    piped: str | None,
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And a terminal is not waited for, where nobody would know that it is."""
    talk = saved(tmp_path, TALK)
    (tmp_path / "system.json").write_text(json.dumps(TALK[:1]))
    for arguments in ([], ["--messages", talk], ["--messages", str(tmp_path / "system.json")], ["--file", talk]):
        monkeypatch.setattr("sys.stdin", Stdin(piped))
        assert cli.main(["run", BUNDLE, *arguments]) == code
        assert capsys.readouterr().err == said
    monkeypatch.setattr("sys.stdin", Stdin(piped))
    assert cli.main(["prefix", "build", BUNDLE, str(tmp_path / "out.prefix")]) == code
    assert capsys.readouterr().err == said.replace("PROMPT", "--system").replace("user message", "system message")
    (tmp_path / "bad.json").write_text("{")
    assert cli.main(["run", BUNDLE, "--messages", str(tmp_path / "bad.json")]) == 1
    assert "is not valid JSON" in capsys.readouterr().err
