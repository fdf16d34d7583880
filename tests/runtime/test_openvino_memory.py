"""Blocks are the same wherever they are: arrays, memory of the host, or memory that only the device reaches.

What a GPU does is not known here. The kinds that are made for one are tested over a context that refuses what a GPU's
refuses (`strict_context`), with the layouts that a GPU's plugin compiles, and with the CPU's real engine in them.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from edge.runtime.engines.openvino_caches import CacheInput
from edge.runtime.engines.openvino_memory import DeviceMemory, HostMemory, MemoryKind, make_memory, memory_kind
from edge.runtime.errors import DeviceError, SettingsError
from edge.runtime.kv.memory import BlockMemory
from edge.runtime.kv.pool import BlockPool, CacheSequence
from edge.runtime.kv.snapshot import open_snapshot, save_snapshot
from edge.runtime.kv.snapshot_format import SnapshotIdentity
from edge.runtime.llm import LLM
from edge.runtime.settings import CachePrecision
from tests.conftest import EXACT
from tests.runtime.strict_context import LEFT, Open, StrictContext, StrictTensor, opener
from tests.runtime.test_kv_machine import Computed, Machine, run


@pytest.fixture
def open_in(monkeypatch: pytest.MonkeyPatch) -> Open:
    return opener(monkeypatch)


KINDS: tuple[MemoryKind, ...] = ("arrays", "host", "device")


def caches(kind: str, heads: int, tokens: int, head: int, scales: int = 0) -> list[CacheInput]:
    """One layer, as a GPU's plugin lays it out: keys are transposed, scales are at the end."""
    made = getattr(ov.Type, kind)
    return [
        CacheInput("key_cache.0", [heads, head, tokens + scales], made),
        CacheInput("value_cache.0", [heads, tokens, head + scales], made),
    ]


LAYOUTS = {
    "i8": caches("i8", 2, 16, 8, scales=4),
    "u8": caches("u8", 1, 16, 16, scales=4),
    "f16": caches("f16", 2, 16, 8),
    "f32": caches("f32", 1, 4, 2),
    "xattention": caches("i8", 1, 256, 8, scales=4),
}


class EqualMemories(RuleBasedStateMachine):
    """The same operations on the three kinds, and on plain arrays that say what must be there."""

    @initialize(layout=st.sampled_from(list(LAYOUTS.values())), count=st.integers(1, 6))
    def open(self, layout: list[CacheInput], count: int) -> None:
        self.count = count
        self.memories: list[BlockMemory] = [make_memory(kind, layout, count, StrictContext())[0] for kind in KINDS]
        self.sizes = [cache.block_bytes for cache in layout]
        self.expected: dict[int, list[np.ndarray]] = {}  # of blocks that were written or erased
        for memory in self.memories:
            assert memory.block_bytes == sum(self.sizes)
            assert memory.forms(1) == [("|u1", (size,)) for size in self.sizes]

    @rule(block=st.integers(0, 5), seed=st.integers(0, 1000))
    def write(self, block: int, seed: int) -> None:
        dice = np.random.default_rng(seed)
        arrays = [dice.integers(0, 256, size, np.uint8) for size in self.sizes]
        for memory in self.memories:
            memory.write(block % self.count, 3, arrays)
        self.expected[block % self.count] = arrays

    @rule(pair=st.tuples(st.integers(0, 5), st.integers(0, 5)), tokens=st.integers(1, 4))
    def copy(self, pair: tuple[int, int], tokens: int) -> None:
        source, target = (block % self.count for block in pair)
        if source in self.expected and source != target:
            for memory in self.memories:
                memory.copy(source, target, tokens)
            self.expected[target] = self.expected[source]

    @rule(blocks=st.lists(st.integers(0, 5), unique=True))
    def blank(self, blocks: list[int]) -> None:
        blocks = list(dict.fromkeys(block % self.count for block in blocks))
        for memory in self.memories:
            memory.blank(blocks)
        for block in blocks:
            self.expected[block] = [np.zeros(size, np.uint8) for size in self.sizes]

    @rule(block=st.integers(0, 5))
    def give_back(self, block: int) -> None:
        for memory in self.memories:
            memory.give_back(block % self.count)

    def teardown(self) -> None:
        for block, arrays in getattr(self, "expected", {}).items():
            for memory in self.memories:
                for found, expected in zip(memory.read(block, 1), arrays, strict=True):
                    assert np.array_equal(found, expected), (type(memory).__name__, block)


TestEqualMemories = EqualMemories.TestCase
TestEqualMemories.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)


@pytest.mark.parametrize("kind", KINDS)
def test_the_tensors_are_the_memory(kind: MemoryKind) -> None:
    """An engine computes in what a request is given."""
    memory, tensors = make_memory(kind, LAYOUTS["i8"], 3, StrictContext())
    assert list(tensors) == ["key_cache.0", "value_cache.0"]
    memory.write(1, 16, [np.full(size, 5, np.uint8) for _, (size,) in memory.forms(16)])
    for cache in LAYOUTS["i8"]:
        copied = ov.Tensor(cache.kind, ov.Shape([3, *cache.shape]))
        ov.Tensor.copy_to(tensors[cache.name], copied)
        assert copied.element_type == cache.kind
        assert (copied.data[1] == 5).all()
        assert not (copied.data[::2] == 5).any()


def test_neighbours_are_erased_by_one_copy() -> None:
    memory = DeviceMemory(StrictContext(), LAYOUTS["f16"], 9)
    before = StrictTensor.copies
    memory.blank([6, 1, 2, 3, 8, 7])
    assert StrictTensor.copies - before == 2 * len(LAYOUTS["f16"])
    for block in range(9):
        assert all(array.any() == (block in (0, 4, 5)) for array in memory.read(block, 1))
    memory.blank([])
    assert (memory.read(0, 1)[0] == LEFT).all()


def test_device_memory_is_handed_out_blank() -> None:
    """What another program or conversation left there never gets into a file."""
    pool = BlockPool(4, 16, DeviceMemory(StrictContext(), LAYOUTS["i8"], 4))
    sequence = CacheSequence(pool)
    sequence.reserve(20)
    assert not any(array.any() for block in sequence.block_table for array in pool.memory.read(block, 16))


def test_no_block_is_lost_where_erasing_fails() -> None:
    class Failing(DeviceMemory):
        def blank(self, blocks: object) -> None:
            raise DeviceError(f"{blocks}: lost")

    pool = BlockPool(4, 16, Failing(StrictContext(), LAYOUTS["i8"], 4))
    sequence = CacheSequence(pool)
    with pytest.raises(DeviceError, match="lost"):
        sequence.reserve(20)
    pool.check_integrity([])
    assert pool.num_free == 4


@pytest.mark.parametrize("kind", ["host", "device"])
def test_too_little_memory_is_one_error(kind: MemoryKind) -> None:
    size = 5 * sum(cache.block_bytes for cache in LAYOUTS["i8"])
    make_memory(kind, LAYOUTS["i8"], 5, StrictContext(size))
    with pytest.raises(SettingsError, match=rf"refuses the {size:,} bytes .*CL_OUT_OF_RESOURCES\); lower") as refused:
        make_memory(kind, LAYOUTS["i8"], 5, StrictContext(size - 1))
    assert refused.value.param == "kv_cache_bytes"


def test_what_a_device_does_not_copy_is_one_error() -> None:
    """4 bits a value are refused by its copies."""
    memory = DeviceMemory(StrictContext(), caches("u4", 2, 16, 8), 2)
    for call in (
        lambda: memory.read(0, 1),
        lambda: memory.write(0, 1, [np.zeros(size, np.uint8) for _, (size,) in memory.forms(1)]),
        lambda: memory.copy(0, 1, 1),
        lambda: memory.blank([0]),
    ):
        with pytest.raises(DeviceError, match=r"does not copy blocks of its KV cache: .*8 bit"):
            call()


def test_which_memory_suits_a_device() -> None:
    whole, half = LAYOUTS["i8"], caches("u4", 2, 16, 8)
    assert memory_kind("CPU", True, half) == "arrays"
    assert memory_kind("GPU", True, whole) == memory_kind("GPU", False, whole) == "device"
    assert memory_kind("GPU", True, half) == "host"
    with pytest.raises(DeviceError, match="less than 8 bits a value, which cannot be copied; set kv_precision to u8"):
        memory_kind("GPU", False, half)


def test_host_memory_of_four_bits_is_copied() -> None:
    memory = HostMemory(StrictContext(), caches("u4", 2, 16, 8), 3)
    memory.write(2, 1, [np.arange(size, dtype=np.uint8) for _, (size,) in memory.forms(1)])
    memory.copy(2, 0, 1)
    assert memory.block_bytes == 2 * 16 * 8
    assert all((array == np.arange(array.size)).all() for array in memory.read(0, 1))


@pytest.mark.parametrize("kind", ["host", "device"])
def test_the_real_engine_in_each(kind: MemoryKind, tiny_bundle: Path, open_in: Open, tmp_path: Path) -> None:
    """Forks, copies, evictions and files, as in arrays: logits are bit-equal to those that arrays give. About 1 s."""
    exact = replace(EXACT["openvino"], max_context=96, reproducible=True)
    with LLM(tiny_bundle, exact) as llm:
        token_bytes = llm.engine.info.kv_bytes_per_token
    small = open_in(tiny_bundle, replace(exact, kv_cache_bytes=4 * 97 * token_bytes), kind)
    assert small.memory_kind == kind
    machine = Machine(Computed(small, open_in(tiny_bundle, exact, "arrays"), decodes=False), tmp_path)
    run(machine, 250)
    machine.close()


@pytest.mark.parametrize("kv_precision", ["u8", "f16"])
def test_files_go_from_one_kind_to_another(
    kv_precision: CachePrecision,
    tiny_bundle: Path,
    open_in: Open,
    tmp_path: Path,
) -> None:
    """A prefix that arrays held goes on in a device's memory, and the other way about."""
    chosen = replace(EXACT["openvino"], max_context=96, kv_precision=kv_precision, kv_cache_bytes=1 << 20)
    engines = {kind: open_in(tiny_bundle, chosen, kind) for kind in KINDS}
    identity = SnapshotIdentity("model", "tokenizer", engines["arrays"].identity)
    ids = np.array(random.Random(3).choices(range(256), k=41))
    files, logits = {}, []
    for kind, engine in engines.items():
        sequence = CacheSequence(engine.pool)
        engine.forward(ids[:40], sequence, np.array([0]))
        path = tmp_path / kind
        save_snapshot(path, ids[:40].tolist(), sequence, engine.pool, identity)
        files[kind] = path.read_bytes()
        logits.append(engine.forward(ids[40:], sequence, np.array([0])).copy())
    assert files["arrays"] == files["host"] == files["device"]
    for source, target in (("arrays", "device"), ("device", "arrays"), ("device", "host")):
        engine = engines[target]  # type: ignore[index]
        restored = open_snapshot(tmp_path / source, identity).restore(engine.pool, 40)
        logits.append(engine.forward(ids[40:], restored, np.array([0])).copy())
    assert all(np.array_equal(found, logits[0]) for found in logits)
