"""Chat in the terminal; earlier turns are never computed again.

in the chat:
  /reset  forget the conversation     /stats  figures of the last answer     /exit  leave (or Ctrl-D)
  Ctrl-C  stop the answer that is being written
Each is alone on its line; any other line is a message, whatever it begins with. When the conversation has filled the
context, its oldest turns are dropped: the next answer then takes longer to start, since what is kept is computed anew.

examples:
  edge chat glm4-int4
  edge chat glm4-int4 --system "Answer in one sentence." --temperature 0.7 --top-p 0.9
  edge chat glm4-int4 --prefix kiosk.prefix --context-policy error
"""

from __future__ import annotations

import argparse
import re
import sys
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from edge.commands import options
from edge.commands.help import told
from edge.runtime.settings import CONTEXT_POLICIES, ContextPolicy

if TYPE_CHECKING:
    from edge.runtime.chunk import Stats
    from edge.runtime.llm import LLM
    from edge.runtime.session import ChatSession

COMMANDS = "/reset, /stats, /exit"
MAX_LINE_BYTES = 10_000_000
USUAL_POLICY: ContextPolicy = (
    "drop-oldest"  # somebody who types can do without the oldest turns; a program is told first
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_bundle(parser)
    parser.add_argument(
        "--context-policy",
        choices=CONTEXT_POLICIES,
        default=USUAL_POLICY,
        help=told("once the context is full, drop the oldest turns, or refuse messages until /reset", USUAL_POLICY),
    )
    options.add_engine(parser)
    options.add_generation(parser)
    options.add_reuse(parser)


def run(args: argparse.Namespace) -> int:
    from edge.api import load
    from edge.commands.streams import check_stdin
    from edge.runtime.settings import generation_settings

    check_stdin()
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

    session = ChatSession(llm, system, context_policy=args.context_policy)
    if sys.stdin.isatty():
        with suppress(ImportError):  # line editing and history for input(); not on Windows
            import readline  # noqa: F401

        print(f"{args.bundle}: {llm.engine.info.max_context} tokens of context; {COMMANDS}", file=sys.stderr)
    stats: Stats | None = None
    while True:
        try:
            line = _read_line()
        except EOFError:
            return
        except PromptError as error:
            print(f"edge: {error}", file=sys.stderr)
            continue
        match line.strip():
            case "":
                pass
            case "/exit":
                return
            case "/reset":
                session.reset()
                stats = None
            case "/stats":
                print("no answer yet" if stats is None else _figures(stats, session))
            case word if re.fullmatch("/[a-z]{1,20}", line.rstrip()):  # mistyped, most likely
                print(f"{word} is not a command ({COMMANDS}); put a blank before it to send it", file=sys.stderr)
            case message:
                stats = _answer(session, message, settings) or stats


def _read_line() -> str:
    """The next line. Raises EOFError after the last, PromptError if it is not UTF-8, SettingsError if it has no end."""
    from edge.runtime.errors import SettingsError
    from edge.runtime.unicode import check_text, decode_text

    what = "the line"
    if not sys.stdin.isatty():
        line = sys.stdin.buffer.readline(MAX_LINE_BYTES)
        if len(line) == MAX_LINE_BYTES:
            raise SettingsError(f"a line of {MAX_LINE_BYTES:,} bytes or more is not a message; send shorter ones")
        if line:
            return decode_text(line, what)
        raise EOFError
    try:
        return check_text(input("> "), what)
    except UnicodeDecodeError as error:
        return decode_text(error.object, what)


def _answer(session: ChatSession, line: str, settings: options.Keywords) -> Stats | None:
    """Stream one answer; Ctrl-C and a refused message end it and not the chat."""
    from edge.commands.console import show_answer
    from edge.runtime.errors import ContextLengthError, GenerationError

    dropped = session.dropped_messages
    try:
        with closing(session.send(line, **settings)) as chunks:
            last = show_answer(chunks)
    except KeyboardInterrupt:
        print("\n(stopped)", file=sys.stderr)
        return None
    except GenerationError as error:
        full = isinstance(error, ContextLengthError) and session.num_turns > 0 and session.context_policy == "error"
        advice = "; or /reset, which forgets the conversation, or --context-policy drop-oldest" if full else ""
        print(f"edge: {error}{advice}", file=sys.stderr)
        return None
    if dropped := session.dropped_messages - dropped:
        print(f"edge: the context was full: the oldest {dropped} messages were dropped", file=sys.stderr)
    return None if last is None else last.stats


def _figures(stats: Stats, session: ChatSession) -> str:
    return (
        f"{stats.prompt_tokens} prompt tokens ({stats.cached_tokens} from the cache), "
        f"{stats.new_tokens} new, first after {stats.ttft_ms:.0f} ms, "
        f"{stats.tokens_per_second:.1f} tok/s, {session.num_tokens} in the conversation"
    )
