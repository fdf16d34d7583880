"""What verbs show: sizes, tables, progress bars on stderr, the streamed answer."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Progress as Bar

    from edge.export.stages import Progress
    from edge.runtime.chunk import Chunk

NUMBER = re.compile(r"[\d.,]+( [kMG]?B)?")  # with or without a unit of bytes


def print_json(value: Any) -> None:
    """One JSON object on one line of stdout."""
    print(json.dumps(value, ensure_ascii=False))


def human_bytes(count: float) -> str:
    """`85.8 MB`; decimal units, as disks are sold."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def peak_rss_bytes() -> int | None:
    """Largest resident memory of this process so far; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def print_table(header: list[str], rows: Iterable[Iterable[object]]) -> None:
    """Aligned columns on stdout; numbers to the right."""
    table = [header, *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(header))]
    for row in table:
        cells = (c.rjust(w) if NUMBER.fullmatch(c) else c.ljust(w) for c, w in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def show_answer(chunks: Iterable[Chunk], *, raw: bool = False) -> Chunk | None:
    """Stream an answer to stdout; returns the last chunk. Unless `raw`, without the blank that GLM starts one with."""
    started, last = raw, None
    for last in _with_progress(chunks):
        text = last.text if started else last.text.lstrip()
        started = started or bool(text)
        print(text, end="", flush=True)
    print(flush=True)
    return last


def _with_progress(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """The chunks behind a long prompt, whose reading is a bar on stderr; nothing where stderr is no terminal."""
    with ExitStack() as reading:
        bar: Bar | None = None
        for chunk in chunks:
            if chunk.prefill is None:
                reading.close()
                yield chunk
            elif sys.stderr.isatty():
                if bar is None:
                    bar = reading.enter_context(_reading_bar(chunk.prefill.total))
                bar.update(bar.task_ids[0], completed=chunk.prefill.done)


def _reading_bar(num_tokens: int) -> Bar:
    """Made for long prompts alone: importing rich takes longer than reading a short one."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    bar = Bar(console=Console(stderr=True), transient=True)
    bar.add_task(f"reading {num_tokens:,} tokens", total=num_tokens)
    return bar


def work_bar() -> Bar:
    """Of one task that takes long, on stderr: what is done, share, time, and the field `left`."""
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    bar = Bar(*columns, console=Console(stderr=True), transient=True)
    bar.add_task("reading", total=None, left="")
    return bar


@contextmanager
def export_progress() -> Iterator[Callable[[Progress], None]]:
    """A progress bar on stderr with blocks, bytes, share and time left; nothing where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield lambda _progress: None
        return
    started = time.perf_counter()
    with work_bar() as bar:
        task = bar.task_ids[0]

        def show(progress: Progress) -> None:
            fresh, left = progress.done - progress.resumed, progress.total - progress.done
            seconds = (time.perf_counter() - started) * left / fresh if fresh else 0.0
            bar.update(
                task,
                description=f"{progress.blocks}/{progress.num_blocks} blocks, {human_bytes(progress.written)} written",
                completed=progress.done,
                total=progress.total,
                left=f"{seconds:.0f} s left",
            )

        yield show
