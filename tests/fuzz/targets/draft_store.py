"""Draft stores: most inputs get a sha256 that fits, so that what lies behind it is tried."""

from __future__ import annotations

import hashlib
import struct
import zlib
from pathlib import Path

from edge.runtime.errors import DraftStoreError
from edge.runtime.speculation.store import DraftStore
from tests.fuzz.target import Target

TOKENIZER = "0123456789abcdef" * 4
VOCABULARY = 50
_HEADER = struct.Struct("<8sI32sQQ")
_BEGIN = _HEADER.size + 32
_TEXTS = [[1, 2, 3, 4, 5, 1, 2, 3, 9, 9], [7, 8, 7, 8, 7, 8, 7, 8], [1, 2, 3, 4, 5, 6, 7, 8]]


def _seeds(folder: Path) -> list[bytes]:
    path, empty = folder / "seed.drafts", folder / "empty.drafts"
    store = DraftStore.open(path, TOKENIZER, 1000)
    for text in _TEXTS:
        store.add(text)
    store.save()
    DraftStore.open(empty, TOKENIZER, 1000)
    return [path.read_bytes(), path.read_bytes(), empty.read_bytes()]


def forged(raw: bytes) -> bytes:
    """With the numbers and the sha256 that its content has."""
    head, body = raw[: _HEADER.size], raw[_BEGIN:]
    if len(head) < _HEADER.size:
        return raw
    magic, version, tokenizer, ids, _ = _HEADER.unpack(head)
    if zlib.crc32(raw) % 2:
        ids = min(ids, len(body) // 4)
        head = _HEADER.pack(magic, version, tokenizer, ids, len(body) // 4 - ids)
        body = body[: len(body) // 4 * 4]
    return head + hashlib.sha256(head + body).digest() + body


def _read(raw: bytes, folder: Path) -> object:
    path = folder / "it.drafts"
    path.write_bytes(forged(raw) if zlib.crc32(raw) % 8 else raw)
    store = DraftStore.open(path, TOKENIZER, 1000, num_ids=VOCABULARY)
    for tail in ([1, 2], [1, 2, 3], [7, 8, 7, 8], [9, 9, 0], [2**31 - 2] * 40, [0, 0]):
        length, ids = store.draft(tail, 32)
        assert 0 <= length <= len(tail)
        if not all(0 <= token_id < VOCABULARY for token_id in ids):
            raise AssertionError(f"drafted {ids}")
    store.add([3, 1, 4, 1, 5])
    store.draft([3, 1], 32)
    if zlib.crc32(raw) % 64 == 0:
        store.save()
        try:
            DraftStore.open(path, TOKENIZER, 1000, num_ids=VOCABULARY)
        except DraftStoreError as error:
            raise AssertionError("what it saved does not open") from error
    return store.num_tokens


TARGETS = (Target("draft-store", _seeds, _read, "bytes", (b"\0\0\0\1", b"\0\0\0\0", b"\xff\xff\xff\xff", b"EDGEDRFT")),)
