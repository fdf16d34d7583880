"""Completion of verbs, options, names and paths in a shell, by argcomplete: `pip install "edgeglm[completion]"`.

In: the parser, in a process that a shell started to ask. Out: the words that could come next, on the descriptor of
argcomplete's protocol. What is not completed, such as a number, offers nothing. Imported in such a process alone.

    eval "$(register-python-argcomplete edge)"      # in ~/.bashrc or ~/.zshrc
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from edge.export.compress.recipes import recipes
from edge.runtime.engines.registry import ENGINES
from edge.runtime.settings import KV_PRECISIONS

FOLDERS, FILES = ("BUNDLE", "DIR"), ("CHECKPOINT", "FILE", "OUT", "PATH", "SOURCE", "A", "B")  # metavars
Completer = Callable[..., Iterable[str]]  # of argcomplete: called with keywords, `prefix` among them


def complete(parser: argparse.ArgumentParser, actions: Iterator[argparse.Action]) -> None:
    """Answer the shell and end the process. `actions` are those of the parser and of all below it."""
    import argcomplete

    for action in actions:
        action.completer = _completer(action)  # type: ignore[attr-defined]  # where argcomplete looks for it
    argcomplete.autocomplete(parser, always_complete_options=False)


def _completer(action: argparse.Action) -> Completer:
    from argcomplete.completers import DirectoriesCompleter, FilesCompleter

    metavar = str(action.metavar)
    if action.choices is not None:
        return _one_of(map(str, action.choices))
    if action.dest in NAMES:
        return _one_of(NAMES[action.dest]())
    if action.dest in LISTS:
        return _list_of(LISTS[action.dest]())
    if re.fullmatch(r"\{.+\}", metavar) or "|" in metavar:
        return _one_of(re.split("[,|]", metavar.strip("{}")))
    if metavar in FOLDERS:
        return DirectoriesCompleter()
    return FilesCompleter() if metavar in FILES else _nothing


def _precisions() -> list[str]:
    return list(dict.fromkeys(str(recipe.linear) for recipe in recipes().values()))


NAMES: dict[str, Callable[[], Iterable[str]]] = {"recipe": recipes, "embedding": _precisions, "head": _precisions}
LISTS: dict[str, Callable[[], Iterable[str]]] = {
    "recipes": recipes,
    "engines": lambda: ENGINES,
    "kv_precision": lambda: KV_PRECISIONS,
}


def _one_of(names: Iterable[str]) -> Completer:
    known = tuple(names)
    return lambda **_: known


def _list_of(names: Iterable[str]) -> Completer:
    """Names with commas between them, each once."""

    def completer(prefix: str, **_: Any) -> list[str]:  # Any: argcomplete's other keywords
        before, comma, last = prefix.rpartition(",")
        return [f"{before}{comma}{name}" for name in names if name.startswith(last) and name not in before.split(",")]

    return completer


def _nothing(**_: Any) -> tuple[str, ...]:
    return ()
