"""A file of defaults, held to the options of the command line.

In: what a TOML file says, and every parser. Out: for one command, layers of values that are checked as the command line
checks them, the most particular table first. Raises SettingsError for the first thing that is wrong, with the file, the
table and the closest key.

    max-context = 8192       # for every command with --max-context

    [chat]
    temperature = 0.7        # for `edge chat` alone

    [prefix.build]
    engine = "onnx"
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from edge.defaults.commands import Words
from edge.models.config_file import MODELS
from edge.runtime.errors import SettingsError, shown
from edge.runtime.files import shown_path

IsPath = Callable[[object], bool]  # of the type of an argument
Parsers = Mapping[Words, argparse.ArgumentParser]
# Said anew each time: what replaces or removes something, or is about one call.
NEVER = frozenset({"help", "version", "force", "fresh", "yes", "dry-run", "log-level", "no-config"})
# What a bundle may set, which comes from elsewhere: how it computes and chooses tokens. Nothing that reads or writes a
# file, starts a program, opens a port, adds to a prompt, or depends on the machine.
OF_A_BUNDLE = frozenset(
    {
        "engine", "max-context", "kv-cache-gb", "kv-precision", "reproducible", "speculate", "context-policy",
        "max-new-tokens", "stop", "sampling", "temperature", "top-k", "top-p", "min-p", "typical-p",
        "repetition-penalty", "presence-penalty", "frequency-penalty",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Value:
    """A default from a file."""

    option: str  # --max-context
    value: Any  # as argparse would make it
    origin: str  # the file, and its table


@dataclass(frozen=True, slots=True)
class Layer:
    """The values of one table, by the names that argparse keeps them under."""

    values: dict[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DefaultsFile:
    """A file's content. allowed: the keys that it may have; None for all options."""

    path: Path
    content: Mapping[str, Any]  # TOML
    allowed: frozenset[str] | None = None

    def check(self, parsers: Parsers) -> None:
        """Check all keys, those for other commands, too. Raises SettingsError."""
        self._check(self.content, (), parsers)

    def layers(self, words: Words, parser: argparse.ArgumentParser, is_path: IsPath) -> list[Layer]:
        """Return what holds for a command; `is_path` knows types of options that are paths. Raises SettingsError."""
        options = options_of(parser)
        layers: list[Layer] = []
        for at, table in self._tables_for(words):
            layer = Layer()
            for key, given in table.items():
                action = options.get(key)
                if action is None or isinstance(given, dict):
                    continue
                value = self._value(parser, action, given, self._where(at, key), is_path)
                layer.values[action.dest] = Value(f"--{key}", value, self.origin(at))
            self._check_together(parser, layer, at)
            layers.insert(0, layer)
        return layers

    def rows(self) -> Iterator[tuple[str, str, object]]:
        """Table, key and value of everything in the file."""

        def below(table: Mapping[str, Any], at: Words) -> Iterator[tuple[str, str, object]]:
            for key, value in table.items():
                if isinstance(value, dict):
                    yield from below(value, (*at, key))
                else:
                    yield f"[{'.'.join(at)}]" if at else "", key, value

        yield from below(self.content, ())

    def origin(self, at: Words) -> str:
        """Say where a value is from."""
        return f"{shown_path(self.path)}{f' [{chr(46).join(at)}]' if at else ''}"

    def _tables_for(self, words: Words) -> Iterator[tuple[Words, Mapping[str, Any]]]:
        table: object = self.content
        for count in range(len(words) + 1):
            if count:
                table = table.get(words[count - 1]) if isinstance(table, dict) else None
            if not isinstance(table, dict):
                return
            yield words[:count], table

    def _check(self, table: Mapping[str, Any], at: Words, parsers: Parsers) -> None:
        below = {words: parser for words, parser in parsers.items() if words[: len(at)] == at}
        tables = {words[len(at)] for words in below if len(words) > len(at)}
        known = {name for parser in below.values() for name in options_of(parser)}
        for key, value in table.items():
            if isinstance(value, dict):
                if key not in tables:
                    raise self._unknown(at, f"the table [{'.'.join((*at, key))}]", key, tables, "command")
                self._check(value, (*at, key), parsers)
            elif not (key == MODELS and not at and self.allowed is None):
                self._check_key(key, at, known, parsers)

    def _check_key(self, key: str, at: Words, known: set[str], parsers: Parsers) -> None:
        if key in NEVER:
            raise SettingsError(f"{self._where(at, key)}: --{key} is for a command line alone; remove it")
        if self.allowed is not None and key in known - self.allowed:
            raise SettingsError(
                f"{self._where(at, key)}: a bundle may not set this; remove it, or give --no-config to leave the whole "
                "file out"
            )
        if key not in known:
            settable = known if self.allowed is None else known & self.allowed
            others = [f"`edge {' '.join(words)}`" for words, parser in parsers.items() if key in options_of(parser)]
            raise self._unknown(at, shown(key), key, settable, "option", others[:1])

    def _unknown(
        self, at: Words, what: str, key: str, known: set[str], kind: str, others: Sequence[str] = ()
    ) -> SettingsError:
        """others: commands that have an option of that name."""
        close = get_close_matches(key, sorted(known), 1)
        command = f"`edge {' '.join(at)} --help`" if at else "`edge --help`"
        hint = f"did you mean {close[0]}?" if close else f"{command} lists them"
        if others:
            hint = f"{others[0]} has one of that name"
        in_table = f" in [{'.'.join(at)}]" if at else ""
        return SettingsError(f"{shown_path(self.path)}: {what}{in_table} is not the name of {_a(kind)}; {hint}")

    def _value(
        self,
        parser: argparse.ArgumentParser,
        action: argparse.Action,
        given: object,
        where: str,
        is_path: IsPath,
    ) -> object:
        if action.nargs == 0:
            if not isinstance(given, bool):
                raise SettingsError(f"{where} is {shown(given)}, expected true or false")
            return action.const if given else action.default
        many = isinstance(action, argparse._AppendAction)
        if isinstance(given, list) and many:
            return [self._one(parser, action, item, where, is_path) for item in given]
        one = self._one(parser, action, given, where, is_path)
        return [one] if many else one

    def _one(
        self,
        parser: argparse.ArgumentParser,
        action: argparse.Action,
        given: object,
        where: str,
        is_path: IsPath,
    ) -> object:
        if isinstance(given, bool) or not isinstance(given, str | int | float):
            raise SettingsError(f"{where} is {shown(given)}, expected a text or a number")
        text = str(given)
        if text and is_path(action.type):  # one in a file is not meant from wherever a command is given
            text = str(self.path.parent / Path(text).expanduser())
        try:
            value = parser._get_value(action, text)  # as it takes a word
            parser._check_value(action, value)
        except argparse.ArgumentError as error:
            raise SettingsError(f"{where}: {error.message}") from None
        return value

    def _check_together(self, parser: argparse.ArgumentParser, layer: Layer, at: Words) -> None:
        for group in parser._mutually_exclusive_groups:
            usual = {action.dest: action.default for action in group._group_actions}
            both = [one.option[2:] for dest, one in layer.values.items() if dest in usual and one.value != usual[dest]]
            if len(both) > 1:
                raise SettingsError(f"{self.origin(at)} has {both[0]} and {both[1]}, which exclude each other")

    def _where(self, at: Words, key: str) -> str:
        return f"{self.origin(at)}: {key if key.isprintable() else shown(key)}"


def options_of(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Return key -> option, of those that a file may set; what a command cannot do without is not among them."""
    needed = {
        action.dest for group in parser._mutually_exclusive_groups if group.required for action in group._group_actions
    }
    return {
        name[2:]: action
        for action in parser._actions
        for name in action.option_strings
        if name.startswith("--") and not action.required and action.dest not in needed and name[2:] not in NEVER
    }


def _a(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"
