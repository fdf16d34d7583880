"""Every parser of the command line, for tests that go through all verbs, actions and options."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from edge import cli


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Verb, or verb and action -> its parser."""

    def below(name: str, parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
        subs = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        if not subs:
            yield name, parser
        for sub in subs:
            for verb, inner in sub.choices.items():
                yield from below(f"{name} {verb}".strip(), inner)

    return dict(below("", cli.build_parser()))


PARSERS = parsers()
