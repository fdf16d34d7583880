"""Sequences that are read while steps continue: to write them to a file, until they are pinned, or until a request
starts from them.

In: sequences. Out: a `Held` for each, which need not be given back: once no reference to it is left, it is swept up, so
an interrupt has no clean-up code to skip. Knows nothing about requests or engines.
"""

from __future__ import annotations

import weakref

from edge.runtime.kv.pool import CacheSequence


class Held:
    """Keeps a sequence for as long as this object is referenced."""

    __slots__ = ("__weakref__", "sequence")

    def __init__(self, sequence: CacheSequence) -> None:
        self.sequence = sequence


class HeldSequences:
    """All held sequences. Not for several threads at once."""

    def __init__(self) -> None:
        self._entries: list[tuple[weakref.ref[Held], CacheSequence]] = []
        self._yielding: list[CacheSequence] = []  # those of them that answers come before

    @property
    def blocks(self) -> list[int]:
        """Every block, once for each sequence that holds it, for the pool's integrity check."""
        return [block for _, sequence in self._entries for block in sequence.block_table]

    def hold(self, sequence: CacheSequence, *, yielding: bool = False) -> Held:
        """Keep a sequence. yielding: only until an answer has no other room."""
        held = Held(sequence)
        self._entries.append((weakref.ref(held), sequence))
        if yielding:
            self._yielding.append(sequence)
        return held

    def give_way(self) -> bool:
        """Give back those that yield; False if there are none."""
        found = list(self._yielding)
        for sequence in found:
            self._free(sequence)
        return bool(found)

    def release(self, held: Held) -> None:
        """Give one sequence back."""
        self._free(held.sequence)

    def sweep(self) -> None:
        """Give back those that are no longer referenced."""
        for sequence in [sequence for reference, sequence in self._entries if reference() is None]:
            self._free(sequence)

    def forget(self) -> None:
        """Forget all of them: the pool has taken its blocks back."""
        self._entries.clear()
        self._yielding.clear()

    def _free(self, sequence: CacheSequence) -> None:
        self._entries = [entry for entry in self._entries if entry[1] is not sequence]
        self._yielding = [other for other in self._yielding if other is not sequence]
        sequence.free()
