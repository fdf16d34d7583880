"""What a reasoning model thinks is shown apart: stdout has the answer alone."""

from __future__ import annotations

import pytest

from edge.commands.console import show_answer
from edge.runtime.chunk import Chunk
from edge.runtime.session import ChatSession
from edge.runtime.settings import generation_settings
from edge.terminal.answering import Answering
from edge.terminal.chat import Chat
from tests.edge.chat.screen import Screen
from tests.edge.chat.test_chat import Lines, read_documents, same
from tests.edge.chat.test_status_line import started
from tests.runtime.test_thinking import thinker

Shown = pytest.CaptureFixture[str]
CHUNKS = (
    Chunk("", (1,), reasoning="One"),
    Chunk("", (2, 3), reasoning=" two."),
    Chunk("Four", (4,)),
    Chunk(".", (5,), finish_reason="stop"),
)


def seen(screen: Screen) -> list[str]:
    return "\n".join(map(str.rstrip, screen.text())).rstrip().split("\n")


@pytest.mark.parametrize(("shows", "error"), [(False, ""), (True, "One two.\n\n")])
def test_what_is_piped_is_the_answer(shows: bool, error: str, capsys: Shown) -> None:
    show_answer(CHUNKS, shows_thinking=shows)
    assert capsys.readouterr() == ("Four.\n", error)


@pytest.mark.parametrize(("shows", "error"), [(False, ""), (True, "Hm.\n\n")])
def test_a_chat_keeps_it_out_of_the_conversation(shows: bool, error: str, capsys: Shown) -> None:
    with thinker("<think>Hm.</think>Hello") as llm:
        session = ChatSession(llm)
        answering = Answering(session, generation_settings(), same, shows_thinking=shows)
        Chat(session, Lines("Hi"), answering, options={}, read_documents=read_documents).run()
    assert [message.text for message in session.messages] == ["Hi", "Hello"]
    assert capsys.readouterr() == ("Hello\n", error)


@pytest.mark.parametrize("shows", [False, True])
def test_a_terminal_shows_how_much_or_all_of_it(shows: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(60, 10)
    started(monkeypatch, screen)
    show_answer(CHUNKS, shows_thinking=shows)
    expected = ["One two.", "", "Four."] if shows else ["(thought for 3 tokens)", "Four."]
    assert seen(screen) == expected


def test_an_answer_that_ends_within_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(60, 10)
    started(monkeypatch, screen)
    show_answer([CHUNKS[0], Chunk("", (2,), finish_reason="length")])
    assert seen(screen) == ["(thought for 2 tokens)"]
