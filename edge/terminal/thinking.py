"""What a model thinks before it answers, on stderr: folded to a line that counts, or as it is written.

In: the chunks of an answer. Out: the line, and what it came to; stdout has the answer alone. Knows nothing about tags.
"""

from __future__ import annotations

from edge.runtime.chunk import Chunk
from edge.terminal.status_line import StatusLine


class ThinkingView:
    """Shows the thinking of one answer. Give it each chunk before the chunk's text is written."""

    def __init__(self, line: StatusLine, *, shows: bool = False) -> None:
        """shows: write all of it, rather than how much it is."""
        self._line, self._shows = line, shows
        self._tokens = 0
        self.is_open = False  # whether the line below is in use for it

    def take(self, chunk: Chunk) -> None:
        """Show a chunk."""
        if chunk.reasoning and not self.is_open:
            self.is_open = True
        if not self.is_open:
            return
        if not chunk.text:
            self._tokens += len(chunk.token_ids)
        if self._shows:
            self._line.aside(chunk.reasoning)
        else:
            self._line.show(f"thinking ... {self._tokens:,} tokens")
        if chunk.text.strip() or chunk.calls or chunk.finish_reason is not None:
            self.end()

    def end(self) -> None:
        """The thinking is over, or the answer was stopped within it."""
        if not self.is_open:
            return
        self.is_open = False
        if self._shows:
            self._line.aside("\n\n")
        elif self._line.is_drawn:
            self._line.aside(f"(thought for {self._tokens:,} tokens)\n")
