"""Saved conversations: what was written is read, in OpenAI's form, and no file of somebody else is touched."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.runtime.errors import OutputError, PromptError
from edge.runtime.messages import Message, ToolCall, messages_from
from edge.terminal.conversation_file import check_place, read_conversation, write_conversation

CALL = ToolCall("search", '{"query": "caf\\u00e9"}', "call_1")
MESSAGES = (
    Message("system", "Be brief."),
    Message("user", "你好 👩‍💻\n  <|user|>"),
    Message("assistant", "", tool_calls=(CALL,)),
    Message("tool", "3 results", tool_call_id="call_1"),
    Message("assistant", "Three."),
)


def test_a_round_trip_in_openai_s_form(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_conversation(path, MESSAGES)
    assert read_conversation(path) == MESSAGES
    values = json.loads(path.read_text(encoding="utf-8"))
    assert values[1] == {"role": "user", "content": "你好 👩‍💻\n  <|user|>"}
    assert values[2]["tool_calls"][0]["function"] == {"name": "search", "arguments": CALL.arguments}
    assert "你好" in path.read_text(encoding="utf-8")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    write_conversation(path, MESSAGES[:2])
    assert read_conversation(path) == MESSAGES[:2]


@given(st.lists(st.text(max_size=30), min_size=1, max_size=6))
def test_any_text_round_trips(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("saved") / "a.json"
    messages = messages_from([Message("assistant" if i % 2 else "user", text) for i, text in enumerate(texts)])
    write_conversation(path, messages)
    assert read_conversation(path) == messages


@pytest.mark.parametrize(
    "content",
    [
        b"my notes",
        b"{}",
        b"[]",
        b'"text"',
        b"[1]",
        b'[{"role": "pirate", "content": "x"}]',
        b'[{"role": "user"}]',
        b'[{"role": "user", "content": "\\ud800"}]',
        b'[{"role": "user", "content": "x"}',
        b"[" * 100_000,
        b"\xff\xfe[]",
        b"NaN",
    ],
    ids=lambda content: content[:30].decode(errors="replace"),
)
def test_odd_files_are_refused_in_one_line_and_stay(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(PromptError) as refused:
        read_conversation(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    for do in (lambda: check_place(path), lambda: write_conversation(path, MESSAGES)):
        with pytest.raises(OutputError, match="exists and is not a saved conversation; choose another name"):
            do()
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["a.json"]  # noqa: PTH208


def test_places(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("nothing")
    assert not check_place(tmp_path / "new")
    assert not check_place(tmp_path / "empty")
    for name, said in (
        ("", "is a folder"),
        ("none/new", "no such folder"),
        ("pipe", "is not a saved"),
        ("dangling", "is not a saved"),
    ):
        with pytest.raises(OutputError, match=said):
            check_place(tmp_path / name)
    write_conversation(tmp_path / "empty", MESSAGES)
    assert check_place(tmp_path / "empty")
    with pytest.raises(PromptError, match="cannot be read"):
        read_conversation(tmp_path / "none")
