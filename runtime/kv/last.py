"""The beginning of a new sequence that an engine still has from the last one, where nobody else can keep it.

In: keys (for text, ids) of what was computed, and of a new prompt. Out: a sequence that holds what the engine keeps of
the two's common beginning. Knows nothing about requests; engines with `holds_last` are meant.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from edge.runtime.errors import CacheFullError, EdgeError
from edge.runtime.kv.pool import BlockPool, CacheSequence
from edge.runtime.kv.prefix import Keys, common_prefix

logger = logging.getLogger(__name__)


class LastSequence:
    """What the one context of an engine holds, as far as it can be continued."""

    def __init__(self, pool: BlockPool, resume: Callable[[int], int]) -> None:
        """resume: `ResumingEngine.resume`."""
        self._pool, self._resume = pool, resume
        self._keys: Keys = []

    @property
    def num_tokens(self) -> int:
        """How many tokens are held; what can be continued may be less."""
        return len(self._keys)

    def start(self, keys: Keys, limit: int) -> CacheSequence | None:
        """Return a sequence with as many of the first `limit` keys as the engine keeps; None if it is in use."""
        sequence = CacheSequence(self._pool)
        try:
            sequence.reserve(1)  # nothing runs now that `resume` would harm
        except CacheFullError:
            return None
        try:
            kept = self._resume(min(common_prefix(self._keys, keys), limit))
        except EdgeError as error:  # then it has forgotten everything
            logger.warning("%s", error)
            kept = 0
        self._keys = keys[:kept]
        sequence.reserve(kept)
        sequence.commit(kept)
        return sequence

    def note(self, keys: Keys, sequence: CacheSequence) -> None:
        """Note what was computed: the tokens of a sequence that is about to be freed."""
        self._keys = keys[: sequence.num_tokens]

    def forget(self) -> None:
        """Continue nothing of it."""
        self._keys = []
