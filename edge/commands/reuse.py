"""What earlier work a verb may start from: prefix files, the system message that they hold, draft stores.

In: a parser, later its arguments. Out: options; keywords for `edge.load`; a model that has its prefixes. A system
message together with a prefix file means: use the file if it fits, and build it if it does not.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from edge.commands import options
from edge.commands.options import Keywords
from edge.runtime.errors import EdgeError, PromptError, SettingsError, SnapshotError
from edge.runtime.settings import KV_PRECISIONS

if TYPE_CHECKING:
    from edge.runtime.chunk import Stats
    from edge.runtime.llm import LLM


def add_prefixes(parser: argparse.ArgumentParser, *, drafts: bool = False) -> None:
    """Prefixes of a verb whose requests come with system messages of their own."""
    group = parser.add_argument_group("reuse of earlier work")
    group.add_argument(
        "--system-file",
        metavar="FILE",
        help="compute this system message before the first request that begins with it; requests have to send it",
    )
    _add_prefix(group, "start requests that begin like this file, made by `edge prefix build`, from it; repeatable")
    if drafts:
        _add_drafts(group)


def add_reuse(parser: argparse.ArgumentParser) -> None:
    """Prefixes and drafts of a verb that sends the system message itself."""
    group = parser.add_argument_group("reuse of earlier work")
    _add_prefix(group, "start from a file made by `edge prefix build`, and use its system message; repeatable")
    _add_drafts(group)


def given_system(args: argparse.Namespace) -> str | None:
    """The system message of --system or --system-file. Raises PromptError and SettingsError."""
    from edge.runtime.unicode import check_typed

    text = getattr(args, "system", None)
    if text is None and args.system_file is not None:
        text = options.read_text(args.system_file)
        if not text.strip():
            raise PromptError(f"{args.system_file} is empty; write the system message into it")
        args.system = text  # a pipe can be read once
    return None if text is None else check_typed(text, "--system")


def system_message(args: argparse.Namespace) -> str | None:
    """The system message that was given, else that of the first prefix. Raises as `given_system`, and SnapshotError."""
    from edge.runtime.saved_prefix import read_prefix

    given = given_system(args)
    return read_prefix(args.prefix[0]).system if given is None and args.prefix else given


def reuse_settings(args: argparse.Namespace, chosen: Keywords) -> Keywords:
    """`chosen` with what `add_reuse` added. Raises SnapshotError and SettingsError."""
    chosen = prefix_settings(args, chosen, speculate=args.speculate)
    names = ("draft_store", "draft", "chat_template")
    return {**chosen, "speculation": args.speculate, **{name: getattr(args, name) for name in names}}


def prefix_settings(args: argparse.Namespace, chosen: Keywords, *, speculate: bool = False) -> Keywords:
    """`chosen` with the engine as it was when the first prefix was computed, where nothing else is said.

    A file that would be built where it does not fit decides nothing but which engine "auto" is: otherwise it would be
    built again whenever prompts are longer than usual. Raises SnapshotError and SettingsError.
    """
    from edge.runtime.kv.snapshot_format import read_header

    if not args.prefix:
        return chosen
    builds = given_system(args) is not None
    path = Path(args.prefix[0])
    try:
        layout = read_header(path).identity.layout
    except SnapshotError:
        if builds:
            return chosen
        raise
    engine = layout.get("engine")
    if chosen["engine"] not in ("auto", engine):
        return chosen  # loading the prefix will say so
    if builds:
        return {**chosen, "engine": engine} if engine in _engines_for(args) else chosen
    found = {"engine": engine, "reproducible": layout.get("reproducible") == "True"}
    if layout.get("kv precision") in KV_PRECISIONS:
        found["kv_precision"] = layout["kv precision"]
    if speculate and not found["reproducible"] and "reproducible" not in chosen:
        raise SettingsError(
            f"{path} was computed without --reproducible, which --speculate implies; build it again with "
            "`edge prefix build --reproducible`"
        )
    return {**found, **chosen, "engine": engine}


def prepare(llm: LLM, args: argparse.Namespace) -> None:
    """Give a model the prefixes and documents that were named. Raises SnapshotError and SettingsError."""
    from edge.runtime.prefixes import open_prefixes

    open_prefixes(llm.prefixes, args.prefix, given_system(args))
    for document in given_documents(args):
        llm.add_document(document)


def given_documents(args: argparse.Namespace) -> list[str]:
    """The texts of --draft-from. Raises SettingsError."""
    return [options.read_text(document) for document in getattr(args, "draft_from", ())]


def pin_system(llm: LLM, args: argparse.Namespace) -> None:
    """Compute a system message that was given without a file for it. Raises PromptError and ContextLengthError."""
    if not args.prefix and (system := given_system(args)) is not None:
        llm.prefixes.warm(llm.system_prefix(system))


def tell_unused(stats: Stats | None) -> None:
    """Say on stderr that a prompt does not begin with a prefix that was named."""
    from edge.runtime.notices import notice

    if stats is not None and stats.prefix is not None and not stats.prefix.whole:
        notice(stats.prefix.told)


def _engines_for(args: argparse.Namespace) -> list[str]:
    """The engines that can run the bundle here; none if there is something wrong with it, as loading it will say."""
    from edge.runtime.bundle import open_bundle
    from edge.runtime.engines.choice import engines_for

    try:
        return engines_for(open_bundle(args.bundle), args.device)
    except EdgeError:
        return []


def _add_prefix(group: argparse._ActionsContainer, text: str) -> None:
    group.add_argument("--prefix", action="append", default=[], metavar="FILE", help=text)


def _add_drafts(group: argparse._ActionsContainer) -> None:
    """Speculation, and what it drafts from."""
    group.add_argument(
        "--speculate",
        action="store_true",
        help="draft several tokens at once and verify them: faster where text repeats",
    )
    group.add_argument(
        "--draft",
        metavar="BUNDLE",
        help="draft with this smaller model of the same tokenizer, a bundle's name or folder; needs --speculate",
    )
    group.add_argument(
        "--draft-store",
        metavar="FILE",
        help="draft from the earlier answers in this file, and add the new ones; created if missing; needs --speculate",
    )
    group.add_argument(
        "--draft-from",
        action="append",
        default=[],
        metavar="FILE",
        help="add this text to the draft store; repeatable",
    )
