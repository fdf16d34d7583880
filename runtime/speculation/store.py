"""Earlier answers and given documents on disk, to draft from.

In: sequences of token ids. Out: what most often followed the last few ids of a running text in them. Knows nothing
about text, models, or how well its drafts do.

Retrieval by suffix array is REST (He et al. 2023). One file, little-endian except for the ids:

    header       magic, version, tokenizer's sha256, number of ids, of suffixes; sha256 of these and all that follows
    ids          uint32, big-endian, so that comparing bytes compares ids: each id + 1, a 0 after each sequence, and 64
                 zeros at the end
    suffix array int32: the start of every suffix that begins with an id, in the order of their first 64 ids

New sequences are searched in memory, by a suffix automaton, until `save` writes them. The file is read into memory as a
whole: a mapped one that is cut short by somebody else would end the process.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np

from edge.runtime.atomic import write_atomically
from edge.runtime.errors import DraftStoreError, OutputError, SettingsError, shown
from edge.runtime.files import open_file, shown_path
from edge.runtime.locks import hold
from edge.runtime.settings import MAX_DRAFT, MAX_MATCH
from edge.runtime.speculation.automaton import SuffixAutomaton
from edge.runtime.speculation.suffix_array import MAX_ID, SORTED, StoredIds, SuffixArray, suffix_array

_MIN_MATCH = 2
_MIN_SEQUENCE = 4  # ids; a shorter text is not worth storing
_WINDOW = 200_000  # ids of this session to index before they are saved; half of them stay when it is full
_LOCK_WAIT_S = 60.0

_MAGIC = b"EDGEDRFT"
_VERSION = 1
_HEADER = struct.Struct("<8sI32sQQ")
_DIGEST = 32  # bytes of sha256
_BEGIN = _HEADER.size + _DIGEST


class DamagedStoreError(DraftStoreError):
    """A store that is not whole, as a failing disk or a power cut leaves it; any other file is somebody's."""


class DraftStore:
    """A persistent collection of id sequences that belongs to one tokenizer. Not for several threads at once.

    The file holds answers, so only its owner may read it (mode 600). Saving merges, under a lock, what other processes
    have saved in between.
    """

    def __init__(
        self, path: Path | None, tokenizer_sha256: str, max_tokens: int, saved: SuffixArray, num_ids: int = MAX_ID + 1
    ) -> None:
        """Use `open` or `in_memory`."""
        self._path = path
        self._tokenizer = tokenizer_sha256
        self._max_tokens = max_tokens
        self._num_ids = num_ids
        self._saved = saved
        self._added: list[StoredIds] = []
        self._known: set[bytes] | None = None  # digests of all sequences, made when first needed
        self._recent = SuffixAutomaton()
        self._indexed = 0  # sequences of `_added` that are in `_recent`

    @classmethod
    def open(cls, path: Path, tokenizer_sha256: str, max_tokens: int = 1_000_000, *, num_ids: int = MAX_ID + 1) -> Self:
        """Open a store, or create an empty one.

        tokenizer_sha256: 64 hexadecimal digits. max_tokens: how many ids to keep, 8 bytes each. num_ids: of the
        tokenizer; no higher id is drafted. Raises DraftStoreError for a file that is not a store, is damaged or
        truncated, or belongs to another tokenizer, and leaves it unchanged; OutputError if a new one cannot be created.
        """
        if len(tokenizer_sha256) != 2 * _DIGEST or not set(tokenizer_sha256) <= set("0123456789abcdef"):
            raise SettingsError(f"tokenizer_sha256 is {shown(tokenizer_sha256)}, expected 64 digits from 0 to f")
        if not _MIN_SEQUENCE <= max_tokens < 2**30:
            raise SettingsError(f"max_tokens is {max_tokens}, expected {_MIN_SEQUENCE} to {2**30 - 1}")
        path = _real(path)
        saved = _read(path, tokenizer_sha256, num_ids)
        if saved is None:
            with hold(_lock_file(path), wait_s=_LOCK_WAIT_S):
                saved = _read(path, tokenizer_sha256, num_ids)  # another process may have been faster
                if saved is None:
                    write_atomically(path, _encode(tokenizer_sha256, []))
                    saved = _read(path, tokenizer_sha256, num_ids)
        if saved is None:
            raise OutputError(f"{path} was deleted while it was created; try again")
        return cls(path, tokenizer_sha256, max_tokens, saved, num_ids)

    @classmethod
    def in_memory(cls, tokenizer_sha256: str, max_tokens: int = 1_000_000, *, num_ids: int = MAX_ID + 1) -> Self:
        """Make an empty store without a file, which saves nothing."""
        content = b"".join(_encode(tokenizer_sha256, []))
        return cls(None, tokenizer_sha256, max_tokens, SuffixArray(content, _BEGIN, SORTED, num_ids), num_ids)

    @property
    def has_file(self) -> bool:
        """Whether it can be saved."""
        return self._path is not None

    @property
    def num_tokens(self) -> int:
        """How many ids are in the store, including this session's; `save` drops those above max_tokens."""
        return len(self._saved.order) + sum(ids.size for ids in self._added)

    def add(self, ids: Sequence[int]) -> bool:
        """Remember a sequence; `draft` finds it from now on, and other sessions after `save`.

        Returns False, and adds nothing, if the store has it already or it has fewer than 4 ids. Of a sequence longer
        than max_tokens, the end is kept. Raises SettingsError for an id below 0 or above 2³¹ - 2.
        """
        wide = np.asarray(ids, np.int64)[-self._max_tokens :]
        if wide.size < _MIN_SEQUENCE:
            return False
        if int(wide.min()) < 0 or int(wide.max()) > MAX_ID:
            wrong = next(i for i in wide.tolist() if not 0 <= i <= MAX_ID)
            raise SettingsError(f"token id {wrong} cannot be stored, expected 0 to {MAX_ID}")
        stored = (wide + 1).astype(">u4")
        if self._known is None:
            self._known = {_digest(sequence) for sequence in [*self._saved.sequences(), *self._added]}
        digest = _digest(stored)
        if digest in self._known:
            return False
        self._known.add(digest)
        self._added.append(stored)
        return True

    def latest(self, limit: int) -> list[StoredIds]:
        """Return the latest sequences, oldest first, as many as have `limit` ids together. The ids are the model's."""
        found: list[StoredIds] = []
        for stored in reversed([*self._saved.sequences(), *self._added]):
            limit -= stored.size
            if limit < 0:
                break
            found.append(stored.astype(np.int64) - 1)
        return found[::-1]

    def draft(self, tail_ids: Sequence[int], count: int) -> tuple[int, list[int]]:
        """Return the length of the longest suffix of `tail_ids` in the store, and up to `count` ids that followed it.

        The suffix has 2 to 32 ids, and others after it in its sequence; (0, []) without one. At most 32 ids are
        drafted, fewer where a sequence ends. Among saved sequences, the occurrences vote on each id: the most frequent
        one wins (of two equals, the later stored one), and other occurrences drop out, until fewer than an eighth are
        left; of more than 64 occurrences, 64 vote, evenly spread in their order. If this session's unsaved part has a
        suffix as long, its draft is taken: what followed latest.
        """
        tail, count = list(tail_ids[-MAX_MATCH:]), min(count, MAX_DRAFT)
        if len(tail) < _MIN_MATCH or count < 1:
            return 0, []
        self._index()
        length, ids = self._recent.find(tail, count)
        if length < _MIN_MATCH:
            length, ids = 0, []
        if length < len(tail):
            saved_length, saved_ids = self._saved.draft(tail, count, max(length + 1, _MIN_MATCH))
            if saved_length:
                return saved_length, saved_ids
        return length, ids

    def save(self) -> None:
        """Write what was added, with what other processes have saved meanwhile; drop the oldest above max_tokens.

        The new file replaces the old one at once, or not at all. Raises OutputError if it cannot be written or another
        process keeps the lock for a minute, DraftStoreError if the file has become unusable as in `open`; the file is
        unchanged then, and what was added is still in memory.
        """
        if self._path is not None and (self._added or len(self._saved.order) > self._max_tokens):
            pending = self.pending()
            self.adopt(self.merge(pending), pending)

    def pending(self) -> list[StoredIds]:
        """Return what was added and is not saved yet. May be called from any thread."""
        return list(self._added)

    def merge(self, pending: list[StoredIds]) -> SuffixArray:
        """Write sequences to the file, and return what it then holds; errors as in `save`.

        Changes nothing in memory, so that it may run in a thread of its own.
        """
        assert self._path is not None, "there is no file"
        with hold(_lock_file(self._path), wait_s=_LOCK_WAIT_S):
            current = _read(self._path, self._tokenizer, self._num_ids)
            sequences = [] if current is None else current.sequences()
            known = {_digest(sequence) for sequence in sequences}
            sequences += [sequence for sequence in pending if _digest(sequence) not in known]
            excess = sum(sequence.size for sequence in sequences) - self._max_tokens
            dropped = 0
            while excess > 0:
                excess -= sequences[dropped].size
                dropped += 1
            write_atomically(self._path, _encode(self._tokenizer, sequences[dropped:]))
            saved = _read(self._path, self._tokenizer, self._num_ids)
        if saved is None:
            raise OutputError(f"{self._path} was deleted while it was written; save again")
        return saved

    def adopt(self, saved: SuffixArray, pending: list[StoredIds]) -> None:
        """Search what `merge` returned for these sequences, in the place of the file as it was before."""
        done = set(map(id, pending))
        self._added = [sequence for sequence in self._added if id(sequence) not in done]
        self._saved, self._known = saved, None
        self._recent, self._indexed = SuffixAutomaton(), 0

    def _index(self) -> None:
        """Index what was added, at the first draft after it, so that adding many sequences is cheap."""
        if self._indexed == len(self._added):
            return
        new, limit = self._added[self._indexed :], _WINDOW
        if len(self._recent) + sum(ids.size + 1 for ids in new) > _WINDOW:
            self._recent, new, limit = SuffixAutomaton(), self._added, _WINDOW // 2
        kept: list[StoredIds] = []
        for ids in reversed(new):
            if limit < _MIN_SEQUENCE:
                break
            kept.append(ids[-limit:])
            limit -= ids.size
        for ids in reversed(kept):
            self._recent.separate()
            self._recent.extend((ids.astype(np.int64) - 1).tolist())
        self._indexed = len(self._added)


def is_store(path: Path) -> bool:
    """Whether a file begins like a store, as far as it goes. Raises OSError."""
    with path.open("rb") as file:
        return _MAGIC.startswith(file.read(len(_MAGIC)))


def _real(path: Path) -> Path:
    """Resolve the links of a path; a loop of links stays, and cannot be opened. Raises DraftStoreError."""
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError) as error:  # a zero byte in it
        raise DraftStoreError(f"{shown_path(path)} cannot be a draft store ({error}); name another file") from error


def _read(path: Path, tokenizer_sha256: str, num_tokens: int) -> SuffixArray | None:
    """Return the content of a store, checked; None if there is no file. Raises DraftStoreError."""
    advice = "move it away or name another file"
    name = shown_path(path)
    try:
        path.lstat()
        with open_file(path, DraftStoreError, advice) as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(_BEGIN)
            _check_head(head, size, name, advice)
            content = head + file.read(size - _BEGIN)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        broken = isinstance(error, OSError) and error.errno == errno.EIO
        kind = DamagedStoreError if broken else DraftStoreError
        raise kind(f"{name} cannot be read as a draft store ({reason}); {advice}") from error
    _, _, tokenizer, num_ids, _ = _HEADER.unpack(head[: _HEADER.size])
    digest = hashlib.sha256(head[: _HEADER.size])
    digest.update(memoryview(content)[_BEGIN:])
    if len(content) != size or digest.digest() != head[_HEADER.size :]:
        raise DamagedStoreError(f"{name} is damaged: its content differs from its sha256; {advice}")
    if tokenizer.hex() != tokenizer_sha256:
        raise DraftStoreError(
            f"{name} belongs to the tokenizer with sha256 {tokenizer.hex()[:16]}…, this model's is "
            f"{tokenizer_sha256[:16]}…, so its ids mean other tokens; {advice}"
        )
    try:
        return SuffixArray(content, _BEGIN, num_ids, num_tokens)
    except ValueError as error:  # with a sha256 that was computed for it
        raise DamagedStoreError(f"{name} is damaged: {error}; {advice}") from error


def _check_head(head: bytes, size: int, name: str, advice: str) -> None:
    """Raise DraftStoreError unless a file begins as a store of its size does, before as much memory is taken."""
    begins = head[: len(_MAGIC)]
    if begins != _MAGIC:
        kind = DamagedStoreError if _MAGIC.startswith(begins) or not any(head) else DraftStoreError
        raise kind(f"{name} is not a draft store; {advice}")
    if len(head) < _BEGIN:
        raise DamagedStoreError(f"{name} is damaged: it has {size} bytes, expected at least {_BEGIN}; {advice}")
    _, version, _, num_ids, num_suffixes = _HEADER.unpack(head[: _HEADER.size])
    if version != _VERSION:
        raise DraftStoreError(f"{name} is a draft store of version {version}, expected {_VERSION}; {advice}")
    if size != (expected := _BEGIN + 4 * num_ids + 4 * num_suffixes):
        raise DamagedStoreError(f"{name} is damaged: it has {size} bytes, expected {expected}; {advice}")


def _encode(tokenizer_sha256: str, sequences: list[StoredIds]) -> list[bytes]:
    """Return the parts of a store's file."""
    separator = np.zeros(1, ">u4")
    parts = [part for sequence in sequences for part in (sequence, separator)]
    ids = np.concatenate([*parts, separator[:0]]).astype(">u4", copy=False)
    order = suffix_array(ids.astype(np.uint32)).astype("<i4", copy=False)
    ids_bytes, order_bytes = ids.tobytes() + bytes(4 * SORTED), order.tobytes()
    header = _HEADER.pack(_MAGIC, _VERSION, bytes.fromhex(tokenizer_sha256), ids.size + SORTED, order.size)
    digest = hashlib.sha256(header)
    digest.update(ids_bytes)
    digest.update(order_bytes)
    return [header, digest.digest(), ids_bytes, order_bytes]


def _lock_file(path: Path) -> Path:
    """Return the lock file beside the store, whose own file is replaced by every save."""
    return path.with_name(path.name + ".lock")


def _digest(ids: StoredIds) -> bytes:
    """Return what tells one sequence from another."""
    return hashlib.sha256(ids.tobytes()).digest()[:16]
