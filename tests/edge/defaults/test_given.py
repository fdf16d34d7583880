"""What was given is told apart from what has its default, and nothing else about parsing changes."""

from __future__ import annotations

import argparse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge import cli
from edge.defaults.commands import command_of, commands
from edge.defaults.given import parse_with_given
from tests.edge.verbs import PARSERS

WORDS = ["--a", "1", "--flag", "--list", "x", "--list=y", "--b=2", "--b", "3", "pos", "--kind", "q"]


class Watched(argparse.ArgumentParser):
    """A parser with both ways."""

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        return parse_with_given(self, super().parse_known_args, args, namespace)

    def error(self, message: str) -> None:  # type: ignore[override]
        raise ValueError(message)


class Plain(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise ValueError(message)


def filled(kind: type[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = kind()
    parser.add_argument("pos", nargs="?", default="usual")
    parser.add_argument("--a", type=int, default=7)
    parser.add_argument("--text", type=float, default="0.5")  # argparse converts a default that is a text
    pair = parser.add_mutually_exclusive_group()
    pair.add_argument("--b", type=int)
    pair.add_argument("--kind", choices=["p", "q"], default="p")
    parser.add_argument("--flag", action="store_true")
    parser.add_argument("--list", action="append", default=["first"])
    parser.add_argument("--hidden", default=argparse.SUPPRESS)
    parser.set_defaults(run=1)
    return parser


def outcome(parser: argparse.ArgumentParser, words: list[str]) -> object:
    try:
        return vars(parser.parse_args(words))
    except ValueError as error:
        return str(error)


@given(st.lists(st.sampled_from(WORDS), max_size=6))
def test_parsing_is_argparses(words: list[str]) -> None:
    """All but one: a list that was given replaces its default, where argparse adds to it."""
    watched, plain = outcome(filled(Watched), words), outcome(filled(Plain), words)
    if isinstance(watched, dict) and isinstance(plain, dict):
        names = watched.pop("given")
        if "list" in names:
            plain["list"] = plain["list"][1:]
        assert names == {word[2:].partition("=")[0] for word in words if word.startswith("--")}
    assert watched == plain


def test_a_parser_is_the_same_after_it_was_used() -> None:
    parser = filled(Watched)
    before = [(action.dest, action.default) for action in parser._actions]
    parser.parse_args(["--a", "1"])
    with pytest.raises(ValueError, match="a"):
        parser.parse_args(["--a", "x"])
    assert [(action.dest, action.default) for action in parser._actions] == before


def test_every_command_tells_what_was_given() -> None:
    given = cli.build_parser().parse_args(["run", "glm4", "hi", "--threads", "2", "--engine", "onnx"])
    assert given.given == {"threads", "engine"}
    given = cli.build_parser().parse_args(["--log-level", "info", "prefix", "show", "x"])
    assert command_of(given) == ("prefix", "show")
    assert (given.given, given.log_level, given.json) == (frozenset(), "info", False)


def test_all_commands_are_found() -> None:
    assert {" ".join(words) for words in commands(cli.build_parser())} == PARSERS.keys()
