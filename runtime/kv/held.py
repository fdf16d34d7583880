"""Sequences that somebody reads while steps go on: to write them to a file, or until they are pinned.

In: sequences. Out: a `Held` for each, whose holder need not give it back: one that nobody has any more is swept up, and
an interrupt has no code to skip. Knows nothing about requests or engines.
"""

from __future__ import annotations

import weakref

from edge.runtime.kv.pool import CacheSequence


class Held:
    """A sequence that is kept as long as somebody has this."""

    __slots__ = ("__weakref__", "sequence")

    def __init__(self, sequence: CacheSequence) -> None:
        self.sequence = sequence


class HeldSequences:
    """All that are held. Not for several threads at once."""

    def __init__(self) -> None:
        self._entries: list[tuple[weakref.ref[Held], CacheSequence]] = []

    @property
    def blocks(self) -> list[int]:
        """Every block of them, once for each, for the pool's integrity check."""
        return [block for _, sequence in self._entries for block in sequence.block_table]

    def hold(self, sequence: CacheSequence) -> Held:
        """Keep a sequence."""
        held = Held(sequence)
        self._entries.append((weakref.ref(held), sequence))
        return held

    def release(self, held: Held) -> None:
        """Give one back."""
        self._free(held.sequence)

    def sweep(self) -> None:
        """Give back those that nobody has any more."""
        for sequence in [sequence for reference, sequence in self._entries if reference() is None]:
            self._free(sequence)

    def forget(self) -> None:
        """Know of none: the pool has taken all blocks back."""
        self._entries.clear()

    def _free(self, sequence: CacheSequence) -> None:
        self._entries = [entry for entry in self._entries if entry[1] is not sequence]
        sequence.free()
