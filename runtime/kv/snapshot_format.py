"""The file of a computed prefix: its bytes, its header, and whether it is whole.

In: a header; later, a path. Out: the bytes before the payload; later, the header, the open file and where its payload
begins. Knows nothing about caches: an array is a `Form`. A damaged or foreign file is refused with the
reason.

One file, little-endian, readable by everybody whom the umask of its writer lets read:

    lead     magic, version, length of the header; sha256 of these and the header
    header   JSON: identity, system message, block size, key of every token, type and shape of every array, bytes and
             sha256 of the payload; blanks up to the next page
    payload  for each block of the sequence, the bytes of its arrays
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from edge.runtime.errors import OutputError, SnapshotError, shown
from edge.runtime.files import is_blank, shown_path
from edge.runtime.json_reader import parse_json
from edge.runtime.kv.memory import Form

_MAGIC = b"EDGEKVPX"
_VERSION = 1
_LEAD = struct.Struct("<8sIQ32s")
_SIGNED = _LEAD.size - 32  # bytes of the lead that the digest covers
_PAGE = 4096
_MAX_HEADER_BYTES = 1 << 28
_MAX_DIMENSIONS, _MAX_ARRAYS = 8, 10_000  # of a block
_MAX_NUMBER = 2**128  # the keys of pictures are hashes
REBUILD = "build it again with `edge prefix build`"


@dataclass(frozen=True, slots=True)
class SnapshotIdentity:
    """What keys and values depend on, besides the tokens."""

    model_sha256: str
    tokenizer_sha256: str
    layout: Mapping[str, str]  # `Engine.identity`

    def differences(self, expected: SnapshotIdentity) -> list[str]:
        """Return in words what differs from the expected identity; nothing if they are equal."""
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
    system: str | None  # the system message, if the prefix is one


@dataclass(frozen=True, slots=True)
class Header:
    """The JSON header."""

    identity: SnapshotIdentity
    block_size: int  # tokens
    keys: list[int]  # of all tokens: ids for text, and numbers beyond any id for pictures
    full: list[Form]  # arrays of every block but the last
    last: list[Form]
    payload_bytes: int
    payload_sha256: str
    system: str | None

    @property
    def num_tokens(self) -> int:
        return len(self.keys)

    @property
    def num_blocks(self) -> int:
        return -(-self.num_tokens // self.block_size)

    def block(self, index: int) -> tuple[list[Form], int]:
        """Return the arrays and the number of tokens of one block."""
        if index < self.num_blocks - 1:
            return self.full, self.block_size
        return self.last, self.num_tokens - index * self.block_size

    def to_bytes(self) -> bytes:
        """Return everything before the payload: a whole number of pages."""
        text = json.dumps(self._to_json(), sort_keys=True).encode()
        text += b" " * (-(_LEAD.size + len(text)) % _PAGE)
        lead = _LEAD.pack(_MAGIC, _VERSION, len(text), b"")[:_SIGNED]
        return lead + hashlib.sha256(lead + text).digest() + text

    def _to_json(self) -> dict[str, object]:
        return {
            "identity": {
                "model_sha256": self.identity.model_sha256,
                "tokenizer_sha256": self.identity.tokenizer_sha256,
                "layout": dict(self.identity.layout),
            },
            "block_size": self.block_size,
            "ids": self.keys,  # all keys were ids when the format was made, and such files still open
            "full": self.full,
            "last": self.last,
            "payload_bytes": self.payload_bytes,
            "payload_sha256": self.payload_sha256,
            "system": self.system,
        }

    @classmethod
    def from_json(cls, text: bytes) -> Header:
        """Raises SnapshotError, ValueError, KeyError, TypeError and AttributeError for an invalid header."""
        data = parse_json(text, "the header", SnapshotError, REBUILD, unique_keys=True)
        identity = data["identity"]
        header = cls(
            identity=SnapshotIdentity(
                model_sha256=str(identity["model_sha256"]),
                tokenizer_sha256=str(identity["tokenizer_sha256"]),
                layout={str(name): str(value) for name, value in identity["layout"].items()},
            ),
            block_size=_natural(data["block_size"]),
            keys=[_natural(key, 0) for key in data["ids"]],
            full=_forms_from(data["full"]),
            last=_forms_from(data["last"]),
            payload_bytes=_natural(data["payload_bytes"], 0),
            payload_sha256=str(data["payload_sha256"]),
            system=None if data["system"] is None else str(data["system"]),
        )
        sizes = (header.num_blocks - 1) * bytes_of(header.full) + bytes_of(header.last)
        if not header.keys or sizes != header.payload_bytes:
            raise ValueError(f"its arrays take {sizes} bytes, it states {header.payload_bytes}")
        return header


def open_checked(path: Path) -> tuple[BinaryIO, Header, int]:
    """Return the open file, its header, and where the payload begins. Raises SnapshotError."""
    try:
        if not path.exists():
            raise SnapshotError(f"{shown_path(path)}: no such file; make one with `edge prefix build`")
        if not path.is_file():
            raise SnapshotError(f"{shown_path(path)} is not a file; expected one made by `edge prefix build`")
        file = path.open("rb")
        try:
            return file, *_parse(path, file)
        except BaseException:
            file.close()
            raise
    except OSError as error:
        raise SnapshotError(f"{shown_path(path)} cannot be read ({error.strerror or error}); check the file") from error


def check_replaceable(path: Path) -> None:
    """Raises OutputError if a new prefix file would replace a file of another kind."""
    if not path.is_file():
        return
    try:
        with path.open("rb") as file:
            found = file.read(len(_MAGIC))
        blank = not found or (path.stat().st_size >= _PAGE and is_blank(path))
    except OSError as error:
        raise OutputError(f"{path} cannot be read ({error.strerror}); name another file") from error
    if not blank and found != _MAGIC:
        raise OutputError(f"{path} exists and is not a prefix file; move it away, or name another file")


def read_header(path: Path) -> SnapshotInfo:
    """Return what a file says about itself, without reading its keys and values. Raises SnapshotError."""
    file, header, begin = open_checked(path)
    file.close()
    size = begin + header.payload_bytes
    return SnapshotInfo(header.identity, header.num_tokens, header.block_size, size, header.system)


def bytes_of(forms: list[Form]) -> int:
    return sum(int(kind[-1]) * math.prod(shape) for kind, shape in forms)


def _parse(path: Path, file: BinaryIO) -> tuple[Header, int]:
    size = os.fstat(file.fileno()).st_size
    lead = file.read(_LEAD.size)
    if lead[: len(_MAGIC)] != _MAGIC:
        raise SnapshotError(f"{path} is not a prefix file; make one with `edge prefix build`")
    damaged = f"{path} is damaged: {{}}; copy it again or {REBUILD}"
    if len(lead) < _LEAD.size:
        raise SnapshotError(damaged.format(f"it ends after {size} bytes"))
    _, version, length, digest = _LEAD.unpack(lead)
    if version != _VERSION:
        advice = "update edgeglm or " if version > _VERSION else ""
        raise SnapshotError(f"{path} is a prefix file of version {version}, expected {_VERSION}; {advice}{REBUILD}")
    begin = _LEAD.size + length
    if begin > min(size, _MAX_HEADER_BYTES):
        raise SnapshotError(damaged.format(f"it has {size:,} bytes, its header alone {length:,}"))
    text = file.read(length)
    if hashlib.sha256(lead[:_SIGNED] + text).digest() != digest:
        raise SnapshotError(damaged.format("its header differs from its sha256"))
    try:
        header = Header.from_json(text)
    except (ValueError, KeyError, TypeError, AttributeError, SnapshotError) as error:
        raise SnapshotError(damaged.format(f"its header does not read ({shown(str(error))})")) from error
    if size != begin + header.payload_bytes:
        raise SnapshotError(damaged.format(f"it has {size:,} bytes, expected {begin + header.payload_bytes:,}"))
    return header, begin


def _forms_from(data: Any) -> list[Form]:
    forms = [(str(kind), tuple(_natural(size) for size in shape[:_MAX_DIMENSIONS])) for kind, shape in data]
    if any(len(shape) > _MAX_DIMENSIONS for _, shape in data) or len(forms) > _MAX_ARRAYS:
        raise ValueError("more arrays, or dimensions of one, than a cache has")
    if not all(re.fullmatch("[<>|][fiu][1248]", kind) for kind, _ in forms):
        raise ValueError("a type that no cache has")
    return forms


def _natural(value: Any, least: int = 1) -> int:
    if type(value) is not int or not least <= value < _MAX_NUMBER:
        raise ValueError(f"{shown(value)} is not an integer of {least} or more")
    return value
