"""Prefix files: most inputs get the sha256s that fit. What opens restores as it says, and leaves the pool whole."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from edge.runtime.kv.memory import PagedMemory
from edge.runtime.kv.pool import BlockPool, CacheSequence
from edge.runtime.kv.snapshot import open_snapshot, save_snapshot
from edge.runtime.kv.snapshot_format import SnapshotIdentity
from tests.fuzz.target import Target
from tests.runtime.blocks import views

IDENTITY = SnapshotIdentity("a1" * 32, "b2" * 32, {"engine": "paged"})
TOKENS = 10
_LEAD = struct.Struct("<8sIQ32s")


@cache
def _pool() -> BlockPool:
    return BlockPool(8, 4, PagedMemory(8, [24, 40]))


def _seeds(folder: Path) -> list[bytes]:
    pool = _pool()
    sequence = CacheSequence(pool)
    sequence.reserve(TOKENS)
    for number, block in enumerate(sequence.block_table):
        for view in views(pool.memory, block, pool.block_size):
            view[...] = number + 1
    sequence.commit(TOKENS)
    save_snapshot(folder / "seed", range(100, 100 + TOKENS), sequence, pool, IDENTITY, "You are kind.")
    sequence.free()
    return [(folder / "seed").read_bytes()]


def _forged(raw: bytes) -> bytes:
    """With the sha256s of what it holds."""
    try:
        magic, version, length, _ = _LEAD.unpack(raw[: _LEAD.size])
        text, payload = raw[_LEAD.size : _LEAD.size + length], raw[_LEAD.size + length :]
        if zlib.crc32(raw) % 2:
            header: dict[str, Any] = json.loads(text)
            header["payload_sha256"] = hashlib.sha256(payload).hexdigest()
            if zlib.crc32(raw) % 4 == 1:
                header["payload_bytes"] = len(payload)
            text = json.dumps(header).encode()
            text += b" " * (-(_LEAD.size + len(text)) % 4096)
        lead = _LEAD.pack(magic, version, len(text), b"")[:-32]
        return lead + hashlib.sha256(lead + text).digest() + text + payload
    except Exception:  # then it is tried as it is
        return raw


def _read(raw: bytes, folder: Path) -> object:
    pool, path = _pool(), folder / "it"
    free = pool.num_free
    raw = _forged(raw) if zlib.crc32(raw) % 8 else raw
    path.write_bytes(raw)
    try:
        snapshot = open_snapshot(path, IDENTITY)
        try:
            for count in {snapshot.num_tokens, min(snapshot.num_tokens, 5)}:
                if count > pool.num_blocks * pool.block_size:
                    continue
                sequence = snapshot.restore(pool, count)
                assert sequence.num_tokens == count
                held = [views(pool.memory, block, pool.block_size) for block in sequence.block_table]
                if raw.endswith(_payload_of(raw)) and count > 4:
                    assert np.array_equal(
                        held[0][0].reshape(-1).view(np.uint8), np.frombuffer(_payload_of(raw)[:24], np.uint8)
                    )
                sequence.free()
        finally:
            snapshot.close()
    finally:
        pool.check_integrity(())
        assert pool.num_free == free, "blocks are lost"
    return True


def _payload_of(raw: bytes) -> bytes:
    _, _, length, _ = _LEAD.unpack(raw[: _LEAD.size])
    return raw[_LEAD.size + length :]


TARGETS = (
    Target(
        "prefix-file",
        _seeds,
        _read,
        "bytes",
        (b'"ids"', b"[[", b"1, ", b"<f4", b"|u1", b"null", b"9" * 50, b"EDGEKVPX"),
    ),
)
