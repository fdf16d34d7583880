"""What `edge profile run` shows of a sweep while it runs: lines, a bar, and a report of what is measured.

In: a sweep's progress. Out: text on stderr, and the report's files after each setting. Knows nothing about measuring.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from edge.commands.console import terminal_bar
from edge.profiles.record import read_profile
from edge.profiles.report import write_report
from edge.profiles.spread import with_spread
from edge.profiles.sweep_progress import SweepProgress
from edge.runtime.errors import EdgeError
from edge.runtime.terminal_text import visible


@contextmanager
def shown_progress(out: Path) -> Iterator[Callable[[SweepProgress], None]]:
    """A line on stderr for each cell, and a report with it; where stderr is a terminal, below them a bar."""
    with _lines_and_bar() as show:

        def tell(progress: SweepProgress) -> None:
            show(progress)
            # Drawing takes a core for seconds, and the report of the end has it all.
            if (progress.row is not None or progress.failure is not None) and not progress.is_timing:
                _report_so_far(out)

        yield tell


@contextmanager
def _lines_and_bar() -> Iterator[Callable[[SweepProgress], None]]:
    """The bar has the step and the time left."""
    with terminal_bar() as bar:
        if bar is None:
            yield _tell
            return
        task = bar.task_ids[0]

        def show(progress: SweepProgress) -> None:
            if line := _line(progress):
                bar.console.print(visible(line), markup=False, highlight=False)
            left = "" if progress.seconds_left is None else f"{progress.seconds_left:.0f} s left"
            bar.update(
                task,
                description=f"{progress.step}: {progress.phase}",
                completed=progress.steps_done + progress.share,
                total=max(progress.num_steps, 1),
                left=left,
            )

        yield show


def _tell(progress: SweepProgress) -> None:
    if line := _line(progress):
        print(line, file=sys.stderr, flush=True)


def _line(progress: SweepProgress) -> str:
    """What is left on the screen of a finished cell; empty while one is being measured."""
    row, done = progress.row, f"[{progress.steps_done}/{progress.num_steps}]"
    if progress.failure is not None:
        return f"{done} {progress.failure.name}: failed: {progress.failure.error}"
    if row is None:
        return ""
    tps = row.decode_tokens_per_second
    speed = "" if tps is None else f", {with_spread(tps, row.decode_spread, 1)} tok/s"
    return f"{done} {row.name}: KLD {row.accuracy.kld:.5f}, {row.weight_bytes:,} bytes{speed}"


def _report_so_far(out: Path) -> None:
    """Tables, page and plots of what is measured; hours of work do not end because a page cannot be written."""
    try:
        write_report(read_profile(out), out)
    except EdgeError as error:
        print(f"edge: the report is not up to date: {error}", file=sys.stderr, flush=True)
