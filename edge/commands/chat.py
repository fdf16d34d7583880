"""Chat in the terminal; earlier turns are never computed again.

in the chat:
  /reset  forget the conversation     /stats  figures of the last answer     /exit  leave (or Ctrl-D)
  Ctrl-C  end the answer that is being written
"""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from typing import TYPE_CHECKING

from edge.commands import options

if TYPE_CHECKING:
    from edge.runtime.chunk import Stats
    from edge.runtime.llm import LLM
    from edge.runtime.session import ChatSession


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE")
    options.add_engine(parser)
    options.add_generation(parser)
    options.add_reuse(parser)


def run(args: argparse.Namespace) -> int:
    from edge.api import load
    from edge.runtime.settings import generation_settings

    system = options.system_message(args)
    settings = options.generation_settings(args)
    generation_settings(**settings)
    llm = load(args.bundle, **options.reuse_settings(args, options.engine_settings(args)))
    options.prepare(llm, args)
    with llm:
        _talk(args, llm, system, settings)
    return 0


def _talk(args: argparse.Namespace, llm: LLM, system: str | None, settings: options.Keywords) -> None:
    """Answer line after line, until the last."""
    from edge.runtime.errors import PromptError
    from edge.runtime.session import ChatSession

    session = ChatSession(llm, system)
    if sys.stdin.isatty():
        import readline  # noqa: F401  (line editing and history for input())

        print(f"{args.bundle}: {llm.engine.info.max_context} tokens of context; /reset, /stats, /exit", file=sys.stderr)
    stats: Stats | None = None
    while True:
        try:
            line = _read_line().strip()
        except EOFError:
            return
        except PromptError as error:
            print(f"edge: {error}", file=sys.stderr)
            continue
        match line:
            case "":
                pass
            case "/exit":
                return
            case "/reset":
                session.reset()
                stats = None
            case "/stats":
                print("no answer yet" if stats is None else _figures(stats, session))
            case _ if line.startswith("/"):
                print(f"{line.split()[0]} is unknown; /reset, /stats, /exit", file=sys.stderr)
            case _:
                stats = _answer(session, line, settings) or stats


def _read_line() -> str:
    """The next line. Raises EOFError behind the last, and PromptError for one that is not UTF-8."""
    from edge.runtime.unicode import check_text, decode_text

    what = "the line"
    if not sys.stdin.isatty():
        if line := sys.stdin.buffer.readline():
            return decode_text(line, what)
        raise EOFError
    try:
        return check_text(input("> "), what)
    except UnicodeDecodeError as error:
        return decode_text(error.object, what)


def _answer(session: ChatSession, line: str, settings: options.Keywords) -> Stats | None:
    """Stream one answer; Ctrl-C and a refused message end it and not the chat."""
    from edge.commands.console import show_answer
    from edge.runtime.errors import GenerationError

    try:
        with closing(session.send(line, **settings)) as chunks:
            last = show_answer(chunks)
    except KeyboardInterrupt:
        print("\n(stopped)", file=sys.stderr)
        return None
    except GenerationError as error:
        print(f"edge: {error}", file=sys.stderr)
        return None
    return None if last is None else last.stats


def _figures(stats: Stats, session: ChatSession) -> str:
    return (
        f"{stats.prompt_tokens} prompt tokens ({stats.cached_tokens} from the cache), "
        f"{stats.new_tokens} new, first after {stats.ttft_ms:.0f} ms, "
        f"{stats.tokens_per_second:.1f} tok/s, {session.num_tokens} in the conversation"
    )
