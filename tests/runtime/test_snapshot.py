"""Prefix files: what is restored is what was saved, bit by bit; what is damaged or for something else is refused."""

from __future__ import annotations

import errno
import gc
import hashlib
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.runtime.arrays import Array
from edge.runtime.bundle import open_bundle
from edge.runtime.engines.choice import open_engine
from edge.runtime.engines.engine import Engine
from edge.runtime.errors import CacheError, CacheFullError, OutputError, SnapshotError
from edge.runtime.kv import snapshot as snapshot_module
from edge.runtime.kv.memory import BlockMemory, Form, PagedMemory, SlotMemory
from edge.runtime.kv.pool import BlockPool, CacheSequence
from edge.runtime.kv.snapshot import Snapshot, open_snapshot, save_snapshot
from edge.runtime.kv.snapshot_format import SnapshotIdentity, read_header
from edge.runtime.settings import EngineSettings
from tests.runtime.blocks import views

IDENTITY = SnapshotIdentity("a1" * 32, "b2" * 32, {"engine": "paged", "cache": "u8[2, 4, 6]"})
BLOCK = 4  # tokens
PAGED_BYTES = (24, 40)
SLOT_TOKENS = 30


def paged(num_blocks: int = 24, block_size: int = BLOCK, seed: int | None = None) -> BlockPool:
    memory = PagedMemory(num_blocks, [size * block_size // BLOCK for size in PAGED_BYTES])
    return BlockPool(num_blocks, block_size, fill(memory, memory.buffers, seed))


def slots(num_slots: int = 3, tokens: int = SLOT_TOKENS, seed: int | None = None, heads: int = 2) -> BlockPool:
    memory = SlotMemory(num_slots, 4, (heads, tokens, 3), np.float16)
    return BlockPool(num_slots, tokens, fill(memory, memory.buffers, seed))


def fill(memory: BlockMemory, buffers: list[np.ndarray], seed: int | None) -> BlockMemory:
    """Random bytes, NaN among them."""
    random = np.random.default_rng(seed)
    for buffer in buffers:
        buffer.reshape(-1).view(np.uint8)[:] = random.integers(0, 256, buffer.nbytes, np.uint8)
    return memory


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


KINDS: dict[str, Callable[..., BlockPool]] = {"paged": paged, "slots": slots}
kinds = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


def sequence_of(pool: BlockPool, num_tokens: int) -> CacheSequence:
    """Not the first blocks of the pool, and not in order; what was there before it, as if computed."""
    spare = pool.allocate(1)
    before = [[view.copy() for view in views(pool.memory, b, pool.block_size)] for b in range(pool.num_blocks)]
    sequence = CacheSequence(pool)
    sequence.reserve(num_tokens)
    sequence.block_table.reverse()
    for block in sequence.block_table:
        for view, old in zip(views(pool.memory, block, pool.block_size), before[block], strict=True):
            view[...] = old
    sequence.commit(num_tokens)
    pool.release(spare)
    return sequence


def content(pool: BlockPool, sequence: CacheSequence, num_tokens: int) -> list[bytes]:
    """Bytes of the arrays of the first tokens."""
    return [
        view.tobytes()
        for index in range(pool.blocks_for(num_tokens))
        for view in views(
            pool.memory, sequence.block_table[index], min(num_tokens - index * pool.block_size, pool.block_size)
        )
    ]


def save(path: Path, pool: BlockPool | None = None, num_tokens: int = 10) -> bytes:
    """A file of ids 100, 101...; its content."""
    pool = pool or paged(seed=1)
    sequence = sequence_of(pool, num_tokens)
    save_snapshot(path, range(100, 100 + num_tokens + 3), sequence, pool, IDENTITY)
    sequence.free()
    return path.read_bytes()


@kinds
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 28), st.integers(0, 28), st.integers(0, 28))
def test_restored_tokens_are_the_saved_ones(make: Callable[..., BlockPool], saved: int, wanted: int, held: int) -> None:
    wanted = min(saved, wanted)
    pool, other = make(seed=1), make(seed=2)
    sequence = sequence_of(pool, saved)
    with tempfile.TemporaryDirectory() as folder:
        save_snapshot(Path(folder) / "prefix", range(1000, 1100), sequence, pool, IDENTITY)
        assert names(Path(folder)) == ["prefix"]
        snapshot = open_snapshot(Path(folder) / "prefix", IDENTITY)
    assert snapshot.keys == list(range(1000, 1000 + saved))
    assert snapshot.num_tokens == saved
    assert snapshot.bytes == sum(map(len, content(pool, sequence, saved)))
    restored = snapshot.restore(other, wanted)
    assert restored.num_tokens == wanted
    assert content(other, restored, wanted) == content(pool, sequence, wanted)
    other.check_integrity(restored.block_table)

    begun = snapshot.restore(other, min(held, wanted))
    kept = begun.fork()  # whose last block is shared, so it must not be written into
    before = content(other, kept, kept.num_tokens)
    assert snapshot.restore(other, wanted, begun) is begun
    assert content(other, begun, wanted) == content(pool, sequence, wanted)
    assert content(other, kept, kept.num_tokens) == before
    other.check_integrity([*restored.block_table, *begun.block_table, *kept.block_table])


def test_a_sequence_that_has_more_stays_as_it_is(tmp_path: Path) -> None:
    save(tmp_path / "prefix")
    pool = paged(seed=2)
    sequence = sequence_of(pool, 7)
    before = content(pool, sequence, 7)
    assert open_snapshot(tmp_path / "prefix", IDENTITY).restore(pool, 5, sequence) is sequence
    assert sequence.num_tokens == 7
    assert content(pool, sequence, 7) == before


@kinds
def test_the_rest_of_the_pool_is_not_touched(make: Callable[..., BlockPool], tmp_path: Path) -> None:
    save(tmp_path / "prefix", make(seed=1))
    pool = make(seed=2)
    other = CacheSequence(pool)
    other.reserve(9)
    other.commit(9)
    before = content(pool, other, 9)
    open_snapshot(tmp_path / "prefix", IDENTITY).restore(pool, 10)
    assert content(pool, other, 9) == before


def test_only_what_was_computed_of_a_slot_is_saved(tmp_path: Path) -> None:
    """Also: slots of another size, that is another max_context, take it as long as it fits."""
    one, other = slots(tokens=30, seed=1), slots(tokens=12, seed=1)
    sequence = sequence_of(one, 10)
    save_snapshot(tmp_path / "prefix", range(10), sequence, one, IDENTITY)
    snapshot = open_snapshot(tmp_path / "prefix", IDENTITY)
    assert snapshot.bytes == 4 * 2 * 10 * 3 * 2
    for tokens in (10, 3):
        assert content(other, snapshot.restore(other, tokens), tokens) == content(one, sequence, tokens)
    small = slots(tokens=8)
    assert content(small, snapshot.restore(small, 8), 8) == content(one, sequence, 8)
    with pytest.raises(SnapshotError, match="9 tokens in blocks of 30, expected blocks of 8"):
        snapshot.restore(small, 9)
    assert small.num_free == 2


@kinds
def test_a_full_pool_holds_nothing_of_it(make: Callable[..., BlockPool], tmp_path: Path) -> None:
    save(tmp_path / "prefix", make(seed=1))
    pool = make(seed=2)
    snapshot = open_snapshot(tmp_path / "prefix", IDENTITY)
    taken = pool.allocate(pool.num_free - pool.blocks_for(10) + 1)
    with pytest.raises(CacheFullError, match="more blocks"):
        snapshot.restore(pool, 10)
    pool.check_integrity(taken)
    pool.release(taken[:1])
    assert snapshot.restore(pool, 10).num_tokens == 10


def test_an_interrupted_restore_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "prefix")
    snapshot, pool = open_snapshot(tmp_path / "prefix", IDENTITY), paged()
    arrays, calls = snapshot_module.Snapshot._arrays, []

    def interrupted(self: snapshot_module.Snapshot, content: BinaryIO, index: int, wanted: list[Form]) -> list[Array]:
        calls.append(index)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return arrays(self, content, index, wanted)

    monkeypatch.setattr(snapshot_module.Snapshot, "_arrays", interrupted)
    with pytest.raises(KeyboardInterrupt):
        snapshot.restore(pool, 10)
    pool.check_integrity([])


def test_the_same_prefix_is_the_same_file(tmp_path: Path) -> None:
    assert save(tmp_path / "one", slots(seed=1)) == save(tmp_path / "other", slots(seed=1))
    assert len(save(tmp_path / "one")) - 192 == 4096  # 3 blocks of 64 bytes behind a page


# What the format's first version wrote for two tokens, with keys of which the second is no id: as long as the version
# stays, so do the bytes.
FIRST_HEADER = (
    b'{"block_size": 3, "full": [], "identity": {"layout": {"engine": "slots"}, "model_sha256": "'
    + b"a1" * 32
    + b'", "tokenizer_sha256": "'
    + b"b2" * 32
    + b'"}, "ids": [7, 4294967301], "last": [["<f2", [1, 2, 3]], ["<f2", [1, 2, 3]], ["<f2", [1, 2, 3]], '
    b'["<f2", [1, 2, 3]]], "payload_bytes": 48, "payload_sha256": '
    b'"96fe6fd7877c9a66f99a3060bc67119df04d9c654508c64ade5bb71613476686", "system": "Be brief."}'
)
FIRST_FILE = (
    b"EDGEKVPX\x01\0\0\0\xcc\x0f\0\0\0\0\0\0"
    + bytes.fromhex("74a887565b7c047e3ecb3af650c9ca722f51465fc83daba87fd696eeec117075")
    + FIRST_HEADER.ljust(4096 - 52)
    + bytes(range(12)) * 4
)


def test_a_file_of_the_first_version_opens_and_is_still_written_so(tmp_path: Path) -> None:
    (tmp_path / "first").write_bytes(FIRST_FILE)
    identity = replace(IDENTITY, layout={"engine": "slots"})
    info = read_header(tmp_path / "first")
    assert (info.num_tokens, info.bytes, info.system) == (2, len(FIRST_FILE), "Be brief.")
    snapshot = open_snapshot(tmp_path / "first", identity)
    assert snapshot.keys == [7, 2**32 + 5]
    pool = slots(num_slots=1, tokens=3, seed=1, heads=1)
    sequence = snapshot.restore(pool, 2)
    assert content(pool, sequence, 2) == [bytes(range(12))] * 4
    save_snapshot(tmp_path / "again", [7, 2**32 + 5, 9], sequence, pool, identity, "Be brief.")
    assert (tmp_path / "again").read_bytes() == FIRST_FILE


@pytest.mark.parametrize("content", [b"my notes", b"EDGEKV", b"\0", bytes(5000) + b"an image of a disk"])
def test_files_of_others_stay(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(OutputError, match="exists and is not a prefix file"):
        save(path)
    assert path.read_bytes() == content
    path.write_bytes(b"")  # as mktemp makes one
    whole = save(path)
    path.write_bytes(whole[:100])  # a damaged one is replaced
    assert save(path) == whole


def test_what_holds_nothing_is_not_saved(tmp_path: Path) -> None:
    pool = paged()
    freed = sequence_of(pool, 5)
    freed.free()
    for sequence in (CacheSequence(pool), freed):
        with pytest.raises(CacheError, match="holds no tokens"):
            save_snapshot(tmp_path / "prefix", [1, 2, 3], sequence, pool, IDENTITY)
    assert names(tmp_path) == []


def test_a_header_tells_what_a_file_is_for(tmp_path: Path) -> None:
    size = len(save(tmp_path / "prefix"))
    info = read_header(tmp_path / "prefix")
    assert (info.identity, info.num_tokens, info.block_size, info.bytes) == (IDENTITY, 10, BLOCK, size)


def test_a_closed_snapshot_restores_nothing(tmp_path: Path) -> None:
    save(tmp_path / "prefix")
    snapshot = open_snapshot(tmp_path / "prefix", IDENTITY)
    snapshot.restore(paged(), 10)
    snapshot.close()
    snapshot.close()
    with pytest.raises(CacheError, match="has been closed"):
        snapshot.restore(paged(), 10)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
def test_no_file_stays_open(tmp_path: Path) -> None:
    whole = save(tmp_path / "prefix")
    (tmp_path / "damaged").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    gc.collect()  # what earlier tests left
    before = len(names(Path("/proc/self/fd")))
    for _ in range(3):
        open_snapshot(tmp_path / "prefix", IDENTITY)
        open_snapshot(tmp_path / "prefix", IDENTITY).close()
        read_header(tmp_path / "prefix")
        for name, identity in (("damaged", IDENTITY), ("prefix", replace(IDENTITY, model_sha256="c3" * 32))):
            with pytest.raises(SnapshotError):
                open_snapshot(tmp_path / name, identity)
    assert len(names(Path("/proc/self/fd"))) <= before


# What is refused.


def refused(path: Path, match: str, identity: SnapshotIdentity = IDENTITY) -> None:
    with pytest.raises(SnapshotError, match=match) as caught:
        open_snapshot(path, identity)
    assert re.search(r"edge prefix build|check the file", str(caught.value))


@kinds
def test_a_truncated_file(make: Callable[..., BlockPool], tmp_path: Path) -> None:
    path = tmp_path / "prefix"
    whole = save(path, make(seed=1))
    for size in (1, 7):
        path.write_bytes(whole[:size])
        refused(path, "is not a prefix file")
    for size in (8, 12, 51, 52, 500, 4095, 4096, 4097, len(whole) // 2 + 2048, len(whole) - 1):
        path.write_bytes(whole[:size])
        refused(path, "is damaged: it (ends|has)")
        with pytest.raises(SnapshotError, match="is damaged"):
            read_header(path)
    path.write_bytes(whole + b"\0")
    refused(path, "is damaged: it has")
    path.write_bytes(whole)
    assert open_snapshot(path, IDENTITY).num_tokens == 10


def test_an_altered_byte_wherever_it_is(tmp_path: Path) -> None:
    path = tmp_path / "prefix"
    whole = save(path)
    id_at, blank_at = whole.index(b"[100, 101") + 3, 4095
    assert whole[blank_at : blank_at + 1] == b" "
    for at in [*range(len(whole[:52])), id_at, blank_at, *range(52, 4096, 97), *range(4096, len(whole), 5)]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        if at < 8:
            refused(path, "is not a prefix file")
        elif at < 12:
            refused(path, r"is a prefix file of version \d+, expected 1")
        elif at < 4096:
            refused(path, "is damaged: (it has .* its header alone|its header differs from its sha256)")
        else:
            refused(path, "is damaged: its keys and values differ from their sha256")


@pytest.mark.parametrize(("version", "advice"), [(2, "update edgeglm or build"), (0, "; build it again")])
def test_another_version(tmp_path: Path, version: int, advice: str) -> None:
    whole = save(tmp_path / "prefix")
    (tmp_path / "prefix").write_bytes(whole[:8] + struct.pack("<I", version) + whole[12:])
    refused(tmp_path / "prefix", f"of version {version}, expected 1; .*{advice}|{advice}")


def test_a_page_is_read_whatever_the_length_says(tmp_path: Path) -> None:
    whole = save(tmp_path / "prefix")
    for length in (0, 1, 4095, 2**40, 2**64 - 1):
        (tmp_path / "prefix").write_bytes(whole[:12] + struct.pack("<Q", length) + whole[20:])
        refused(tmp_path / "prefix", "is damaged: (it has .* its header alone|its header differs)")


@pytest.mark.parametrize(
    "change",
    [
        {"ids": []},
        {"ids": [], "full": [["|u1", [5]]], "last": [["|u1", [5]]], "payload_bytes": 0},
        {"ids": [*range(9), -3]},
        {"ids": [*range(9), True]},
        {"ids": [*range(9), 1.0]},
        {"ids": "123"},
        {"block_size": 0},
        {"block_size": 2.0},
        {"payload_bytes": 0},
        {"payload_bytes": 10**20},
        {"last": [["|O8", [3]]]},
        {"last": [["|u1", [2**70]]]},
        {"last": [["|u1"]]},
        {"full": None},
        {"identity": "mine"},
        {"identity": {"model_sha256": ""}},
        {"identity": {"model_sha256": "", "tokenizer_sha256": "", "layout": 3}},
    ],
    ids=str,
)
def test_a_header_that_is_sealed_but_wrong(tmp_path: Path, change: dict[str, object]) -> None:
    whole = save(tmp_path / "prefix")
    header = json.loads(whole[52:4096])
    (tmp_path / "prefix").write_bytes(sealed(json.dumps(header | change).encode()) + whole[4096:])
    refused(tmp_path / "prefix", "is damaged: its header does not read")


@pytest.mark.parametrize("text", [b"", b"3", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_a_header_that_is_no_header(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "prefix").write_bytes(sealed(text))
    refused(tmp_path / "prefix", "is damaged: its header does not read")


def sealed(text: bytes) -> bytes:
    lead = struct.pack("<8sIQ", b"EDGEKVPX", 1, len(text))
    return lead + hashlib.sha256(lead + text).digest() + text


def test_what_is_no_prefix_file(tmp_path: Path) -> None:
    path = tmp_path / "prefix"
    refused(path, "prefix: no such file; make one")
    refused(tmp_path, "is not a file")
    path.write_bytes(b"")
    refused(path, "is not a prefix file")
    path.write_bytes(b"a letter to someone" * 1000)
    refused(path, "is not a prefix file")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "is not a file")  # and does not wait for a writer
    refused(tmp_path / ("x" * 300), "cannot be read")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "prefix"
    save(path)
    if os.geteuid():
        path.chmod(0)
    else:  # whom no mode keeps off

        def denied(*_: object) -> None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        monkeypatch.setattr(Path, "open", denied)
    refused(path, r"cannot be read \(Permission denied\)")


@pytest.mark.parametrize(
    ("identity", "match"),
    [
        (replace(IDENTITY, model_sha256="c3" * 32), "model has sha256 a1a1a1a1a1a1a1a1…, expected c3c3c3c3c3c3c3c3…;"),
        (replace(IDENTITY, tokenizer_sha256="c3" * 32), "tokenizer has sha256 b2b2b2b2b2b2b2b2…, expected c3c3"),
        (
            replace(IDENTITY, layout={**IDENTITY.layout, "engine": "slots"}),
            "else: engine is paged, expected slots; load",
        ),
        (
            replace(IDENTITY, layout={"engine": "paged", "cache": "f32[2, 4, 6]", "device": "GPU"}),
            r"else: cache is u8\[2, 4, 6\], expected f32\[2, 4, 6\]; device is not stated, expected GPU; load",
        ),
        (replace(IDENTITY, layout={"engine": "paged"}), r"cache is u8\[2, 4, 6\], expected not stated"),
        (
            SnapshotIdentity("c3" * 32, "c3" * 32, {"engine": "slots", "cache": "f16"}),
            "model .*; tokenizer .*; engine .*; cache ",
        ),
    ],
)
def test_a_file_for_something_else(tmp_path: Path, identity: SnapshotIdentity, match: str) -> None:
    save(tmp_path / "prefix")
    refused(tmp_path / "prefix", match, identity)
    assert IDENTITY.differences(IDENTITY) == []


def test_blocks_of_another_form_whatever_the_identity_says(tmp_path: Path) -> None:
    save(tmp_path / "prefix")
    snapshot = open_snapshot(tmp_path / "prefix", IDENTITY)
    one_block = SlotMemory(3, 2, (2, BLOCK, 3), np.uint8)
    for pool, match in (
        (paged(block_size=8), "10 tokens in blocks of 4, expected blocks of 8"),
        (BlockPool(5, BLOCK, PagedMemory(5, [24])), r"\|u1\[40\] for 2 tokens, here 2 tokens have nothing\[\]"),
        (BlockPool(5, BLOCK, PagedMemory(5, [24, 40, 8])), r"nothing\[\] for 2 tokens, here 2 tokens have \|u1\[8\]"),
        (BlockPool(5, BLOCK, PagedMemory(5, [24, 39])), r"\|u1\[40\] for 2 tokens, here 2 tokens have \|u1\[39\]"),
        (BlockPool(3, BLOCK, one_block), r"\|u1\[24\] for 2 tokens, here 2 tokens have \|u1\[2, 2, 3\]"),
    ):
        with pytest.raises(SnapshotError, match=match):
            snapshot.restore(pool, 10)
        pool.check_integrity([])
    whole = (tmp_path / "prefix").read_bytes()
    swapped = json.loads(whole[52:4096]) | {"full": [["|u1", [40]], ["|u1", [24]]]}
    (tmp_path / "swapped").write_bytes(sealed(json.dumps(swapped).encode()) + whole[4096:])
    snapshot = open_snapshot(tmp_path / "swapped", IDENTITY)
    with pytest.raises(SnapshotError, match=r"\|u1\[40\] for 4 tokens, here 4 tokens have \|u1\[24\]"):
        snapshot.restore(paged(), 10)
    save(tmp_path / "slots", slots(seed=1))
    snapshot = open_snapshot(tmp_path / "slots", IDENTITY)
    for pool in (slots(heads=1), BlockPool(3, 30, SlotMemory(3, 4, (2, 30, 3), np.float32))):
        with pytest.raises(SnapshotError, match=r"<f2\[2, 10, 3\] for 10 tokens, here 10 tokens have <f"):
            snapshot.restore(pool, 10)


@pytest.mark.parametrize("size", [100, None])
def test_a_file_that_is_written_over_while_it_is_open(tmp_path: Path, size: int | None) -> None:
    """Not replaced, as we do, but cut and written: reading behind the end would kill the process."""
    path = tmp_path / "prefix"
    whole = save(path)
    snapshot = open_snapshot(path, IDENTITY)
    path.write_bytes(whole[:size])
    os.utime(path, ns=(1, 1))  # a clock may be too coarse to tell
    with pytest.raises(SnapshotError, match="was overwritten since it was opened"):
        snapshot.restore(paged(), 10)


def test_a_file_that_is_cut_short_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at its size and the copy: as long as it was mapped, this was a bus error."""
    path = tmp_path / "prefix"
    save(path)
    snapshot, pool = open_snapshot(path, IDENTITY), paged()
    check_fits = Snapshot._check_fits

    def cut(self: Snapshot, pool: BlockPool, num_tokens: int) -> None:
        check_fits(self, pool, num_tokens)
        os.truncate(path, 4100)

    monkeypatch.setattr(Snapshot, "_check_fits", cut)
    with pytest.raises(SnapshotError, match="was overwritten since it was opened"):
        snapshot.restore(pool, 10)
    pool.check_integrity([])
    assert pool.num_free == pool.num_blocks


@pytest.mark.skipif(sys.platform == "win32", reason="os.pread")
def test_a_disk_that_fails_is_an_error_and_no_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "prefix")
    snapshot, pool = open_snapshot(tmp_path / "prefix", IDENTITY), paged()

    def broken(*_: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", broken)
    with pytest.raises(SnapshotError, match=r"cannot be read \(Input/output error\); copy it again"):
        snapshot.restore(pool, 10)
    pool.check_integrity([])


def test_a_file_that_is_replaced_while_it_is_open(tmp_path: Path) -> None:
    whole = save(tmp_path / "prefix", paged(seed=1))
    snapshot, pool = open_snapshot(tmp_path / "prefix", IDENTITY), paged()
    assert save(tmp_path / "prefix", paged(seed=2)) != whole
    assert b"".join(content(pool, snapshot.restore(pool, 10), 10)) == whole[4096:]


# What goes wrong while one is written.


@pytest.mark.parametrize("fails", ["os.fsync", "pathlib.Path.replace"])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    whole = save(tmp_path / "prefix")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(fails, full)
        with pytest.raises(OutputError, match=r"No space left on device: 4,288 bytes are needed, [\d,]+ free"):
            save(tmp_path / "prefix", paged(seed=2))
    assert (tmp_path / "prefix").read_bytes() == whole
    assert names(tmp_path) == ["prefix"]


FILL = """
import resource, signal, sys
from pathlib import Path
from edge.runtime.errors import OutputError
from edge.runtime.kv.memory import PagedMemory
from edge.runtime.kv.pool import BlockPool, CacheSequence
from edge.runtime.kv.snapshot import save_snapshot
from edge.runtime.kv.snapshot_format import SnapshotIdentity
pool = BlockPool(4, 4, PagedMemory(4, [1_000_000]))
sequence = CacheSequence(pool)
sequence.reserve(16)
sequence.commit(16)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, 1_500_000))
try:
    save_snapshot(Path(sys.argv[1]), range(16), sequence, pool, SnapshotIdentity("", "", {}))
except OutputError as error:
    print(error)
"""


def test_a_file_that_cannot_grow_leaves_the_old_one(tmp_path: Path) -> None:
    whole = save(tmp_path / "prefix")
    done = subprocess.run(
        [sys.executable, "-c", FILL, str(tmp_path / "prefix")], capture_output=True, text=True, timeout=60, check=True
    )
    assert "File too large: 4,004,096 bytes are needed" in done.stdout
    assert (tmp_path / "prefix").read_bytes() == whole
    assert names(tmp_path) == ["prefix"]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"missing/prefix cannot be written \(No such file"):
        save(tmp_path / "missing" / "prefix")


SAVE = """
import sys
from pathlib import Path
from tests.runtime.test_snapshot import paged, save
pools = [paged(seed=int(sys.argv[2])) for _ in range(150)]
print("ready", flush=True)
sys.stdin.readline()
for pool in pools:
    save(Path(sys.argv[1]), pool)
"""


def test_two_processes_write_one_path_and_every_reader_finds_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "prefix"
    whole = [save(path, paged(seed=seed)) for seed in (1, 2)]
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", SAVE, str(path), str(seed)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for seed in (1, 2)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.close()
    seen = set()
    while any(writer.poll() is None for writer in writers):
        snapshot, pool = open_snapshot(path, IDENTITY), paged()
        seen.add(b"".join(content(pool, snapshot.restore(pool, 10), 10)))
        snapshot.close()
    for writer in writers:
        assert writer.stdout is not None
        writer.stdout.close()
        assert writer.returncode == 0
    assert seen == {one[4096:] for one in whole}
    assert names(tmp_path) == ["prefix"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_restores_too(tmp_path: Path) -> None:
    whole = save(tmp_path / "prefix")
    snapshot = open_snapshot(tmp_path / "prefix", IDENTITY)
    child = os.fork()
    if not child:
        pool = paged(seed=3)
        same = b"".join(content(pool, snapshot.restore(pool, 10), 10)) == whole[4096:]
        snapshot.close()
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    pool = paged(seed=4)
    assert b"".join(content(pool, snapshot.restore(pool, 10), 10)) == whole[4096:]


# Real engines.

PREFIX = np.random.default_rng(3).integers(0, 256, 70)
REST = np.random.default_rng(4).integers(0, 256, 9)
SETTINGS = {
    "openvino-f32": EngineSettings("openvino", inference_precision="f32", kv_precision="f32"),
    "openvino-u8": EngineSettings("openvino", inference_precision="f32", kv_precision="u8"),
    "openvino-reproducible": EngineSettings("openvino", kv_precision="f32", reproducible=True),
    "onnx-f32": EngineSettings("onnx"),
    "onnx-f16-reproducible": EngineSettings("onnx", kv_precision="f16", reproducible=True),
}


def identity_of(engine: Engine, model: str = "") -> SnapshotIdentity:
    return SnapshotIdentity(model, "", engine.identity)


def answer(engine: Engine, sequence: CacheSequence) -> bytes:
    """Logits of what follows, in one step and then token by token."""
    assert engine.pool is sequence._pool
    logits = [engine.forward(REST, sequence, np.arange(REST.size)).copy()]
    for token in REST[:3]:
        logits.append(engine.forward(np.array([token]), sequence, np.array([0])).copy())
    return np.concatenate(logits).tobytes()


ANSWER = """
import hashlib, sys
from pathlib import Path
from edge.runtime.bundle import open_bundle
from edge.runtime.engines.choice import open_engine
from edge.runtime.kv.snapshot import open_snapshot
from tests.runtime.test_snapshot import SETTINGS, answer, identity_of
from tests.runtime.blocks import views
engine = open_engine(open_bundle(sys.argv[1]), SETTINGS[sys.argv[2]])
for path, tokens in zip(sys.argv[3::2], sys.argv[4::2]):
    sequence = open_snapshot(Path(path), identity_of(engine)).restore(engine.pool, int(tokens))
    print(hashlib.sha256(answer(engine, sequence)).hexdigest())
    sequence.free()
"""


@pytest.mark.parametrize("name", SETTINGS)
def test_engines_go_on_bit_by_bit(tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    """In a fresh engine and in another process; from all of a prefix, from its full blocks and from a part of one.

    From a part only where a token's keys and values do not depend on what follows in its block.
    """
    bundle, path = open_bundle(tiny_bundle), tmp_path / "prefix"
    engine = open_engine(bundle, SETTINGS[name])
    sequence = CacheSequence(engine.pool)
    engine.forward(PREFIX, sequence, np.array([0]))
    save_snapshot(path, PREFIX.tolist(), sequence, engine.pool, identity_of(engine))
    lengths = [70, 64] if name == "openvino-u8" else [70, 64, 41]
    expected = {}
    for tokens in lengths:
        sequence.trim(min(tokens, sequence.num_tokens))
        expected[tokens] = answer(engine, sequence)
        sequence.trim(tokens)

    fresh = open_engine(bundle, SETTINGS[name])
    snapshot = open_snapshot(path, identity_of(fresh))
    assert snapshot.keys == PREFIX.tolist()
    for tokens in lengths:
        restored = snapshot.restore(fresh.pool, tokens)
        assert answer(fresh, restored) == expected[tokens], tokens
        restored.free()
    blank = CacheSequence(fresh.pool)
    fresh.forward(REST, blank, np.array([0]))
    assert answer(fresh, blank) != expected[70]  # what was restored matters

    pairs = [argument for tokens in lengths for argument in (str(path), str(tokens))]
    done = subprocess.run(
        [sys.executable, "-c", ANSWER, str(tiny_bundle), name, *pairs],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.split() == [hashlib.sha256(expected[tokens]).hexdigest() for tokens in lengths], done.stderr


def test_engines_refuse_each_others_files(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    chosen: list[str | str] = ["openvino-f32", "openvino-u8", "onnx-f32", "onnx-f16-reproducible"]
    engines = {name: open_engine(bundle, SETTINGS[name]) for name in chosen}
    for name, engine in engines.items():
        sequence = CacheSequence(engine.pool)
        engine.forward(PREFIX, sequence, np.array([0]))
        save_snapshot(tmp_path / name, PREFIX.tolist(), sequence, engine.pool, identity_of(engine))
    for saved in engines:
        for name, engine in engines.items():
            if name == saved:
                assert open_snapshot(tmp_path / saved, identity_of(engine)).num_tokens == 70
                refused(tmp_path / saved, "model has sha256", identity_of(engine, "c3" * 32))
            else:
                other = saved.split("-")[0] != name.split("-")[0]
                refused(
                    tmp_path / saved,
                    "engine is o.*, expected o" if other else "else: .*(f32|f16|u8|float)",
                    identity_of(engine),
                )
