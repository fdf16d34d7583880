"""Answer a file of requests.

FILE has OpenAI's batch format: one JSON object a line, with custom_id, url (/v1/chat/completions or /v1/completions)
and body. OUT gets a line for each, in the same order, once all are done; what is done before is kept beside it. After
an interrupt, a crash or a full disk, the same command resumes there.

examples:
  edge batch glm4-int4 questions.jsonl answers.jsonl
  edge batch glm4-int4 questions.jsonl answers.jsonl --reproducible --concurrency 8
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import TYPE_CHECKING

from edge.commands import options, reuse
from edge.commands.help import told, usual
from edge.commands.sampling import add_usual_sampling, sampling_fields, say_sampling

if TYPE_CHECKING:
    from edge.batch.batch import Batch, Progress, Show, Summary
    from edge.runtime.vision.progress import OnPicture, PictureProgress

SAY_EVERY_S = 60.0  # where stderr is not a terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from edge.batch.settings import BatchSettings

    options.add_bundle(parser)
    parser.add_argument("requests", metavar="FILE", help="the requests, one JSON object a line")
    parser.add_argument("out", metavar="OUT", help="the file for the answers")
    parser.add_argument("--force", action="store_true", help="replace OUT, and drop what another batch has left for it")
    parser.add_argument(
        "--concurrency",
        type=int,
        metavar="N",
        default=usual(BatchSettings, "concurrency"),
        help=told("requests that are in work at once", usual(BatchSettings, "concurrency")),
    )
    add_usual_sampling(parser, usual(BatchSettings, "sampling"), "request")
    options.add_json(parser)
    options.add_template(parser)
    options.add_engine(parser)
    reuse.add_prefixes(parser)


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    import edge
    from edge.batch.batch import Batch
    from edge.batch.settings import BatchSettings
    from edge.runtime.errors import PromptError

    settings = BatchSettings(args.concurrency, args.sampling)
    if args.requests == "-":
        raise PromptError("the requests are read more than once, and standard input is not; save them to a file first")
    engine = reuse.prefix_settings(args, options.engine_settings(args))
    started = time.perf_counter()
    with Batch(Path(args.requests), Path(args.out), settings, force=args.force) as batch:
        with edge.load(args.bundle, **engine, chat_template=args.chat_template) as llm, _told_what_is_kept(batch):
            reuse.prepare(llm, args)
            reuse.pin_system(llm, args)
            loaded = time.perf_counter()
            decisive = {"edgeglm": edge.__version__, "threads": str(args.threads)}
            if args.chat_template is not None:
                decisive["chat template"] = sha256(llm.chat_template.source.encode()).hexdigest()
            say_sampling(llm, {"sampling": args.sampling})
            sampling = sampling_fields(llm, {"sampling": args.sampling})
            with _progress() as (show, look):
                summary = batch.run(llm, decisive, show, look)
        _tell(args, summary, sampling, time.perf_counter() - loaded, loaded - started)
    return 0


def _tell(
    args: argparse.Namespace, summary: Summary, sampling: options.Keywords, seconds: float, load_s: float
) -> None:
    from edge.commands.console import print_json

    totals = summary.totals
    if summary.other_models:
        names = ", ".join(map(repr, summary.other_models))
        print(f"edge: requests name {names}; {args.bundle} has answered them", file=sys.stderr)
    if totals.failed:
        print(
            f"edge: {totals.failed} of {totals.lines} lines have an error; look for a status_code other than 200",
            file=sys.stderr,
        )
    if args.json:
        print_json(
            {
                "out": args.out,
                "lines": totals.lines,
                "failed": totals.failed,
                "resumed": summary.resumed,
                "prompt_tokens": totals.read,
                "completion_tokens": totals.written,
                "sampling": sampling,
                "load_s": round(load_s, 3),
                "seconds": round(seconds, 3),
            }
        )
    elif summary.nothing_to_do:
        print(f"{args.out} is complete; there is nothing to do")
    else:
        before = f", {summary.resumed} of them before" if summary.resumed else ""
        print(f"{args.out}: {totals.lines} lines{before}, {totals.written} tokens written, {seconds:.1f} s")


@contextmanager
def _progress() -> Iterator[tuple[Show, OnPicture]]:
    """A bar on stderr; a line now and then where that is not a terminal. The second is told of pictures."""
    from edge.commands.console import terminal_bar
    from edge.terminal.looking import looking_text

    said, count = time.monotonic(), ""
    with terminal_bar("answering") as bar:

        def say(text: str) -> None:
            nonlocal said
            if time.monotonic() - said >= SAY_EVERY_S:
                said = time.monotonic()
                print(f"edge: {text}", file=sys.stderr)

        def show(progress: Progress) -> None:
            nonlocal count
            left = "" if progress.left_s is None else f"{progress.left_s:.0f} s left"
            count = f"{progress.done}/{progress.total} lines"
            if bar is None:
                say(f"{count}{left and f', {left}'}")
            else:
                bar.update(bar.task_ids[0], description=count, completed=progress.done, total=progress.total, left=left)

        def look(progress: PictureProgress) -> None:
            text = "" if progress.kept else f", {looking_text('a picture', progress)}"
            if bar is None:
                say(f"{count}{text}")
            else:
                bar.update(bar.task_ids[0], description=f"{count}{text}")

        yield show, look


@contextmanager
def _told_what_is_kept(batch: Batch) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if batch.journal_path.exists():
            print(
                f"edge: what is done is kept in {batch.journal_path}; the same command resumes there", file=sys.stderr
            )
        raise
