"""A computed prefix as a file: keys and values that another session, process or day goes on from.

In: a sequence with its token ids and an identity, which says what its keys and values depend on; later, the file and
the identity they are wanted for. Out: the file; later, a sequence. Knows nothing about engines, models or who keeps a
prefix. A file that is damaged, or made for something else, is refused with the reason.

One file, little-endian, for its owner alone:

    lead     magic, version, length of the header; sha256 of these and the header
    header   JSON: identity, system message, block size, token ids, type and shape of every array, bytes and sha256
             of the payload; blanks up to the next page
    payload  for each block of the sequence what `BlockMemory.views` shows of its tokens

Where an engine's memory cannot be cut, the payload's last block is stored whole, with room that a pool hands out blank.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import re
import struct
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from edge.runtime.atomic import write_atomically
from edge.runtime.errors import CacheError, SnapshotError
from edge.runtime.kv.memory import BlockMemory
from edge.runtime.kv.pool import BlockPool, CacheSequence

_MAGIC = b"EDGEKVPX"
_VERSION = 1
_LEAD = struct.Struct("<8sIQ32s")
_SIGNED = _LEAD.size - 32  # bytes of the lead that the digest covers
_PAGE = 4096
_MAX_HEADER_BYTES = 1 << 28
_HASHED_AT_ONCE = 1 << 24  # bytes, so that an interrupt need not wait for all
_REBUILD = "build it again with `edge prefix build`"

Array = npt.NDArray[Any]  # of any dtype
Form = tuple[str, tuple[int, ...]]  # type, as numpy writes it, and shape of an array
_NO_FORM: Form = ("nothing", ())


@dataclass(frozen=True, slots=True)
class SnapshotIdentity:
    """What keys and values depend on, besides the token ids."""

    model_sha256: str
    tokenizer_sha256: str
    layout: Mapping[str, str]  # `Engine.identity`

    def differences(self, expected: SnapshotIdentity) -> list[str]:
        """In words what is other than expected; nothing where all is equal."""
        found = [
            f"{what} has sha256 {ours[:16]}…, expected {theirs[:16]}…"
            for what, ours, theirs in (
                ("model", self.model_sha256, expected.model_sha256),
                ("tokenizer", self.tokenizer_sha256, expected.tokenizer_sha256),
            )
            if ours != theirs
        ]
        for name in dict.fromkeys([*expected.layout, *self.layout]):
            ours, theirs = self.layout.get(name, "not stated"), expected.layout.get(name, "not stated")
            if ours != theirs:
                found.append(f"{name} is {ours}, expected {theirs}")
        return found


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """What a file says about itself."""

    identity: SnapshotIdentity
    num_tokens: int
    block_size: int  # tokens
    bytes: int  # of the whole file
    system: str | None  # the system message that the prefix is, where it is one


@dataclass(frozen=True, slots=True)
class _Header:
    """The JSON header."""

    identity: SnapshotIdentity
    block_size: int
    ids: list[int]
    full: list[Form]  # arrays of every block but the last
    last: list[Form]
    payload_bytes: int
    payload_sha256: str
    system: str | None

    @property
    def num_blocks(self) -> int:
        return -(-len(self.ids) // self.block_size)

    def block(self, index: int) -> tuple[list[Form], int]:
        """Arrays and tokens of one block."""
        if index < self.num_blocks - 1:
            return self.full, self.block_size
        return self.last, len(self.ids) - index * self.block_size

    def to_json(self) -> bytes:
        identity = {name: getattr(self.identity, name) for name in ("model_sha256", "tokenizer_sha256")}
        data = {name: getattr(self, name) for name in self.__slots__}
        data["identity"] = identity | {"layout": dict(self.identity.layout)}
        return json.dumps(data, sort_keys=True).encode()

    @classmethod
    def from_json(cls, text: bytes) -> _Header:
        """Raises ValueError, KeyError, TypeError and RecursionError for what does not read as a header."""
        data = json.loads(text)
        identity = data["identity"]
        header = cls(
            identity=SnapshotIdentity(
                model_sha256=str(identity["model_sha256"]),
                tokenizer_sha256=str(identity["tokenizer_sha256"]),
                layout={str(name): str(value) for name, value in identity["layout"].items()},
            ),
            block_size=_natural(data["block_size"]),
            ids=[_natural(token, 0) for token in data["ids"]],
            full=_forms_from(data["full"]),
            last=_forms_from(data["last"]),
            payload_bytes=_natural(data["payload_bytes"], 0),
            payload_sha256=str(data["payload_sha256"]),
            system=None if data["system"] is None else str(data["system"]),
        )
        sizes = (header.num_blocks - 1) * _bytes_of(header.full) + _bytes_of(header.last)
        if not header.ids or sizes != header.payload_bytes:
            raise ValueError(f"arrays take {sizes} bytes, {header.payload_bytes} are stated")
        return header


class Snapshot:
    """A file that has been checked, mapped as long as this lives. Of use in forked processes too."""

    def __init__(self, path: Path, header: _Header, begin: int, file: BinaryIO) -> None:
        """Use `open_snapshot`. Takes over the file; its payload begins at `begin`."""
        self._path = path
        self._header = header
        self._begin = begin
        self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._file = file
        self._state = _state(file)
        self._release = weakref.finalize(self, file.close)

    @property
    def path(self) -> Path:
        return self._path

    @property
    def ids(self) -> list[int]:
        """Of all tokens; not a copy."""
        return self._header.ids

    @property
    def num_tokens(self) -> int:
        return len(self._header.ids)

    @property
    def bytes(self) -> int:
        """Of the keys and values."""
        return self._header.payload_bytes

    def restore(self, pool: BlockPool, num_tokens: int, sequence: CacheSequence | None = None) -> CacheSequence:
        """A sequence of the first `num_tokens` tokens: a new one, or `sequence`, which has the first few, made longer.

        Raises CacheFullError when the pool is full, and SnapshotError when its blocks have another form or the file
        was written over since it was opened; then no more is held than before.
        """
        assert 0 <= num_tokens <= self.num_tokens, "the file has fewer tokens"
        if not self._release.alive:
            raise CacheError(f"{self._path} has been closed; open it again")
        if _state(self._file) != self._state:  # what is read may be anything, and beyond the file's end kills us
            raise SnapshotError(f"{self._path} was written over since it was opened; open it again")
        if num_tokens:
            self._check_fits(pool, num_tokens)
        found = CacheSequence(pool) if sequence is None else sequence
        missing = max(num_tokens - found.num_tokens, 0)
        try:
            found.reserve(missing)
            for index in range(found.num_tokens // pool.block_size, pool.blocks_for(num_tokens) if missing else 0):
                tokens = min(num_tokens - index * pool.block_size, pool.block_size)
                self._copy(index, pool.memory.views(found.block_table[index], tokens))
        except BaseException:
            found.trim(found.num_tokens)
            raise
        found.commit(missing)
        return found

    def check_payload(self) -> None:
        """Raise SnapshotError when the payload is not what was saved."""
        digest = hashlib.sha256()
        with memoryview(self._map) as content:
            for begin in range(self._begin, len(content), _HASHED_AT_ONCE):
                digest.update(content[begin : begin + _HASHED_AT_ONCE])
        if digest.hexdigest() != self._header.payload_sha256:
            raise SnapshotError(
                f"{self._path} is damaged: its keys and values differ from their sha256; copy it again or {_REBUILD}"
            )

    def close(self) -> None:
        """Unmap the file. A second time changes nothing."""
        if self._release.alive:
            self._map.close()
            self._release()

    def _copy(self, index: int, views: list[Array]) -> None:
        """Fill the arrays of a block with what the file has for them."""
        forms, _ = self._header.block(index)
        at = self._begin + index * _bytes_of(self._header.full)
        for view, (kind, shape) in zip(views, forms, strict=True):
            count = math.prod(shape)
            stored = np.frombuffer(self._map, kind, count, at).reshape(shape)
            view[...] = stored if shape == view.shape else stored[tuple(map(slice, view.shape))]
            at += stored.nbytes

    def _check_fits(self, pool: BlockPool, num_tokens: int) -> None:
        """Raise SnapshotError when blocks of this pool cannot take the first tokens."""
        header = self._header
        in_one_block = header.num_blocks == 1 and num_tokens <= pool.block_size
        if header.block_size != pool.block_size and not in_one_block:
            raise SnapshotError(
                f"{self._path} has {num_tokens} tokens in blocks of {header.block_size}, expected blocks of "
                f"{pool.block_size} tokens; {_REBUILD}"
            )
        last = pool.blocks_for(num_tokens) - 1
        self._check_forms(pool, last, num_tokens - last * pool.block_size)
        if last:
            self._check_forms(pool, 0, pool.block_size)

    def _check_forms(self, pool: BlockPool, index: int, num_tokens: int) -> None:
        """Raise SnapshotError unless a block's arrays have the form of a pool's, or more tokens of it."""
        stored, stored_tokens = self._header.block(index)
        wanted = _forms_of(pool.memory, 0, num_tokens)
        for (kind, shape), (wanted_kind, wanted_shape) in zip_longest(stored, wanted, fillvalue=_NO_FORM):
            cut = tuple(
                num_tokens if size == stored_tokens and size > wanted_size else size
                for size, wanted_size in zip(shape, wanted_shape, strict=False)
            )
            if kind != wanted_kind or len(shape) != len(wanted_shape) or cut != wanted_shape:
                raise SnapshotError(
                    f"{self._path} has arrays of {kind}{list(shape)} for {stored_tokens} tokens, here "
                    f"{num_tokens} tokens have {wanted_kind}{list(wanted_shape)}; {_REBUILD}"
                )


def save_snapshot(
    path: Path,
    ids: Sequence[int],
    sequence: CacheSequence,
    pool: BlockPool,
    identity: SnapshotIdentity,
    system: str | None = None,
) -> None:
    """Write the tokens of a sequence, which are the first of `ids`; nothing may be computed into it meanwhile.

    `system` is the message that they stand for, for whoever wants to send it along. Raises OutputError when the file
    cannot be written; then an old one is still there. Raises CacheError for a sequence that is freed or empty.
    """
    if sequence.freed or not sequence.num_tokens:
        raise CacheError("this sequence holds no tokens, so there is nothing to save; compute the prefix first")
    assert len(ids) >= sequence.num_tokens, "tokens without ids"
    last = pool.blocks_for(sequence.num_tokens) - 1
    digest, payload_bytes = hashlib.sha256(), 0
    for part in _payload(sequence, pool):
        digest.update(part)
        payload_bytes += part.nbytes
    header = _Header(
        identity=identity,
        block_size=pool.block_size,
        ids=[int(token) for token in ids[: sequence.num_tokens]],
        full=_forms_of(pool.memory, sequence.block_table[0], pool.block_size) if last else [],
        last=_forms_of(pool.memory, sequence.block_table[last], sequence.num_tokens - last * pool.block_size),
        payload_bytes=payload_bytes,
        payload_sha256=digest.hexdigest(),
        system=system,
    )
    text = header.to_json()
    text += b" " * (-(_LEAD.size + len(text)) % _PAGE)
    lead = _LEAD.pack(_MAGIC, _VERSION, len(text), b"")[:_SIGNED]
    write_atomically(path, chain([lead, hashlib.sha256(lead + text).digest(), text], _payload(sequence, pool)))


def open_snapshot(path: Path, identity: SnapshotIdentity) -> Snapshot:
    """Open a file that must be whole and have this identity. Raises SnapshotError.

    Reads it once, for its sha256.
    """
    file, header, begin = _open(path)
    try:
        if differences := header.identity.differences(identity):
            raise SnapshotError(
                f"{path} was made for something else: {'; '.join(differences)}; load with what it was made for, or "
                f"{_REBUILD}"
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


def read_header(path: Path) -> SnapshotInfo:
    """What a file says about itself; its keys and values are not looked at. Raises SnapshotError."""
    file, header, begin = _open(path)
    file.close()
    size = begin + header.payload_bytes
    return SnapshotInfo(header.identity, len(header.ids), header.block_size, size, header.system)


def _open(path: Path) -> tuple[BinaryIO, _Header, int]:
    """The open file, its header, and where the payload begins. Raises SnapshotError."""
    try:
        if not path.exists():
            raise SnapshotError(f"{path}: no such file; make one with `edge prefix build`")
        if not path.is_file():
            raise SnapshotError(f"{path} is no file, expected one made by `edge prefix build`")
        file = path.open("rb")
        try:
            return file, *_parse(path, file)
        except BaseException:
            file.close()
            raise
    except OSError as error:
        raise SnapshotError(f"{path} cannot be read ({error.strerror or error}); check the file") from error


def _parse(path: Path, file: BinaryIO) -> tuple[_Header, int]:
    size = os.fstat(file.fileno()).st_size
    lead = file.read(_LEAD.size)
    if lead[: len(_MAGIC)] != _MAGIC:
        raise SnapshotError(f"{path} is no prefix file; make one with `edge prefix build`")
    damaged = f"{path} is damaged: {{}}; copy it again or {_REBUILD}"
    if len(lead) < _LEAD.size:
        raise SnapshotError(damaged.format(f"it ends after {size} bytes"))
    _, version, length, digest = _LEAD.unpack(lead)
    if version != _VERSION:
        advice = "update edgeglm or " if version > _VERSION else ""
        raise SnapshotError(f"{path} is a prefix file of version {version}, expected {_VERSION}; {advice}{_REBUILD}")
    begin = _LEAD.size + length
    if begin > min(size, _MAX_HEADER_BYTES):
        raise SnapshotError(damaged.format(f"it has {size:,} bytes, its header alone {length:,}"))
    text = file.read(length)
    if hashlib.sha256(lead[:_SIGNED] + text).digest() != digest:
        raise SnapshotError(damaged.format("its header differs from its sha256"))
    try:
        header = _Header.from_json(text)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SnapshotError(damaged.format(f"its header does not read ({error})")) from error
    if size != begin + header.payload_bytes:
        raise SnapshotError(damaged.format(f"it has {size:,} bytes, expected {begin + header.payload_bytes:,}"))
    return header, begin


def _payload(sequence: CacheSequence, pool: BlockPool) -> Iterator[memoryview]:
    """The bytes of every array of every block."""
    for index in range(pool.blocks_for(sequence.num_tokens)):
        tokens = min(sequence.num_tokens - index * pool.block_size, pool.block_size)
        for view in pool.memory.views(sequence.block_table[index], tokens):
            yield np.ascontiguousarray(view).reshape(-1).view(np.uint8).data


def _forms_of(memory: BlockMemory, block: int, num_tokens: int) -> list[Form]:
    return [(view.dtype.str, view.shape) for view in memory.views(block, num_tokens)]


def _forms_from(data: Any) -> list[Form]:
    forms = [(str(kind), tuple(_natural(size) for size in shape)) for kind, shape in data]
    if not all(re.fullmatch("[<>|][fiu][1248]", kind) for kind, _ in forms):
        raise ValueError("a type that no cache has")
    return forms


def _bytes_of(forms: list[Form]) -> int:
    return sum(int(kind[-1]) * math.prod(shape) for kind, shape in forms)


def _natural(value: Any, least: int = 1) -> int:
    if type(value) is not int or value < least:
        raise ValueError(f"{value!r} is no integer from {least} on")
    return value


def _state(file: BinaryIO) -> tuple[int, int]:
    """What changes when somebody writes into a file."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns
