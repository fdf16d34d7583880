"""A text file of ours in the user's cache folder: a list of lines of one form, the oldest of which are forgotten.

In: its name, the form of its lines, and bounds. Out: the lines; lines are added at the end. Where the folder cannot be
read or written, or the file is somebody else's, there are no lines, and none is kept. Knows nothing about what a line
means.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass

from edge.runtime.atomic import write_atomically
from edge.runtime.cache_folder import cache_folder
from edge.runtime.errors import OutputError
from edge.runtime.files import is_file, read_file


@dataclass(frozen=True, slots=True)
class CacheLines:
    """One file."""

    name: str
    form: re.Pattern[str]  # of a whole line
    most: int  # lines to keep
    line_bytes: int  # a larger file than `most` of these is not ours

    def read(self) -> list[str]:
        """Return the lines, oldest first."""
        with contextlib.suppress(OutputError):
            return self._read()
        return []

    def add(self, line: str, instead_of: Callable[[str], bool]) -> None:
        """Add a line and drop those that it replaces; do nothing if the file cannot be written, or is not ours."""
        assert self.form.fullmatch(line), "a line of another form"
        with contextlib.suppress(OutputError, OSError):
            folder = cache_folder()
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lines = [other for other in self._read() if not instead_of(other)][1 - self.most :]
            write_atomically(folder / self.name, ["".join(f"{each}\n" for each in (*lines, line)).encode()])

    def _read(self) -> list[str]:
        """Raises OutputError for a file that is not ours."""
        path = cache_folder() / self.name
        if not is_file(path):
            return []
        content = read_file(path, OutputError, "remove it", max_bytes=self.most * self.line_bytes)
        lines = content.decode("ascii", "replace").splitlines()
        if not all(self.form.fullmatch(line) for line in lines):
            raise OutputError(f"{path} exists and holds something else; remove it")
        return lines
