"""A computed prefix as a file: keys and values that another session or process can start from later.

In: a sequence with the cache keys of its tokens (for text, their ids) and an identity, which says what its keys and
values depend on; later, the file and the identity it is needed for. Out: the file; later, a sequence. Knows nothing
about engines, models, how a header is written, or who keeps a prefix. A file that is damaged, or was made for something
else, is refused with the reason.

For each block of the sequence, the file has what `BlockMemory.read` gives of its tokens. If an engine's memory cannot
be cut, the last block is stored whole; the pool hands its unused part out blank.
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, zip_longest
from pathlib import Path
from typing import BinaryIO

import numpy as np

from edge.runtime.arrays import Array
from edge.runtime.atomic import write_atomically
from edge.runtime.errors import CacheError, SnapshotError
from edge.runtime.kv.memory import Form
from edge.runtime.kv.pool import BlockPool, CacheSequence
from edge.runtime.kv.snapshot_format import (
    REBUILD,
    Header,
    SnapshotIdentity,
    bytes_of,
    check_replaceable,
    open_checked,
)

_HASHED_AT_ONCE = 1 << 24  # bytes, so that an interrupt takes effect in between

_NO_FORM: Form = ("nothing", ())


class Snapshot:
    """A checked file, open for as long as this object lives. It can be used in forked processes, too.

    It is read and not mapped: a file that somebody cuts short while it is mapped ends the process. Windows replaces no
    file that is open, so it is opened there whenever it is read.
    """

    def __init__(self, path: Path, header: Header, begin: int, file: BinaryIO) -> None:
        """Use `open_snapshot`. Takes over the file, whose payload begins at `begin`."""
        self._path = path
        self._header = header
        self._begin = begin
        self._file = file
        self._state = _state(file)
        self._release = weakref.finalize(self, file.close)
        if sys.platform == "win32":
            file.close()

    @property
    def path(self) -> Path:
        return self._path

    @property
    def keys(self) -> list[int]:
        """Cache keys of all tokens; not a copy."""
        return self._header.keys

    @property
    def num_tokens(self) -> int:
        return self._header.num_tokens

    @property
    def system(self) -> str | None:
        """The system message that the tokens are, if they are one."""
        return self._header.system

    @property
    def bytes(self) -> int:
        """Size of the keys and values."""
        return self._header.payload_bytes

    def restore(self, pool: BlockPool, num_tokens: int, sequence: CacheSequence | None = None) -> CacheSequence:
        """Return a sequence of the first `num_tokens` tokens: a new one, or `sequence`, which has some of them already.

        Raises CacheFullError when the pool is full, and SnapshotError when its blocks have another form or the file
        was overwritten since it was opened; no more is held then than before.
        """
        assert 0 <= num_tokens <= self.num_tokens, "the file has fewer tokens"
        if not self._release.alive:
            raise CacheError(f"{self._path} has been closed; open it again")
        with self._reading() as file:
            if num_tokens:
                self._check_fits(pool, num_tokens)
            found = CacheSequence(pool) if sequence is None else sequence
            missing = max(num_tokens - found.num_tokens, 0)
            try:
                found.reserve(missing)
                for index in range(found.num_tokens // pool.block_size, pool.blocks_for(num_tokens) if missing else 0):
                    tokens = min(num_tokens - index * pool.block_size, pool.block_size)
                    arrays = self._arrays(file, index, pool.memory.forms(tokens))
                    pool.memory.write(found.block_table[index], tokens, arrays)
            except BaseException:
                found.trim(found.num_tokens)
                raise
            found.commit(missing)
        return found

    def check_payload(self) -> None:
        """Raise SnapshotError if the payload is not what was saved."""
        digest = hashlib.sha256()
        with self._reading() as file:
            for done in range(0, self.bytes, _HASHED_AT_ONCE):
                digest.update(_read(self._path, file, self._begin + done, min(self.bytes - done, _HASHED_AT_ONCE)))
        if digest.hexdigest() != self._header.payload_sha256:
            raise SnapshotError(
                f"{self._path} is damaged: its keys and values differ from their sha256; copy it again or {REBUILD}"
            )

    def close(self) -> None:
        """Close the file. A second call changes nothing."""
        self._release()

    @contextmanager
    def _reading(self) -> Iterator[BinaryIO]:
        """Give the open file. Raises SnapshotError if it may not be the one that was checked."""
        try:
            file = self._path.open("rb") if self._file.closed else self._file
        except OSError as error:
            raise SnapshotError(f"{self._path} cannot be read again ({error.strerror}); open it again") from error
        try:
            if _state(file) != self._state:
                raise _overwritten(self._path)
            yield file
        finally:
            if file is not self._file:
                file.close()

    def _arrays(self, file: BinaryIO, index: int, wanted: list[Form]) -> list[Array]:
        """Return the arrays of a block from the file, cut to the wanted shapes."""
        forms, _ = self._header.block(index)
        raw = _read(self._path, file, self._begin + index * bytes_of(self._header.full), bytes_of(forms))
        arrays: list[Array] = []
        at = 0
        for (_, wanted_shape), (kind, shape) in zip(wanted, forms, strict=True):
            stored = np.frombuffer(raw, kind, math.prod(shape), at).reshape(shape)
            arrays.append(stored if shape == wanted_shape else stored[tuple(map(slice, wanted_shape))])
            at += stored.nbytes
        return arrays

    def _check_fits(self, pool: BlockPool, num_tokens: int) -> None:
        """Raise SnapshotError if the blocks of this pool cannot take the first tokens."""
        header = self._header
        in_one_block = header.num_blocks == 1 and num_tokens <= pool.block_size
        if header.block_size != pool.block_size and not in_one_block:
            raise SnapshotError(
                f"{self._path} has {num_tokens} tokens in blocks of {header.block_size}, expected blocks of "
                f"{pool.block_size} tokens; {REBUILD}"
            )
        last = pool.blocks_for(num_tokens) - 1
        self._check_forms(pool, last, num_tokens - last * pool.block_size)
        if last:
            self._check_forms(pool, 0, pool.block_size)

    def _check_forms(self, pool: BlockPool, index: int, num_tokens: int) -> None:
        """Raise SnapshotError unless a block's arrays have the form of the pool's, with as many tokens or more."""
        stored, stored_tokens = self._header.block(index)
        wanted = pool.memory.forms(num_tokens)
        for (kind, shape), (wanted_kind, wanted_shape) in zip_longest(stored, wanted, fillvalue=_NO_FORM):
            cut = tuple(
                num_tokens if size == stored_tokens and size > wanted_size else size
                for size, wanted_size in zip(shape, wanted_shape, strict=False)
            )
            if kind != wanted_kind or len(shape) != len(wanted_shape) or cut != wanted_shape:
                raise SnapshotError(
                    f"{self._path} has arrays of {kind}{list(shape)} for {stored_tokens} tokens, here "
                    f"{num_tokens} tokens have {wanted_kind}{list(wanted_shape)}; {REBUILD}"
                )


def save_snapshot(
    path: Path,
    keys: Sequence[int],
    sequence: CacheSequence,
    pool: BlockPool,
    identity: SnapshotIdentity,
    system: str | None = None,
) -> None:
    """Write the tokens of a sequence, whose keys are the first of `keys`; nothing may be computed into it meanwhile.

    system: the message that the tokens are, if they are one, so that a reader of the file can send it along. Raises
    OutputError when the file cannot be written, or would replace another kind of file; the old one is then unchanged.
    Raises CacheError for a sequence that is freed or empty.
    """
    if sequence.freed or not sequence.num_tokens:
        raise CacheError("this sequence holds no tokens, so there is nothing to save; compute the prefix first")
    assert len(keys) >= sequence.num_tokens, "tokens without keys"
    check_replaceable(path)
    last = pool.blocks_for(sequence.num_tokens) - 1
    digest, payload_bytes = hashlib.sha256(), 0
    for part in _payload(sequence, pool):
        digest.update(part)
        payload_bytes += part.nbytes
    header = Header(
        identity=identity,
        block_size=pool.block_size,
        keys=[int(key) for key in keys[: sequence.num_tokens]],
        full=pool.memory.forms(pool.block_size) if last else [],
        last=pool.memory.forms(sequence.num_tokens - last * pool.block_size),
        payload_bytes=payload_bytes,
        payload_sha256=digest.hexdigest(),
        system=system,
    )
    write_atomically(path, chain([header.to_bytes()], _payload(sequence, pool)), private=False)


def open_snapshot(path: Path, identity: SnapshotIdentity) -> Snapshot:
    """Open a file that must be whole and have this identity. Reads it once, for its sha256. Raises SnapshotError."""
    file, header, begin = open_checked(path)
    try:
        if differences := header.identity.differences(identity):
            raise SnapshotError(
                f"{path} was made for something else: {'; '.join(differences)}; load with the matching settings, "
                f"{REBUILD}, or name its system message, too (--system-file), to have it built whenever it does not fit"
            )
        snapshot = Snapshot(path, header, begin, file)
    except BaseException:
        file.close()
        raise
    try:
        snapshot.check_payload()
    except BaseException:
        snapshot.close()
        raise
    return snapshot


def _payload(sequence: CacheSequence, pool: BlockPool) -> Iterator[memoryview]:
    """Yield the bytes of every array of every block."""
    for index in range(pool.blocks_for(sequence.num_tokens)):
        tokens = min(sequence.num_tokens - index * pool.block_size, pool.block_size)
        for array in pool.memory.read(sequence.block_table[index], tokens):
            yield np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        if sequence.freed:  # the pool has started over, and its blocks may be in use elsewhere
            raise CacheError("the KV cache was emptied while a prefix of it was being saved; save it again")


def _read(path: Path, file: BinaryIO, begin: int, size: int) -> bytes:
    """Return bytes of a prefix file. Raises SnapshotError if it is shorter now, or cannot be read."""
    try:
        raw = _read_at(file, begin, size)
    except OSError as error:
        raise SnapshotError(f"{path} cannot be read ({error.strerror or error}); copy it again or {REBUILD}") from error
    if len(raw) < size:
        raise _overwritten(path)
    return raw


def _overwritten(path: Path) -> SnapshotError:
    return SnapshotError(f"{path} was overwritten since it was opened; open it again")


if sys.platform == "win32":

    def _read_at(file: BinaryIO, begin: int, size: int) -> bytes:
        """Read from a place in a file, by one thread at a time."""
        file.seek(begin)
        return file.read(size)

else:

    def _read_at(file: BinaryIO, begin: int, size: int) -> bytes:
        """Read from a place in a file, which other threads and forks may read, too."""
        parts: list[bytes] = []
        while size and (part := os.pread(file.fileno(), size, begin)):
            parts.append(part)
            begin, size = begin + len(part), size - len(part)
        return b"".join(parts)


def _state(file: BinaryIO) -> tuple[int, int, int]:
    """Return what changes when a file is written to or replaced."""
    status = os.fstat(file.fileno())
    return status.st_ino, status.st_size, status.st_mtime_ns
