"""Arguments that several verbs share, and what they become. Defaults come from the settings classes."""

from __future__ import annotations

import argparse
import math
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from edge.runtime.engines.registry import ENGINES, find
from edge.runtime.errors import SettingsError, shown
from edge.runtime.rules import FilePath, Rule, Text, Whole, check_value, help_of, rule_of
from edge.runtime.settings import KV_PRECISIONS, MAX_NAME, Sampling

if TYPE_CHECKING:
    from edge.runtime.constraint import Constraint
    from edge.runtime.llm import LLM

SAMPLING = tuple(spec for spec in fields(Sampling) if spec.name != "logit_bias")  # no command line has room for that
MAX_BYTES = 2**63  # of a cache
MAX_COUNTS = 100  # of prompts to measure
BYTES_PER_TOKEN = 4  # of English and Chinese alike, roughly
Keywords = dict[str, Any]  # as the command line gives them; the settings classes check each value


def add_engine(parser: argparse.ArgumentParser, *more: str) -> None:
    """Which engine, or what else the verb takes for one, device and memory."""
    group = parser.add_argument_group("engine")
    group.add_argument(
        "--engine",
        "--engines",
        type=lambda text: text if text in ("auto", *more) else engine_name(text),
        default="auto",
        metavar=f"{{{','.join(['auto', *ENGINES, *more])}}}",
        help="default: auto",
    )
    group.add_argument(
        "--device",
        type=device_name,
        default="CPU",
        metavar="CPU|GPU|NPU",
        help="default: CPU; `edge devices` lists them",
    )
    group.add_argument("--max-context", type=int, metavar="TOKENS", help="default: the model's limit")
    budget = group.add_mutually_exclusive_group()
    budget.add_argument(
        "--kv-cache-gb",
        type=gigabytes,
        dest="kv_cache_bytes",
        metavar="GB",
        help="bound of the KV cache; default: 2.1",
    )
    budget.add_argument(
        "--kv-cache-share", type=float, metavar="SHARE", help="the same as a share of the memory that is free"
    )
    group.add_argument("--kv-precision", choices=KV_PRECISIONS, help="default: the engine's choice")
    group.add_argument(
        "--reproducible",
        action="store_true",
        default=None,
        help="the same bits whatever else is or was computed, for slower single tokens; --speculate implies it",
    )
    group.add_argument("--threads", type=int, metavar="N", help="default: the device's choice")


def add_reuse(parser: argparse.ArgumentParser) -> None:
    """What earlier work an answer may start from."""
    group = parser.add_argument_group("reuse of earlier work")
    group.add_argument(
        "--prefix",
        action="append",
        default=[],
        metavar="FILE",
        help="start from a file of `edge prefix`, its system message included; repeatable",
    )
    group.add_argument(
        "--speculate", action="store_true", help="verify drafts of several tokens at once: faster where text repeats"
    )
    group.add_argument(
        "--draft-store",
        metavar="FILE",
        help="a file of earlier answers to draft from, made if missing; with --speculate",
    )
    group.add_argument(
        "--draft-from",
        action="append",
        default=[],
        metavar="FILE",
        help="add a text to the draft store; repeatable",
    )


def add_generation(parser: argparse.ArgumentParser) -> None:
    """What an answer may be."""
    group = parser.add_argument_group("generation")
    group.add_argument("--max-new-tokens", type=int, metavar="N", help="default: to the end of the context")
    for spec in SAMPLING:
        kind, metavar = (int, "N") if isinstance(rule_of(spec), Whole) else (float, "X")
        group.add_argument(f"--{spec.name.replace('_', '-')}", type=kind, metavar=metavar, help=help_of(spec))
    group.add_argument("--stop", action="append", metavar="TEXT", help="end the answer before this text; repeatable")
    group.add_argument("--deadline", type=float, dest="deadline_s", metavar="SECONDS", help="end the answer in time")
    group.add_argument("--system", metavar="TEXT", help="a system message")
    shape = group.add_mutually_exclusive_group()
    shape.add_argument("--json-schema", metavar="FILE", help="the answer is JSON that follows this schema")
    shape.add_argument("--regex", metavar="PATTERN", help="the answer matches this regular expression")
    shape.add_argument("--grammar", metavar="FILE", help="the answer follows this Lark grammar")


def token_counts(text: str) -> list[int]:
    """32,512 as numbers above 0, for argparse."""
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not 1 <= len(counts) <= MAX_COUNTS or min(counts) < 1:
        raise argparse.ArgumentTypeError(
            f"{shown(text)} is not a list of token counts; give up to {MAX_COUNTS} numbers above 0 like 32,512"
        )
    return counts


def whole_number(text: str) -> int:
    """0 or more, for argparse."""
    try:
        return Whole().take(int(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a whole number, 0 or more") from None


def path(text: str) -> str:
    """The path of a file or folder, there or not, as it was given, for argparse."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty; give the name of a file or folder")
    _taken("it", FilePath(), text)
    return text


def device_name(text: str) -> str:
    """What could be one, for argparse."""
    return str(_taken("it", Text(longest=MAX_NAME), text))


def engine_name(text: str) -> str:
    """The name of an engine, for argparse: a wrong one is told with those that are known and what installs them."""
    name = _taken("it", Text(longest=MAX_NAME), text)
    try:
        return find(name).name
    except SettingsError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def gigabytes(text: str) -> int:
    """2.1 in bytes, for argparse."""
    try:
        count = float(text) * 1e9
    except ValueError:
        count = math.nan
    if not 0 < count < MAX_BYTES:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a number of gigabytes; give one above 0 like 2.1")
    return max(int(count), 1)


def _taken(name: str, rule: Rule, text: str) -> Any:  # Any: what the rule makes of it
    try:
        return check_value(name, rule, text)
    except SettingsError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def engine_settings(args: argparse.Namespace, prompt: str | None = None) -> Keywords:
    """Keywords for `edge.load`; of a prompt only about its length counts."""
    tokens = None if prompt is None else len(prompt.encode()) // BYTES_PER_TOKEN
    chosen: Keywords = {
        "engine": args.engine,
        "expected_prompt_tokens": tokens,
        "device": args.device,
        "max_context": args.max_context,
        "kv_cache_bytes": args.kv_cache_bytes,
        "kv_cache_share": args.kv_cache_share,
        "kv_precision": args.kv_precision,
        "reproducible": args.reproducible,
        "threads": args.threads,
    }
    return {name: value for name, value in chosen.items() if value is not None}


def reuse_settings(args: argparse.Namespace, chosen: Keywords) -> Keywords:
    """The same, with what `add_reuse` added. Raises SnapshotError and SettingsError."""
    if args.prefix:
        chosen = _following(chosen, args.prefix[0], speculate=args.speculate)
    return {**chosen, "speculation": args.speculate, "draft_store": args.draft_store}


def system_message(args: argparse.Namespace) -> str | None:
    """The system message that was given, else that of the first prefix. Raises SnapshotError and PromptError."""
    from edge.runtime.unicode import check_text

    if args.system is not None:
        return check_text(args.system, "--system")
    if not args.prefix:
        return None
    from pathlib import Path

    from edge.runtime.kv.snapshot_format import read_header

    return read_header(Path(args.prefix[0])).system


def prepare(llm: LLM, args: argparse.Namespace) -> None:
    """Give a model the prefixes and documents that were named. Raises SnapshotError and SettingsError."""
    for prefix in args.prefix:
        llm.prefixes.load(prefix)
    for document in args.draft_from:
        llm.add_document(read_text(document))


def generation_settings(args: argparse.Namespace) -> Keywords:
    """Keywords for `LLM.generate`; what was not given is left to the settings classes. Raises SettingsError."""
    names = ("max_new_tokens", "stop", "deadline_s", *(spec.name for spec in SAMPLING))
    settings = {name: value for name in names if (value := getattr(args, name)) is not None}
    if (constraint := _constraint(args)) is not None:
        settings["constraint"] = constraint
    return settings


def _following(chosen: Keywords, path: str, *, speculate: bool) -> Keywords:
    """Where nothing else is said, the engine as it was when a prefix was computed. Raises SettingsError."""
    from pathlib import Path

    from edge.runtime.kv.snapshot_format import read_header

    layout = read_header(Path(path)).identity.layout
    found = {"engine": layout.get("engine"), "reproducible": layout.get("reproducible") == "True"}
    if layout.get("kv precision") in KV_PRECISIONS:
        found["kv_precision"] = layout["kv precision"]
    if chosen["engine"] not in ("auto", found["engine"]):
        return chosen  # loading the prefix will say so
    if speculate and not found["reproducible"] and "reproducible" not in chosen:
        raise SettingsError(
            f"{path} was computed without --reproducible, which --speculate implies; build it again with "
            "`edge prefix build --reproducible`"
        )
    return {**found, **chosen, "engine": found["engine"]}


def _constraint(args: argparse.Namespace) -> Constraint | None:
    from edge.runtime.constraint import Constraint

    if args.json_schema is not None:
        return Constraint.json_schema(read_text(args.json_schema))
    if args.grammar is not None:
        return Constraint.lark(read_text(args.grammar))
    return None if args.regex is None else Constraint.regex(args.regex)


def argument_or_stdin(value: str, what: str) -> str:
    """A text of the command line; "-" reads it from stdin. Raises PromptError where it is not UTF-8, or none comes."""
    import io

    from edge.commands.streams import read_stdin
    from edge.runtime.unicode import check_text, decode_text

    if value != "-":
        return check_text(value, what)
    text = decode_text(read_stdin(), "standard input")  # whatever encoding the terminal has
    # With line ends of every system, as a text file is read, and without the mark that PowerShell begins with.
    return io.StringIO(text.removeprefix("\ufeff"), newline=None).read()


def read_text(name: str) -> str:
    """The UTF-8 text of a file or pipe that was named, with line ends of every system. Raises SettingsError."""
    import io
    from pathlib import Path

    from edge.commands.streams import read_pipe
    from edge.runtime.files import read_file

    file = Path(name)
    data = read_pipe(file) if file.is_fifo() else read_file(file, SettingsError, "give a file of UTF-8 text")
    try:
        return io.StringIO(data.decode("utf-8-sig"), newline=None).read()
    except UnicodeDecodeError as error:
        raise SettingsError(f"{name} cannot be read as text ({error}); convert it to UTF-8") from error
