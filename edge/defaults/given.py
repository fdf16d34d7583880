"""Which options a command line has, told apart from those that have their defaults.

In: a parser. Out: what argparse makes of the words, and the names of what was given. Knows nothing about files.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

GIVEN = "given"  # the attribute with the names

Parse = Callable[..., tuple[argparse.Namespace, list[str]]]


def parse_with_given(
    parser: argparse.ArgumentParser,
    parse: Parse,
    words: Sequence[str] | None,
    namespace: argparse.Namespace | None,
) -> tuple[argparse.Namespace, list[str]]:
    """Do what `parse`, the parser's own method, does; the result has one attribute more, GIVEN.

    An option with a default that argparse does not know of is there when it was given, and not otherwise.
    """
    if any(isinstance(action, argparse._SubParsersAction) for action in parser._actions):
        return parse(words, namespace)  # the parser below, whose options they are, will do it
    usual = {action: action.default for action in parser._actions if action.option_strings}
    before = set() if namespace is None else set(vars(namespace))
    for action in usual:
        action.default = argparse.SUPPRESS
    try:
        found, rest = parse(words, namespace)
    finally:
        for action, default in usual.items():
            action.default = default
    dests = {action.dest for action in usual}
    setattr(found, GIVEN, frozenset(name for name in vars(found) if name in dests and name not in before))
    for action, default in usual.items():
        if action.dest not in found and default is not argparse.SUPPRESS:
            value = parser._get_value(action, default) if isinstance(default, str) else default
            setattr(found, action.dest, value)
    return found, rest
