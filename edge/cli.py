"""The `edge` command: finds the verb, runs it, turns errors into one line and an exit code.

Exit codes: 0 done, 1 failed (one line on stderr), 2 usage, 130 interrupted. Verbs live in `commands/`, one file each.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Any

from edge.runtime.errors import EdgeError
from edge.runtime.extras import missing_package

VERBS = ("demo", "export", "run", "chat", "prefix", "bench", "profile", "needle", "inspect", "verify", "devices")
NEEDED = {"demo": "export", "export": "export", "profile": "profile"}  # verb -> the extra that it needs as a whole
LOG_LEVELS = ("debug", "info", "warning", "error")


class _Parser(argparse.ArgumentParser):
    """Of the command and of each verb: no abbreviated options, and --log-level before the verb or behind it.

    A prefix that names one option today would be ambiguous, or name another one, when an option is added.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "allow_abbrev": False})
        self.add_argument(
            "--log-level",
            choices=LOG_LEVELS,
            default=argparse.SUPPRESS,  # or a verb's default would replace what stood before it
            metavar="LEVEL",
            help=f"tell on stderr what is done: {', '.join(LOG_LEVELS)}. default: nothing",
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    parser = build_parser()
    args = parser.parse_args(arguments)
    if (level := getattr(args, "log_level", None)) is not None:
        _log_to_stderr(level)
    try:
        code: int = args.run(args)
        return code
    except EdgeError as error:
        return _fail(_with_option(str(error), parser))
    except KeyboardInterrupt:
        print("edge: interrupted", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        if (missing := missing_package(error, NEEDED.get(args.verb))) is None:
            raise
        return _fail(str(missing))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at exit
        return 1


def _fail(message: str) -> int:
    print(f"edge: {' '.join(message.split())}", file=sys.stderr)
    return 1


def _with_option(message: str, parser: argparse.ArgumentParser) -> str:
    """A message that begins with a setting, "max_context is ...", with the option that sets it: "--max-context is"."""
    name, verb, rest = message.partition(" is ")
    option = _options(parser).get(name)
    return message if option is None else f"{option}{verb}{rest}"


def _options(parser: argparse.ArgumentParser) -> dict[str, str]:
    """Name of a setting -> option, of all verbs."""
    found: dict[str, str] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                found |= _options(sub)
        elif action.option_strings:
            found[action.dest] = action.option_strings[0]
    return found


def _log_to_stderr(level: str) -> None:
    """Show what the library logs from this level up."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("edge")
    logger.addHandler(handler)
    logger.setLevel(level.upper())


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = _Parser(prog="edge", description="Export GLM-4 checkpoints and run them offline on Intel hardware.")
    parser.add_argument("--version", action="version", version=f"edgeglm {version('edgeglm')}")
    verbs = parser.add_subparsers(metavar="COMMAND", required=True)
    for verb in VERBS:
        module = import_module(f"edge.commands.{verb}")
        help_text = (module.__doc__ or "").splitlines()[0]
        sub = verbs.add_parser(
            verb,
            help=help_text,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(sub)
        sub.set_defaults(run=module.run, verb=verb)
    return parser
