"""What a model wrote, remembered as ids: a conversation that continues starts from the ids in the KV cache.

In: the rendered text of a conversation up to the end of an answer, and the ids it was computed from. Out: the ids of a
longer conversation. Shared by all conversations of a model, and bounded. Knows nothing about messages or templates.

A model may spell its answer with other tokens than an encoder would. A client that sends the whole conversation again
sends text; encoding that gives other ids, and the KV cache is of no use from the first difference on. So the ids as
produced are found again by the text they stand for.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from edge.runtime.markup import MarkedText

MAX_ENTRIES = 4096  # conversations; each is looked for in 2 µs
MAX_TOKENS = 4 << 20  # of all of them, in 16 MB


class ProducedIds:
    """A bounded memory from text to ids; with 0 entries, none. All methods may be called from any thread."""

    def __init__(self, max_entries: int = MAX_ENTRIES, max_tokens: int = MAX_TOKENS) -> None:
        self.max_entries, self._max_tokens = max_entries, max_tokens
        self._kept: OrderedDict[bytes, tuple[int, npt.NDArray[np.int32]]] = OrderedDict()  # digest -> length, ids
        self._lengths: Counter[int] = Counter()  # of the texts
        self._num_tokens = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def remember(self, text: MarkedText, ids: Sequence[int]) -> None:
        """Keep the ids of a text; what was used longest ago is dropped."""
        if not text or len(ids) > self._max_tokens:
            return
        digest = hashlib.sha256(_bytes(text)).digest()
        with self._lock:
            self._drop(digest)
            self._kept[digest] = len(text), np.array(ids, np.int32)
            self._lengths[len(text)] += 1
            self._num_tokens += len(ids)
            while len(self._kept) > self.max_entries or self._num_tokens > self._max_tokens:
                self._drop(next(iter(self._kept)))

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._kept.clear()
            self._lengths.clear()
            self._num_tokens = 0

    def encode(self, text: MarkedText, encode: Callable[[MarkedText], list[int]]) -> list[int]:
        """Return the ids of a text: those of the longest remembered beginning, then `encode`'s for the rest."""
        with self._lock:
            lengths = sorted(length for length in self._lengths if length <= len(text))
        hashed, begin = hashlib.sha256(), 0
        digests: list[bytes] = []
        for length in lengths:
            hashed.update(_bytes(text[begin:length]))
            digests.append(hashed.digest())
            begin = length
        with self._lock:
            for digest in reversed(digests):
                if (found := self._kept.get(digest)) is not None:
                    self._kept.move_to_end(digest)
                    length, ids = found
                    break
            else:
                length, ids = 0, np.zeros(0, np.int32)
        known: list[int] = ids.tolist()
        return known + (encode(MarkedText(text[length:])) if length < len(text) else [])

    def _drop(self, digest: bytes) -> None:
        length, ids = self._kept.pop(digest, (0, None))
        if ids is None:
            return
        self._num_tokens -= ids.size
        self._lengths[length] -= 1
        if not self._lengths[length]:
            del self._lengths[length]


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
