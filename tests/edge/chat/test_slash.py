"""Commands and messages are told apart, and nothing that somebody writes gets lost between the two."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.terminal.chat import Chat
from edge.terminal.slash import (
    BLOCK,
    COMMANDS,
    OTHER_NAMES,
    Command,
    CommandError,
    Order,
    help_lines,
    is_open,
    message_of,
    understood,
)

NARROW = 45
NAMES = [command.name for command in COMMANDS]


def order(text: str) -> tuple[str, str]:
    said = understood(text)
    assert isinstance(said, Order), said
    return said.command.name, said.argument


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_can_be_carried_out(command: Command) -> None:
    assert command.name == "/exit" or callable(getattr(Chat, f"_do_{command.name[1:]}"))


def test_commands() -> None:
    assert order("/stats") == order("/stats \n") == ("/stats", "")
    assert order("/file my notes.txt ") == ("/file", "my notes.txt")
    assert order("/tools off") == ("/tools", "off")
    assert order("/system") == ("/system", "")
    assert order("/system Be brief.\nAnswer in Dutch.") == ("/system", "Be brief.\nAnswer in Dutch.")
    assert order(f"/system {BLOCK}Be brief.\n  So.{BLOCK}") == ("/system", "Be brief.\n  So.")
    for other, name in OTHER_NAMES.items():
        assert order(other) == (name, "")


@pytest.mark.parametrize(
    "text",
    [
        "/etc/passwd is what file?",
        "/etc/hosts",
        "/stats of my team",
        "/exit now",
        "/help me",
        "/RESET",
        "/^a+$/",
        "/",
        "//",
        "/save\nx",
        "/load a\nb",
        "/file a.txt\nWhat does it say?",
        "/stats\n/exit",
        "/usr is which folder?",
        "exit",
        "x /exit",
    ],
)
def test_messages(text: str) -> None:
    assert understood(text) == text


@pytest.mark.parametrize("name", [*NAMES, *OTHER_NAMES, "/resett"])
def test_a_space_makes_a_message_of_anything(name: str) -> None:
    assert understood(f" {name}") == name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("/resett", "/resett is not a command, did you mean /reset?; /help lists them; a space before it sends it"),
        ("/hlep", "did you mean /help?"),
        ("/dance", "/dance is not a command; /help lists them"),
        ("/etc", "is not a command"),
        ("/save", "/save needs more: /save PATH"),
        ("/file  ", "/file needs more: /file PATH"),
        ("/tools of the trade", "expected /tools [on|off|list]; a space before it sends it as a message"),
    ],
)
def test_what_is_mistyped_is_not_sent(text: str, said: str) -> None:
    with pytest.raises(CommandError, match=re.escape(said)):
        understood(text)


def test_what_is_sent_of_a_message() -> None:
    assert message_of("  hi \n") == "hi"
    assert message_of("\n\n    return x\n\nWhat is it?\n") == "    return x\n\nWhat is it?"
    assert message_of(f"{BLOCK}one{BLOCK}") == "one"
    assert message_of(f"{BLOCK}\n  two\nlines\n{BLOCK}\n") == "  two\nlines"
    assert message_of(BLOCK) == BLOCK
    assert message_of(2 * BLOCK) == message_of(" \n\t") == ""


def test_blocks() -> None:
    assert is_open(BLOCK)
    assert is_open(f"  {BLOCK}one\ntwo")
    assert is_open(f"/system {BLOCK}one")
    assert not is_open(f"{BLOCK}one{BLOCK}  ")
    assert not is_open(f"say {BLOCK}")
    assert not is_open(f"/save {BLOCK}")
    assert not is_open("")


@given(st.text(alphabet=st.sampled_from(' \n\tab/"é你'), max_size=30))
def test_a_message_is_what_was_typed_without_what_surrounds_it(text: str) -> None:
    """Inner lines and spaces stay, whatever they are."""
    sent = message_of(text)
    assert sent in text
    assert message_of(sent) == sent or sent.strip().startswith(BLOCK)
    if not text.strip().startswith(BLOCK):
        assert sent.strip() == text.strip()
    else:
        assert text.replace('"', "").split() == sent.replace('"', "").split()


@given(st.text(max_size=60))
def test_any_text_is_understood_or_refused_in_a_line(text: str) -> None:
    said: Order | str | CommandError
    try:
        said = understood(text)
    except CommandError as error:
        said = error
    if isinstance(said, CommandError):
        assert "\n" not in str(said)
    else:
        assert isinstance(said, Order) or said == message_of(text)


def test_help_lists_every_command_and_fits_a_narrow_terminal() -> None:
    lines = help_lines()
    assert max(map(len, lines)) <= NARROW
    for name in NAMES:
        assert sum(line.split()[:1] == [name] for line in lines) == 1
