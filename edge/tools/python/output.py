"""Printed text of one call, with a limit: the beginning and the end are kept, and the middle is counted.

In: bytes as they come. Out: text. Knows nothing about who prints.
"""

from __future__ import annotations


class Output:
    """At most `limit` bytes are kept, half of them from the beginning."""

    def __init__(self, limit: int) -> None:
        self._first_limit = limit // 2
        self._last_limit = limit - self._first_limit
        self._first = bytearray()
        self._last = bytearray()
        self.total = 0  # bytes

    def add(self, data: bytes) -> None:
        self.total += len(data)
        room = self._first_limit - len(self._first)
        self._first += data[:room]
        self._last += data[room:]
        if len(self._last) > 2 * self._last_limit:  # seldom, so that each byte is moved once or twice
            del self._last[: -self._last_limit]

    def text(self) -> str:
        last = bytes(self._last[-self._last_limit :])
        left_out = self.total - len(self._first) - len(last)
        if not left_out:
            return (bytes(self._first) + last).decode("utf-8", "replace")
        first = self._first.decode("utf-8", "ignore")  # "ignore": half a character where it is cut
        return f"{first}\n[{left_out:,} bytes of output are left out here]\n{last.decode('utf-8', 'ignore')}"
