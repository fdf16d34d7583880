"""Arguments that several verbs share, and what they become. Defaults come from the settings classes."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from edge.commands import kinds
from edge.commands.help import told, usual
from edge.commands.sampling import add_sampling, sampling_keywords
from edge.runtime.engines.openvino_npu_lengths import CHUNK, MAX_PROMPT, MAX_RESPONSE
from edge.runtime.engines.registry import ENGINES
from edge.runtime.errors import PromptError, SettingsError
from edge.runtime.settings import COMPILING_NAMES, KV_PRECISIONS, SELF_TESTS, EngineSettings, UsualSampling

if TYPE_CHECKING:
    from edge.runtime.constraint import Constraint

DEVICES = "|".join(dict.fromkeys(family for record in ENGINES.values() for family in record.families))  # CPU|GPU
BYTES_PER_TOKEN = 4  # of English and Chinese alike, roughly
Keywords = dict[str, Any]  # as the command line gives them; the settings classes check each value


BUNDLE_HELP = "a bundle that `edge export` made: its name, as in `edge list`, or its folder"


def add_bundle(parser: argparse.ArgumentParser, *, may_be_missing: bool = False) -> None:
    """The bundle that a verb works on; cli.py turns a name into a folder. may_be_missing: then it is the last used."""
    text = told(BUNDLE_HELP, "the one used last, or the only one") if may_be_missing else BUNDLE_HELP
    bundle = parser.add_argument("bundle", metavar="BUNDLE", help=text)
    bundle.required = not may_be_missing  # nargs="?" would not find it after an option, in Python 3.11


def add_json(parser: argparse._ActionsContainer) -> None:
    """Results for programs."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def add_verbose(parser: argparse._ActionsContainer) -> None:
    """Figures for people."""
    parser.add_argument("--verbose", action="store_true", help="tell the figures of each answer on stderr")


def add_engine(parser: argparse.ArgumentParser, *more: str) -> None:
    """Which engine, or what else the verb takes for one, device and memory."""
    group = parser.add_argument_group("engine and memory")
    auto = usual(EngineSettings, "engine")
    group.add_argument(
        "--engine",
        "--engines",
        type=lambda text: text if text in (auto, *more) else kinds.engine_name(text),
        default=auto,
        metavar=f"{{{','.join([auto, *ENGINES, *more])}}}",
        help=told("which engine computes", auto),
    )
    add_device(group)
    group.add_argument(
        "--max-context",
        type=int,
        metavar="TOKENS",
        help=told("longest prompt and answer together", "the model's limit"),
    )
    budget = group.add_mutually_exclusive_group()
    budget.add_argument(
        "--kv-cache-gb",
        type=kinds.gigabytes,
        dest="kv_cache_bytes",
        metavar="GB",
        help=told(
            "upper bound of the KV cache, like 2.1 or 2100MB", f"{usual(EngineSettings, 'kv_cache_bytes') / 1e9:.3g}"
        ),
    )
    budget.add_argument(
        "--kv-cache-share", type=float, metavar="SHARE", help="the same bound as a share of the free memory, like 0.5"
    )
    add_memory(group)
    group.add_argument(
        "--kv-precision", choices=KV_PRECISIONS, help=told("how keys and values are stored", "the engine's choice")
    )
    group.add_argument(
        "--reproducible",
        action="store_true",
        default=None,
        help="give the same bits whatever else is or was computed; single tokens take longer (--speculate implies it)",
    )
    group.add_argument(
        "--threads", type=int, metavar="N", help=told("number of threads to compute with", "the engine's choice")
    )
    group.add_argument(
        "--self-test",
        choices=SELF_TESTS,
        help=told(
            "what to do with an engine that computes something other than the export recorded: refuse it, fall back "
            "to another engine or device, or do not ask",
            usual(EngineSettings, "self_test"),
        ),
    )
    add_kept_pictures(parser)
    add_lengths(parser)


def add_kept_pictures(parser: argparse.ArgumentParser) -> None:
    """Where what a model has seen is kept."""
    group = parser.add_argument_group("pictures", "What a model made of a picture is kept, and not computed again.")
    group.add_argument(
        "--kept-pictures-folder",
        metavar="DIR",
        help=told("where pictures that were seen are kept", "in your cache folder"),
    )
    group.add_argument(
        "--kept-pictures-gb",
        type=kinds.gigabytes_or_none,
        dest="kept_pictures_bytes",
        metavar="GB",
        help=told(
            "room for them on the disk, like 0.5 or 500MB; 0 keeps none there",
            f"{usual(EngineSettings, 'kept_pictures_bytes') / 1e9:.3g}",
        ),
    )


def add_lengths(parser: argparse.ArgumentParser) -> None:
    """For what lengths a model is compiled, where an engine needs to know."""
    group = parser.add_argument_group(
        "fixed lengths", "An NPU runs what was compiled for these lengths; other devices take any."
    )
    for option, text in (
        ("--max-prompt-tokens", told("longest prompt, the conversation so far included", f"{MAX_PROMPT:,}")),
        ("--max-response-tokens", told("tokens that are kept free for the answer", f"{MAX_RESPONSE:,}")),
        ("--prefill-chunk-tokens", told("tokens of a prompt that are read at once, a power of 2", f"{CHUNK:,}")),
    ):
        group.add_argument(option, type=int, metavar="TOKENS", help=text)
    group.add_argument(
        "--compiled-folder",
        metavar="DIR",
        help=told("where models are that `edge compile` has made", "in your cache folder"),
    )


def add_memory(group: argparse._ActionsContainer) -> None:
    """The limit of a whole process."""
    group.add_argument(
        "--max-memory",
        type=kinds.gigabytes,
        dest="max_memory_bytes",
        metavar="SIZE",
        help=told("most memory that the whole process may take, like 6GB", "what is free"),
    )


def add_template(group: argparse._ActionsContainer) -> None:
    """What makes a prompt of messages."""
    group.add_argument(
        "--chat-template", metavar="FILE", help="use this Jinja template of messages, instead of the bundle's"
    )


def add_device(group: argparse._ActionsContainer) -> None:
    """Where to compute."""
    device = usual(EngineSettings, "device")
    group.add_argument(
        "--device",
        type=kinds.device_name,
        default=device,
        metavar=DEVICES,
        help=told("device to compute on; `edge devices` lists them", device),
    )


def add_generation(parser: argparse.ArgumentParser, usual_sampling: UsualSampling) -> None:
    """What an answer may be, and how its tokens are chosen."""
    group = parser.add_argument_group("answer")
    add_template(group)
    system = group.add_mutually_exclusive_group()
    system.add_argument("--system", metavar="TEXT", help="the system message")
    system.add_argument(
        "--system-file", metavar="FILE", help="a file with the system message; --prefix is built where it does not fit"
    )
    group.add_argument(
        "--max-new-tokens", type=int, metavar="N", help=told("longest answer, in tokens", "to the end of the context")
    )
    group.add_argument("--stop", action="append", metavar="TEXT", help="end the answer before this text; repeatable")
    group.add_argument(
        "--deadline",
        type=float,
        dest="deadline_s",
        metavar="SECONDS",
        help="end the answer this many seconds after the request",
    )
    shape = group.add_mutually_exclusive_group()
    shape.add_argument("--json-schema", metavar="FILE", help="make the answer JSON that follows this schema")
    shape.add_argument("--regex", metavar="PATTERN", help="make the answer match this regular expression")
    shape.add_argument("--grammar", metavar="FILE", help="make the answer follow this Lark grammar")
    add_sampling(parser, usual_sampling)


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
        "max_memory_bytes": args.max_memory_bytes,
        "kv_precision": args.kv_precision,
        "reproducible": args.reproducible,
        "threads": args.threads,
        "self_test": args.self_test,
        "kept_pictures_folder": args.kept_pictures_folder,
        "kept_pictures_bytes": args.kept_pictures_bytes,
        **{name: getattr(args, name) for name in COMPILING_NAMES},
    }
    return {name: value for name, value in chosen.items() if value is not None}


def generation_settings(args: argparse.Namespace) -> Keywords:
    """Keywords for `LLM.generate`; what was not given is left to the settings classes. Raises SettingsError."""
    names = ("max_new_tokens", "stop", "deadline_s")
    settings = {name: value for name in names if (value := getattr(args, name)) is not None} | sampling_keywords(args)
    if (constraint := _constraint(args)) is not None:
        settings["constraint"] = constraint
    return settings


def _constraint(args: argparse.Namespace) -> Constraint | None:
    from edge.runtime.constraint import Constraint

    if args.json_schema is not None:
        return Constraint.json_schema(read_text(args.json_schema))
    if args.grammar is not None:
        return Constraint.lark(read_text(args.grammar))
    return None if args.regex is None else Constraint.regex(args.regex)


def argument_or_stdin(value: str | None, what: str, purpose: str = "text") -> str:
    """A text of the command line; "-" reads it from stdin, and so does none where something is piped in.

    Raises PromptError where that is not UTF-8, or has nothing but blanks; SettingsError for blanks on the command line,
    and where nobody could know that a text is waited for.
    """
    import io
    import sys

    from edge.commands.streams import read_stdin
    from edge.runtime.unicode import check_typed, decode_text, told_encoding

    if value not in (None, "-"):
        text = check_typed(value, what)
        if not text.strip():
            raise SettingsError(f"{what} is empty; give {purpose}")
        return text
    if value is None and sys.stdin is not None and sys.stdin.isatty():
        raise SettingsError(f"{what} is missing; give {purpose}, or pipe it in")
    text = decode_text(read_stdin(), "standard input", otherwise=told_encoding())  # whatever the terminal has
    text = io.StringIO(text, newline=None).read()  # with line ends of every system, as a text file is read
    if not text.strip():
        raise PromptError(f"{what} is empty: nothing came from standard input; give {purpose}")
    return text


def read_text(name: str) -> str:
    """The text of a file or pipe that was named, with line ends of every system. Raises SettingsError."""
    import io
    from pathlib import Path

    from edge.commands.streams import read_pipe
    from edge.runtime.files import read_file, shown_path
    from edge.runtime.unicode import decode_text

    file = Path(name)
    data = read_pipe(file) if file.is_fifo() else read_file(file, SettingsError, "give a file of UTF-8 text")
    return io.StringIO(decode_text(data, shown_path(name), error=SettingsError), newline=None).read()
