"""How far a model is with the pictures of a prompt: one line on stderr, with the time that is left.

In: what the tower says between its parts. Out: a line that is drawn again and again; where stderr is not a terminal, a
line now and then. Knows nothing about towers.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

from edge.runtime.vision.progress import PictureProgress
from edge.terminal.status_line import StatusLine

SAY_EVERY_S = 60.0  # where nothing is drawn
_SECONDS = 90.0  # more are told in minutes


class Looking:
    """Told of the progress of one prompt's pictures, one after another."""

    def __init__(self, names: Sequence[str], line: StatusLine, clock: Callable[[], float] = time.monotonic) -> None:
        """names: of the prompt's pictures, in their order; none if they are not known."""
        self._names, self._line, self._clock = names, line, clock
        self._index = 0  # of the picture that is looked at
        self._said = clock()

    def __call__(self, progress: PictureProgress) -> None:
        """Show it."""
        if not progress.kept:
            self._show(looking_text(self._name, progress))
        if progress.done >= progress.total:
            self._index += 1

    def end(self) -> None:
        """Take the line away."""
        self._line.hide()

    @property
    def _name(self) -> str:
        return self._names[self._index] if self._index < len(self._names) else "a picture"

    def _show(self, text: str) -> None:
        if self._line.is_drawn:
            self._line.show(text)
        elif self._clock() - self._said >= SAY_EVERY_S:
            self._said = self._clock()
            print(f"edge: {text}", file=sys.stderr, flush=True)


def looking_text(name: str, progress: PictureProgress) -> str:
    """Return a line like "looking at cat.png: layer 12 of 63, about 4 min left"."""
    if not progress.done:
        return f"looking at {name} ..."
    return f"looking at {name}: layer {progress.done} of {progress.total}{_left(progress.seconds_left)}"


def _left(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f", about {seconds:.0f} s left" if seconds < _SECONDS else f", about {seconds / 60:.0f} min left"
