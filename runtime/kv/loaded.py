"""The prefixes that a model was given, and how much of them a prompt begins with.

In: the cache keys of prefixes, their files where there are any; later, the keys of prompts. Out: the file that a prompt
can start from, and which prefix it is most like. Knows nothing about requests, or what is computed.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from edge.runtime.files import shown_path
from edge.runtime.kv.prefix import common_prefix
from edge.runtime.kv.snapshot import Snapshot


class PrefixMatch(NamedTuple):
    """How much of a prefix a prompt begins with."""

    path: Path
    shared: int  # tokens
    tokens: int  # of the prefix

    @property
    def whole(self) -> bool:
        """Whether the prompt begins with all of it."""
        return self.shared == self.tokens

    @property
    def told(self) -> str:
        """What somebody should know who expected all of it to be used."""
        path = shown_path(self.path)
        return (
            f"the prompt has {self.shared} of the {self.tokens} tokens of {path} in common, and the rest was computed; "
            f"`edge prefix show {path}` tells how a prompt has to begin"
        )


class LoadedPrefixes:
    """The prefixes of one model, each known by its path."""

    def __init__(self) -> None:
        self.snapshots: list[Snapshot] = []  # prompts that begin like one of these start from it
        self._keys: dict[Path, list[int]] = {}  # of all prefixes, with or without a file

    def add(self, path: Path, keys: list[int], snapshot: Snapshot | None) -> None:
        """Take a prefix in the place of an earlier one of the same path."""
        self.snapshots = [other for other in self.snapshots if other.path != path]
        if snapshot is not None:
            self.snapshots.append(snapshot)
        self._keys[path] = keys

    def match(self, keys: list[int]) -> PrefixMatch | None:
        """Return the longest prefix that a prompt begins with, else the one of which it has most; None without any."""
        found = [PrefixMatch(path, common_prefix(known, keys), len(known)) for path, known in self._keys.items()]
        return max(found, key=lambda match: (match.whole, match.shared), default=None)

    def longest_file(self, keys: list[int], limit: int) -> tuple[int, Snapshot | None]:
        """Return how many of the first `limit` keys a file has at most, and that file."""
        best: tuple[int, Snapshot | None] = (0, None)
        for stored in self.snapshots:
            shared = min(common_prefix(stored.keys, keys), limit)
            if shared > best[0]:
                best = shared, stored
        return best
