"""What somebody types while an answer is written: /stop, or the next lines.

In: a terminal. Out: whether to stop; other lines go to the reader. Knows nothing about answers. Where a terminal cannot
be asked whether something was typed, as on Windows, nothing is found, and typed lines are read after the answer as
ever.
"""

from __future__ import annotations

import os
import select
import sys

from edge.terminal.reader import Reader

STOP = "/stop"
_MOST = 65536  # bytes of a line that a terminal hands over; Linux has 4,095


class TypedAhead:
    """Looks for lines between the pieces of an answer."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._watches = reader.is_terminal and sys.platform != "win32" and sys.stdin.isatty()

    def stops(self) -> bool:
        """Whether /stop was typed."""
        while self._watches:
            descriptor = sys.stdin.fileno()
            if not select.select([descriptor], [], [], 0)[0]:
                return False
            data = os.read(descriptor, _MOST)
            if not data:  # Ctrl-D, which ends the chat after the answer
                self._reader.put(None)
                self._watches = False
                return False
            for line in data.decode(sys.stdin.encoding or "utf-8", "surrogateescape").splitlines():
                if line.strip() == STOP:
                    return True
                self._reader.put(line)
        return False
