"""`edge run --messages`: a saved conversation and the question that continues it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edge import api, cli
from edge.runtime.engines.scripted import noise
from edge.runtime.llm import LLM

Body = dict[str, Any]
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
    assert cli.main(["run", "bundle", "--json", "--max-new-tokens", "12", *arguments]) == 0
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
    ("value", "arguments", "said"),
    [
        (TALK, [], "ends with an answer; give a PROMPT"),
        (TALK, ["Go on", "--system", "x"], "has a system message of its own; leave --system out"),
        ([], [], "messages is empty"),
        ("Hello", [], "expected a list"),
        ({}, [], 'expected "messages" and nothing else'),
        ({"messages": TALK, "model": "x"}, ["Go on"], "has ['model'], expected \"messages\""),
        ([{"role": "boss", "content": "x"}], [], "messages[0].role is 'boss'"),
        ([QUESTION], ["--raw"], "--messages needs the chat template"),
        ([QUESTION], [""], "the prompt is empty"),
        ([QUESTION], ["--file", "x.txt"], "there is no PROMPT"),
    ],
)
def test_what_cannot_be_continued_is_told_before_a_model_is_loaded(
    value: object, arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", "no-bundle", "--messages", saved(tmp_path, value), *arguments]) == 1
    assert said in capsys.readouterr().err


def test_there_is_something_to_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "no-bundle"]) == 1
    assert "there is no PROMPT" in capsys.readouterr().err
    (tmp_path / "bad.json").write_text("{")
    assert cli.main(["run", "no-bundle", "--messages", str(tmp_path / "bad.json")]) == 1
    assert "is not valid JSON" in capsys.readouterr().err
