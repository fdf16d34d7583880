"""The commands of a parser, each by its words.

In: the parser of the whole command line, or what it made of one. Out: ("chat",) or ("prefix", "build"), and the parsers
of such. Knows no command.
"""

from __future__ import annotations

import argparse

Words = tuple[str, ...]


def command_of(args: argparse.Namespace) -> Words:
    """Return the words of the command that was given."""
    return (args.verb, args.action) if "action" in args else (args.verb,)


def commands(parser: argparse.ArgumentParser) -> dict[Words, argparse.ArgumentParser]:
    """Return the parsers of all commands that do something."""
    subs = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    found: dict[Words, argparse.ArgumentParser] = {} if subs else {(): parser}
    for sub in subs:
        for name, below in sub.choices.items():
            found |= {(name, *words): leaf for words, leaf in commands(below).items()}
    return found
