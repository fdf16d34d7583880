"""The file of requests: one JSON object a line, found again by its place.

In: a path. Out: `Lines`, which keeps where each line begins, and not what is in it: a million lines take 24 MB. Lines
end as on any system; empty ones do not count, and a byte-order mark before the first is skipped. Knows nothing about
what a request is, except that its `custom_id` names it.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import BinaryIO

import numpy as np

from edge.runtime.errors import PromptError, shown
from edge.runtime.files import open_file, shown_path
from edge.runtime.unicode import marked_encoding

MAX_BYTES = 32 << 20  # of one line, as a server with a model for pictures would take it
_ADVICE = "give a file with one JSON object a line"
_LISTED = 5  # lines that an error names


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the file."""

    number: int  # from 1, as editors count
    custom_id: str | None  # None: the line is not JSON, or too long
    raw: bytes | None  # None: too long


class Lines:
    """The lines of a file that stays as it is. Raises PromptError, also for a custom_id that is missing or repeated."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open_file(path, PromptError, _ADVICE)
        self._state = _state_of(self._file)
        self._begins, self._numbers = array("q"), array("q")
        try:
            self.sha256 = self._scan()
            if not len(self):
                raise PromptError(f"{shown_path(path)} has no lines; {_ADVICE}")
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._begins)

    def __getitem__(self, index: int) -> Line:
        """Raises PromptError if the file has changed."""
        if _state_of(self._file) != self._state:
            raise PromptError(f"{shown_path(self.path)} was changed while it was read; run the command again")
        self._file.seek(self._begins[index])
        raw = self._file.readline(MAX_BYTES + 1)
        return _line(self._numbers[index], raw)

    def __iter__(self) -> Iterator[Line]:
        return (self[index] for index in range(len(self)))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _scan(self) -> str:
        """Find the lines; return the sha256 of the file."""
        digest, hashes, nameless = hashlib.sha256(), array("Q"), list[int]()
        named = array("q")  # lines with a hash
        end = 0
        for number in count(1):
            begin, part = end, self._file.readline(MAX_BYTES + 1)
            raw = part
            while part:
                digest.update(part)
                end += len(part)
                part = b"" if part.endswith(b"\n") else self._file.readline(MAX_BYTES)
            if not raw:
                break
            if not begin and (marked := marked_encoding(raw)):
                mark, encoding = marked
                if encoding != "utf-8":
                    name = encoding[:6].upper()
                    raise PromptError(
                        f"{shown_path(self.path)} is {name}, as PowerShell's > writes it; save it as UTF-8"
                    )
                begin, raw = len(mark), raw[len(mark) :]
            if not raw.strip():
                continue
            custom_id = _line(number, raw).custom_id
            if custom_id:
                named.append(len(self))
                hashes.append(int.from_bytes(hashlib.blake2b(custom_id.encode(), digest_size=8).digest(), "little"))
            elif custom_id is not None:
                nameless.append(number)
            self._begins.append(begin)
            self._numbers.append(number)
        if nameless:
            raise PromptError(
                f"{shown_path(self.path)}: {_listed(nameless)} without a custom_id, expected a text that no other line "
                'has, like {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {...}}'
            )
        self._check_unique(named, hashes)
        return digest.hexdigest()

    def _check_unique(self, named: array[int], hashes: array[int]) -> None:
        """Compare the texts of lines whose hashes are equal."""
        if not hashes:
            return
        values = np.frombuffer(hashes, np.uint64)
        order = np.argsort(values, kind="stable")
        sorted_values = values[order]
        for place in np.flatnonzero(sorted_values[1:] == sorted_values[:-1]):
            first, second = self[named[order[place]]], self[named[order[place + 1]]]
            if first.custom_id == second.custom_id:
                raise PromptError(
                    f"{shown_path(self.path)}: lines {first.number} and {second.number} have the same custom_id, "
                    f"{shown(first.custom_id)}; give each line its own"
                )


def _line(number: int, raw: bytes) -> Line:
    raw = raw.rstrip(b"\r\n")
    return Line(number, None, None) if len(raw) > MAX_BYTES else Line(number, _custom_id(raw), raw)


def _custom_id(raw: bytes) -> str | None:
    """Return the name of a line; empty if it has none; None if it is not an object of JSON.

    Less strict than the reading of the request: whatever is wrong with that, its error should come under its name.
    """
    try:
        found = json.loads(raw)
        if not isinstance(found, dict):
            return None
        custom_id = found.get("custom_id")
        return custom_id if isinstance(custom_id, str) and custom_id.encode() else ""
    except UnicodeEncodeError:  # half a character
        return ""
    except (ValueError, RecursionError):
        return None


def _listed(numbers: list[int]) -> str:
    most = numbers[:_LISTED]
    more = f" and {len(numbers) - len(most):,} more" if len(numbers) > len(most) else ""
    return f"line{'s' * (len(numbers) > 1)} {', '.join(map(str, most))}{more} {'are' if len(numbers) > 1 else 'is'}"


def _state_of(file: BinaryIO) -> tuple[int, int]:
    state = os.fstat(file.fileno())
    return state.st_size, state.st_mtime_ns
