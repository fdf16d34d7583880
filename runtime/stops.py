"""Stop strings in streamed text.

In: pieces of text. Out: the part that is safe to show. Text is held back exactly as long as it could still become a
stop string, which may span any number of tokens. Knows nothing about tokens.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Cuts a stream of text at the first stop string; the stop string itself is not shown."""

    def __init__(self, stops: Sequence[str]) -> None:
        assert not isinstance(stops, str), "a text is not a list of stop strings"
        assert all(stops), "an empty stop string"
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None  # the stop string that ended the text

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found; nothing more is shown then."""
        return self.found is not None

    def push(self, text: str) -> str:
        """Add text; return what may be shown now."""
        if self.stopped or not self._stops:
            return "" if self.stopped else text
        self._held += text
        found = [(index, stop) for stop in self._stops if (index := self._held.find(stop)) >= 0]
        if found:
            index, self.found = min(found)
            shown, self._held = self._held[:index], ""
            return shown
        keep = max(open_prefix(self._held, stop) for stop in self._stops)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def finish(self) -> str:
        """Return the held text, at the end of the stream."""
        shown, self._held = self._held, ""
        return shown


def open_prefix(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` with which `stop` begins."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
