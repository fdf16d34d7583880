"""The `edge` command: finds the verb, runs it, turns errors into one line and an exit code.

Exit codes: 0 done, 1 failed, 2 the command line itself is wrong (each with one line on stderr), 130 interrupted, 143
and 129 ended by SIGTERM and SIGHUP, 141 the reader of stdout left, as for programs that the system ends for it. Verbs
are in `commands/`, one file each.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from difflib import get_close_matches
from importlib import import_module
from typing import Any, NoReturn

from edge.commands import bundles, kinds, streams
from edge.commands.help import first_line, sections
from edge.commands.noticing import notices_printed
from edge.commands.signals import Ended, ending_by_signals
from edge.defaults.commands import command_of, commands
from edge.defaults.fill import and_origin, fill
from edge.defaults.given import parse_with_given
from edge.defaults.tables import Value
from edge.runtime.errors import EdgeError, RecipeError, SettingsError, shown, telling_line
from edge.runtime.extras import missing_packages_named
from edge.runtime.terminal_text import visible

DESCRIPTION = """Export GLM-4 checkpoints and run them offline on Intel hardware.

To complete commands in bash: eval "$(edge completion bash)"; zsh and fish likewise.

examples:
  edge demo
  edge export THUDM/glm-4-9b-chat-hf glm4-int4
  edge run glm4-int4 "What is the capital of France?"
  edge COMMAND --help
"""
VERBS = (
    "demo",
    "recipes",
    "export",
    "compile",
    "run",
    "chat",
    "serve",
    "batch",
    "prefix",
    "kiosk",
    "update",
    "bench",
    "profile",
    "needle",
    "list",
    "show",
    "rm",
    "config",
    "inspect",
    "verify",
    "fit",
    "devices",
    "completion",
)
# Verb, or verb and action -> the extra that it needs as a whole.
NEEDED = {
    "demo": "export",
    "export": "export",
    "serve": "server",
    "update key": "update",
    "update sign": "update",
    "update install": "update",
    "profile run": "profile",
    "profile compare": "plots",
    "profile report": "plots",
    "needle": "plots",
}
CLOSED = ("run", "chat", "batch")  # verbs that have something to write when a signal ends them; serve listens itself
PATHS = ("BUNDLE", "DIR", "FILE", "OUT", "PATH", "SOURCE")  # metavars of what names a file or folder
LOG_LEVELS = ("debug", "info", "warning", "error")
MAX_LINE = 2000  # characters of an error, which may quote what somebody gave
FAILED, USAGE = 1, 2
INTERRUPTED, READER_LEFT = 128 + 2, 128 + 13  # with the numbers of SIGINT and SIGPIPE, as shells count

logger = logging.getLogger(__name__)


class _Parser(argparse.ArgumentParser):
    """Parser of the command, a verb or an action: no abbreviated options, errors in one line, --log-level anywhere.

    A prefix that names one option today would be ambiguous, or name another one, when an option is added.
    """

    advice = ""  # to those who give something else than an action

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "allow_abbrev": False})
        self.add_argument(
            "--log-level",
            choices=LOG_LEVELS,
            default=argparse.SUPPRESS,  # or a verb's default would replace what stood before it
            metavar="LEVEL",
            help=f"say on stderr what is being done: {', '.join(LOG_LEVELS)} (default: nothing)",
        )
        self.add_argument(
            "--no-config",
            action="store_true",
            default=argparse.SUPPRESS,
            help="take no defaults from the user's config.toml and the bundle's edge.toml",
        )

    def parse_known_args(  # type: ignore[override]  # argparse's has overloads for other namespaces
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse, and keep apart what was given and what has its default."""
        return parse_with_given(self, super().parse_known_args, args, namespace)

    def error(self, message: str) -> NoReturn:
        """End with what is wrong; the usage, of twenty lines for some verbs, would hide it."""
        short = re.sub(r"\S{80,}", lambda found: found[0][:79] + "…", message)  # argparse quotes values whole
        advice = f"; {self.advice}" if self.advice else ""
        self.exit(USAGE, f"{self.prog}: {_one_line(short)}{advice}; see {self.prog} --help\n")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:  # Any: as argparse has it
        """The arguments. What no parser knows is told by that of the verb, whose help has what it takes."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            of_verb: argparse.ArgumentParser = getattr(found, "parser", self)
            of_verb.error(f"unrecognized arguments: {' '.join(unknown)}{_meant(of_verb, unknown[0])}")
        return found

    def _check_value(self, action: argparse.Action, value: Any) -> None:  # Any: of every type, as argparse has it
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            close = get_close_matches(value, action.choices, 1)
            hint = f", did you mean {close[0]!r}? Known are" if close else ", known are"
            kind = str(action.metavar).lower()
            raise argparse.ArgumentError(None, f"{kind} {shown(value)} is unknown{hint} {', '.join(action.choices)}")
        super()._check_value(action, value)


def _meant(parser: argparse.ArgumentParser, word: str) -> str:
    """The option that was likely meant, as the end of a message; a beginning of one is the likeliest."""
    name, known = word.partition("=")[0], [option for action in _actions(parser) for option in action.option_strings]
    if not name.startswith("--") or name == "--":
        return ""
    close = [option for option in known if option.startswith(name)] or get_close_matches(name, known, 1)
    return f", did you mean {close[0]}?" if close else ""


class _Version(argparse.Action):
    """argparse's own wants the text at once, and looking the version up takes longer than anything else here."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import edge

        print(f"edgeglm {edge.__version__}")
        parser.exit()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code. Raises SystemExit for usage errors, --help and --version."""
    parser = build_parser()
    with streams.guarded():
        try:
            streams.check_stdout()
            code = _run(parser, arguments)
            sys.stdout.flush()  # what is left in memory may be what a full disk does not take
            return code
        except EdgeError as error:
            return _fail(str(error))
        except KeyboardInterrupt:
            print("edge: interrupted", file=sys.stderr)
            return INTERRUPTED
        except Ended as ended:
            print(f"edge: ended by {ended.name}", file=sys.stderr)
            return ended.exit_code
        except streams.ReaderLeft:
            return READER_LEFT
        except (OSError, ImportError, MemoryError) as error:
            if isinstance(error, ModuleNotFoundError):
                raise  # of a package that no extra has: a mistake of ours
            return _fail(_reason(error))


def _run(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> int:
    try:
        args = parser.parse_args(arguments)
    except SystemExit:  # --help and --version have printed
        sys.stdout.flush()
        raise
    defaults: dict[str, Value] = {}
    needed = NEEDED.get(" ".join(command_of(args)))
    with (
        _logging_to_stderr(getattr(args, "log_level", None)),
        missing_packages_named(needed),
        notices_printed(),
    ):
        try:
            bundles.find(args)
            args.commands = commands(parser)
            if "no_config" not in args and args.verb != "config":
                defaults = fill(args, command_of(args), args.commands, kinds.is_path)
            with ending_by_signals() if args.verb in CLOSED else nullcontext():
                code: int = args.run(args)
            return code
        except EdgeError as error:
            logger.debug("%s failed", args.verb, exc_info=True)
            message = _with_options(str(error), _options(parser, args.verb))
            return _fail(and_origin(message, defaults), _code_of(error))
        except Exception:
            logger.debug("%s failed", args.verb, exc_info=True)
            raise


def _fail(message: str, code: int = FAILED) -> int:
    print(f"edge: {_one_line(message)}", file=sys.stderr)
    return code


def _code_of(error: EdgeError) -> int:
    """A value that cannot be right, or two that exclude each other, is wrong usage, whoever noticed it.

    A file that the system does not give, or that holds no text, is a failure like any other.
    """
    refused = isinstance(error.__cause__, OSError | UnicodeError)
    return USAGE if isinstance(error, SettingsError | RecipeError) and not refused else FAILED


def _reason(error: OSError | ImportError | MemoryError) -> str:
    """What the system says of a path, a disk, a library or memory, where there are no better words for it."""
    if isinstance(error, MemoryError):
        return "there is not enough memory; end other programs, or use a smaller model or --max-context"
    if isinstance(error, ImportError):
        return f"a package cannot be loaded: {telling_line(error, last=True)}; install it again"
    return ": ".join(str(part) for part in (error.filename, error.strerror or error) if part is not None)


def _one_line(message: str) -> str:
    """A message without line ends and control characters; of one that quotes too much, both ends."""
    line = visible(" ".join(message.split()))
    return line if len(line) <= MAX_LINE else f"{line[: MAX_LINE // 2]} … {line[-MAX_LINE // 2 :]}"


def _with_options(message: str, options: Mapping[str, str]) -> str:
    """A message with options in the place of the settings that they set: "--max-context is 0; lower --kv-cache-gb".

    A name that is one word is a setting in the first place, and where a value is given to it.
    """

    def option(found: re.Match[str]) -> str:
        return options.get(found[0].removesuffix("=True"), found[0])

    return re.sub(r"^[a-z]+(?= is )|(?<!\S)(?:[a-z_]+=True\b|[a-z]+_[a-z_]+(?=[ ,;=]|$))", option, message)


def _options(parser: argparse.ArgumentParser, verb: str) -> dict[str, str]:
    """Name of a setting -> option, of one verb."""
    found = {action.dest: action.option_strings[0] for action in _actions(parser, verb) if action.option_strings}
    return {**found, "speculation": found["speculate"]} if "speculate" in found else found


def _actions(parser: argparse.ArgumentParser, verb: str = "") -> Iterator[argparse.Action]:
    """Arguments and options of a parser and of those below it, of all verbs or of one."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                if verb in ("", name):
                    yield from _actions(sub)
        else:
            yield action


@contextmanager
def _logging_to_stderr(level: str | None) -> Iterator[None]:
    """Show what the library logs from a level up; None shows nothing."""
    if level is None:
        yield
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    package = logging.getLogger("edge")
    before = package.level
    package.addHandler(handler)
    package.setLevel(level.upper())
    try:
        yield
    finally:
        package.removeHandler(handler)  # its stream ends with the command
        package.setLevel(before)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = _Parser(prog="edge", **sections(DESCRIPTION))
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    verbs = parser.add_subparsers(metavar="COMMAND", required=True)
    for verb in VERBS:
        module = import_module(f"edge.commands.{verb}")
        text = module.__doc__ or ""
        sub = verbs.add_parser(verb, help=first_line(text), **sections(text))
        sub.advice = getattr(module, "ADVICE", "")
        module.add_arguments(sub)
        sub.set_defaults(run=module.run, verb=verb, parser=sub)
    for action in _actions(parser):
        if action.metavar in PATHS and action.type is None:
            action.type = kinds.path
    return parser
