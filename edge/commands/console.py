"""What verbs show: JSON, sizes, tables, progress bars on stderr, the streamed answer."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from edge.commands import tables
from edge.runtime import sizes

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Progress as Bar

    from edge.export.stages import Progress
    from edge.runtime.chunk import Chunk

print_table, human_bytes = tables.print_table, sizes.human_bytes


def print_json(value: object) -> None:
    """One JSON object on one line of stdout, in ASCII where its encoding lacks a letter.

    What JSON has no number for, as Python has NaN and infinity, is null.
    """
    finite = json.loads(json.dumps(value), parse_constant=lambda _: None)
    text = json.dumps(finite, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(finite)
    print(text)


def show_answer(chunks: Iterable[Chunk], *, raw: bool = False, shows_thinking: bool = False) -> Chunk | None:
    """Stream an answer to stdout; returns the last chunk. Unless `raw`, without the blank that GLM starts one with.

    What it was thought over goes to stderr: all of it, or how much it is where that is a terminal.
    """
    from edge.commands.streams import unguarded
    from edge.terminal.status_line import StatusLine
    from edge.terminal.thinking import ThinkingView

    line = StatusLine(unguarded)
    thinking = ThinkingView(line, shows=shows_thinking)
    started, last = raw, None
    try:
        for last in _with_progress(chunks):
            thinking.take(last)
            text = last.text if started else last.text.lstrip()
            started = started or bool(text)
            print(text, end="", flush=True)
    finally:
        line.hide()
    print(flush=True)
    return last


def _with_progress(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """The chunks that follow a long prompt, whose reading is a bar on stderr; nothing if stderr is not a terminal."""
    with ExitStack() as reading:
        show: Callable[[float, float], None] | None = None
        for chunk in chunks:
            if chunk.prefill is None:
                reading.close()
                yield chunk
            else:
                if show is None:  # for long prompts alone: importing rich takes longer than reading a short one
                    show = reading.enter_context(counting_bar(f"reading {chunk.prefill.total:,} tokens"))
                show(chunk.prefill.done, chunk.prefill.total)


@contextmanager
def terminal_bar(description: str = "reading") -> Iterator[Bar | None]:
    """A bar on stderr for one task: what is done, share, time, and the field `left`.

    None if that is not a terminal, or if rich is left out, as a slim installation does.
    """
    if not sys.stderr.isatty() or find_spec("rich") is None:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    from edge.commands.streams import unguarded

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    # What is printed meanwhile goes through the guards, and not through the bar.
    console = Console(file=unguarded(sys.stderr))
    with Bar(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False) as bar:
        bar.add_task(description, total=None, left="")
        yield bar


@contextmanager
def counting_bar(description: str) -> Iterator[Callable[[float, float], None]]:
    """A bar that is told how much is done, and of how much."""
    with terminal_bar(description) as bar:

        def show(done: float, total: float) -> None:
            if bar is not None:
                bar.update(bar.task_ids[0], completed=done, total=total)

        yield show


def _part(progress: Progress) -> str:
    """What of an export is done, counted in what it is made of."""
    from edge.export.stages import PICTURES

    kind = "layers for pictures" if progress.stage.startswith(PICTURES) else "blocks"
    return f"{progress.blocks}/{progress.num_blocks} {kind}"


@contextmanager
def export_progress() -> Iterator[Callable[[Progress], None]]:
    """A bar with blocks, bytes, share and time left."""
    started = time.perf_counter()
    with terminal_bar() as bar:

        def show(progress: Progress) -> None:
            if bar is None:
                return
            fresh, left = progress.done - progress.resumed, progress.total - progress.done
            seconds = (time.perf_counter() - started) * left / fresh if fresh else 0.0
            bar.update(
                bar.task_ids[0],
                description=f"{_part(progress)}, {human_bytes(progress.written)} written",
                completed=progress.done,
                total=progress.total,
                left=f"{seconds:.0f} s left",
            )

        yield show
