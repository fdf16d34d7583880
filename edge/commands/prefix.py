"""Compute the beginning that many prompts share, once, and keep it in a file.

`edge run`, `edge chat`, `edge serve` and `edge batch` start from such a file with --prefix. With --system-file, too,
they build it themselves where it is missing or does not fit.

examples:
  edge prefix build glm4-int4 --system-file kiosk.txt kiosk.prefix
  edge prefix build glm4-int4 --system-file kiosk.txt kiosk.prefix --engine openvino --max-context 8192
  edge prefix build glm4-int4 --raw "Once upon a time" story.prefix
  edge prefix build glm4v-int4 --image map.png map.prefix
  edge prefix show kiosk.prefix
"""

from __future__ import annotations

import argparse
import os
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING

from edge.commands import options, pictures
from edge.commands.help import sections

if TYPE_CHECKING:
    from edge.runtime.llm import LLM

BUILD = """Compute a prefix and write it to OUT.

examples:
  edge prefix build glm4-int4 --system-file kiosk.txt kiosk.prefix
  edge prefix build glm4-int4 --system-file kiosk.txt kiosk.prefix --engine openvino --max-context 8192
"""
SHOW = """Show what a prefix was made for.

examples:
  edge prefix show kiosk.prefix
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
    build = actions.add_parser("build", help="compute a prefix", **sections(BUILD))
    options.add_bundle(build)
    build.add_argument("out", metavar="OUT", help="the file to write; an existing prefix is replaced")
    options.add_json(build)
    text = build.add_argument_group("what the prompts begin with").add_mutually_exclusive_group()
    text.add_argument(
        "--system",
        metavar="TEXT",
        help="the system message; - reads it from stdin, and so does giving none of these three",
    )
    text.add_argument("--system-file", metavar="FILE", help="a file that holds the system message")
    text.add_argument("--raw", metavar="TEXT", help="text without the chat template")
    pictures.add_pictures(build, "every first question begins with")
    options.add_template(build)
    options.add_engine(build)
    show = actions.add_parser("show", help="show what a prefix was made for", **sections(SHOW))
    show.add_argument("file", metavar="FILE", help="a file made by `edge prefix build`")
    options.add_json(show)


def run(args: argparse.Namespace) -> int:
    return _build(args) if args.action == "build" else _show(args)


def _build(args: argparse.Namespace) -> int:
    from edge.api import load
    from edge.commands.console import human_bytes, print_json
    from edge.runtime.kv.snapshot_format import check_replaceable

    text, out = _text(args), Path(args.out)
    pictures.check_pictures(args)
    _check_out(out)
    check_replaceable(out)
    llm = load(args.bundle, **options.engine_settings(args, text), chat_template=args.chat_template)
    started = time.perf_counter()
    if args.images:
        tokens = _save_with_pictures(args, llm, text, out)
    elif args.raw is not None:
        tokens = llm.prefixes.save(text, out).num_tokens
    else:
        tokens = llm.prefixes.save(llm.system_prefix(text), out, system=text).num_tokens
    seconds = time.perf_counter() - started
    size = out.stat().st_size
    if args.json:
        print_json(
            {
                "path": str(out),
                "tokens": tokens,
                "bytes": size,
                "seconds": round(seconds, 3),
                "engine": llm.engine.info.name,
            }
        )
        return 0
    print(f"{out}: {tokens} tokens, {human_bytes(size)}, computed with {llm.engine.info.name} in {seconds:.1f} s")
    return 0


def _save_with_pictures(args: argparse.Namespace, llm: LLM, system: str, out: Path) -> int:
    """Write a prefix that ends with pictures, after the system message if there is one; returns its tokens."""
    from edge.runtime.messages import Message

    before = [Message("system", system)] if system else []
    messages = [*before, Message("user", tuple(pictures.read_pictures(args, llm)))]
    looking = pictures.looking_at(messages)
    try:
        return llm.prefixes.save(messages, out, system=system or None, on_picture=looking).num_tokens
    finally:
        looking.end()


def _check_out(out: Path) -> None:
    """Before the model is loaded and the prefix computed. Raises OutputError."""
    from edge.runtime.errors import OutputError

    target = Path(os.path.realpath(out))  # a link is followed
    if target.is_symlink():
        raise OutputError(f"{out} is a link that leads to itself; name another file")
    if not target.parent.is_dir():
        raise OutputError(f"{target.parent}: no such folder to write {target.name} in; make it or name another file")
    if target.exists() and not target.is_file():
        raise OutputError(f"{out} exists and is not a file; choose another path")
    if not os.access(target.parent, os.W_OK):
        raise OutputError(f"{target.parent} may not be written by you; name a file elsewhere")


def _show(args: argparse.Namespace) -> int:
    from edge.commands.console import human_bytes, print_json
    from edge.runtime.kv.snapshot_format import read_header

    info = read_header(Path(args.file))
    identity = info.identity
    if args.json:
        print_json(
            {
                "path": args.file,
                "tokens": info.num_tokens,
                "bytes": info.bytes,
                "model_sha256": identity.model_sha256,
                "tokenizer_sha256": identity.tokenizer_sha256,
                "layout": dict(identity.layout),
                "system": info.system,
            }
        )
        return 0
    print(f"{args.file}: prefix of {info.num_tokens} tokens, {human_bytes(info.bytes)}")
    rows = {"model sha256": identity.model_sha256, "tokenizer sha256": identity.tokenizer_sha256, **identity.layout}
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"  {name:<{width}}  {value}")
    if info.system is None:
        print("  no system message: a text, or messages with a picture")
    else:
        print("  system message:")
        print(textwrap.indent(info.system.rstrip("\n"), "    "))
    return 0


def _text(args: argparse.Namespace) -> str:
    """The system message or raw text. Raises PromptError for an empty one and SettingsError for a file without text."""
    from edge.runtime.errors import PromptError, SettingsError
    from edge.runtime.unicode import check_typed

    if args.images and args.raw is not None:
        raise SettingsError("--image needs the chat template, which --raw leaves out; give one of the two")
    if args.images and args.system is None and args.system_file is None:
        return ""
    if args.raw is not None:
        text = check_typed(args.raw, "--raw")
    elif args.system_file is not None:
        text = options.read_text(args.system_file)
    else:
        text = options.argument_or_stdin(args.system, "--system", "the system message")
    if not text.strip():
        raise PromptError("the prefix is empty; give some text")
    return text
