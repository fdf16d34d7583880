"""Answer one prompt.

The answer is streamed to stdout. PROMPT is one user message; with --raw, text to continue. With --messages, it is the
next one of a conversation, and may be left out if that ends with a question. A PROMPT that is left out is read from
stdin, if something is piped in. Unless --sampling model or another option says otherwise, each token is the likeliest
one: the same prompt gets the same answer.

examples:
  edge run glm4-int4 "What is the capital of France?"
  edge run glm4-int4 --raw "Once upon a time" --max-new-tokens 64
  git diff | edge run glm4-int4 --system "Summarize this change."
  edge run glm4-int4 "Where is the exit?" --system-file kiosk.txt --prefix kiosk.prefix
  edge run glm4-int4 "Correct the spelling: $(cat letter.txt)" --speculate
  edge run glm4-int4 "Which risks does it name?" --file report.pdf
  edge run glm4v-int4 "What does the sign say?" --image photo.jpg
  edge run glm4-int4 "And in English?" --messages monday.json
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from edge.commands import documents, messages, options, pictures, reuse
from edge.commands.sampling import sampling_fields, say_sampling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge.runtime.llm import LLM
    from edge.runtime.messages import Message
    from edge.runtime.stream import Stream


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_bundle(parser)
    prompt = parser.add_argument(
        "prompt",
        metavar="PROMPT",
        help="the user message; - reads it from stdin, and so does none if one is piped in; --messages can do without",
    )
    prompt.required = False  # nargs="?" would not find it after an option, in Python 3.11
    asked = parser.add_argument_group("what is asked")
    asked.add_argument("--raw", action="store_true", help="continue PROMPT as it is, without the chat template")
    messages.add_messages(asked)
    documents.add_documents(asked)
    pictures.add_pictures(asked, "PROMPT is about")
    options.add_json(parser)
    pictures.add_show_thinking(parser)
    options.add_verbose(parser)
    options.add_engine(parser)
    options.add_generation(parser, "greedy")
    reuse.add_reuse(parser)


def run(args: argparse.Namespace) -> int:
    from edge.api import load
    from edge.documents.document import prompt_with
    from edge.runtime.errors import SettingsError
    from edge.runtime.messages import Message
    from edge.runtime.settings import generation_settings
    from edge.terminal.pictures import with_pictures

    for option, given in (
        ("--system", args.system),
        ("--system-file", args.system_file),
        ("--file", args.files),
        ("--image", args.images),
        ("--messages", args.messages),
        ("--chat-template", args.chat_template),
    ):
        if args.raw and given not in (None, []):
            raise SettingsError(f"{option} needs the chat template, which --raw leaves out; give one of the two")
    settings = options.generation_settings(args)
    generation_settings(**settings)  # refuse a bad value before a pipe is waited for, and before loading the model
    before = messages.before(args)
    needs_prompt = args.prompt is not None or bool(args.files or args.images) or not messages.ends_with_question(before)
    prompt = options.argument_or_stdin(args.prompt, "PROMPT", "the user message") if needs_prompt else ""
    engine = options.engine_settings(args, messages.text_of(before) + prompt)
    engine["expected_prompt_tokens"] += documents.check_documents(args) + pictures.check_pictures(args)

    started = time.perf_counter()
    llm = load(args.bundle, **reuse.reuse_settings(args, engine))
    reuse.prepare(llm, args)
    load_s = time.perf_counter() - started
    with llm:
        read, seen = documents.read_documents(args, llm, prompt, before), pictures.read_pictures(args, llm)
        say_sampling(llm, settings)
        asked = list(before)
        if needs_prompt and not args.raw:
            asked.append(Message("user", with_pictures(seen, prompt_with(read, prompt))))
        with _answer(llm, prompt, asked, settings, raw=args.raw) as stream:
            if args.json:
                _print_json(llm, stream, settings, load_s)
            else:
                _show(args, llm, stream, settings, load_s)
    return 0


def _answer(llm: LLM, prompt: str, asked: Sequence[Message], settings: options.Keywords, *, raw: bool) -> Stream:
    """Begin the answer, once its pictures were looked at."""
    if raw:
        return llm.generate(prompt, **settings)
    looking = pictures.looking_at(asked)
    try:
        return llm.chat(asked, on_picture=looking, **settings)
    finally:
        looking.end()


def _show(args: argparse.Namespace, llm: LLM, stream: Stream, settings: options.Keywords, load_s: float) -> None:
    from edge.commands.console import show_answer
    from edge.runtime.settings import generation_settings
    from edge.terminal.answers import figures_of, why_it_ended

    last = show_answer(stream, raw=args.raw, shows_thinking=args.show_thinking)
    reuse.tell_unused(None if last is None else last.stats)
    if last is None or last.stats is None:
        return
    why = why_it_ended(last.finish_reason, last.stats.new_tokens, generation_settings(**settings), drops=True)
    if why and sys.stderr.isatty():
        print(f"({why})", file=sys.stderr)
    if args.verbose:
        info = llm.engine.info
        lengths = f"; {info.context_told}" if info.max_prompt is not None else ""
        print(f"({figures_of(last.stats)}; {info.name}, loaded in {load_s:.1f} s{lengths})", file=sys.stderr)


def _print_json(llm: LLM, stream: Stream, settings: options.Keywords, load_s: float) -> None:
    from edge.commands.console import print_json

    text = reasoning = ""
    ids: list[int] = []
    for chunk in stream:
        text, reasoning = text + chunk.text, reasoning + chunk.reasoning
        ids += chunk.token_ids
    reuse.tell_unused(chunk.stats)
    answer: dict[str, Any] = {"text": text, "token_ids": ids, "finish_reason": chunk.finish_reason}
    if reasoning:
        answer["reasoning"] = reasoning
    answer["sampling"] = sampling_fields(llm, settings)
    if chunk.stats is not None:
        answer |= {
            "prompt_tokens": chunk.stats.prompt_tokens,
            "cached_tokens": chunk.stats.cached_tokens,
            "prefix_tokens": 0 if chunk.stats.prefix is None else chunk.stats.prefix.shared,
            "new_tokens": chunk.stats.new_tokens,
            "drafted_tokens": chunk.stats.drafted_tokens,
            "accepted_tokens": chunk.stats.accepted_tokens,
            "engine": llm.engine.info.name,
            "load_s": round(load_s, 3),
            "ttft_ms": round(chunk.stats.ttft_ms, 1),
            "tokens_per_second": round(chunk.stats.tokens_per_second, 2),
        }
    print_json(answer)
