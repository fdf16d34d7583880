"""Random operations on pool, prefix cache and snapshots: after each of them the books are right, and so are the bytes.

First where every token of the memory holds its id and position, so that it can be read back; then on the engines, where
a sequence must give the logits of its ids computed afresh.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from edge.runtime.bundle import open_bundle
from edge.runtime.differences import FLOAT32_BOUND
from edge.runtime.engines.choice import open_engine
from edge.runtime.engines.engine import Engine, Step
from edge.runtime.errors import CacheFullError
from edge.runtime.kv.pool import BlockPool, CacheSequence
from edge.runtime.kv.prefix import PrefixCache
from edge.runtime.kv.snapshot import Snapshot, open_snapshot, save_snapshot
from edge.runtime.kv.snapshot_format import SnapshotIdentity
from tests.conftest import EXACT
from tests.runtime import test_prefix

MAX_LIVE, MAX_SAVED = 6, 4
Ids = list[int]


class Held:
    """A sequence, and what it must hold."""

    def __init__(self, sequence: CacheSequence, ids: Ids) -> None:
        self.sequence = sequence
        self.ids = ids


class Model(Protocol):
    """Computes tokens into a pool, and tells whether they are right."""

    pool: BlockPool
    max_context: int
    vocab_size: int
    max_steps: int  # sequences that `append` takes at once
    max_prompt: int  # new tokens of a prompt, and of a step
    max_new: int
    layout: dict[str, str]

    def prefill(self, held: Held, new: Ids) -> None:
        """Compute a prompt. Raises CacheFullError, changing nothing."""

    def append(self, steps: list[tuple[Held, Ids]]) -> None:
        """Compute more. Raises CacheFullError, changing nothing where it is one step."""

    def check(self, prefixes: PrefixCache, live: list[Held]) -> None:
        """Assert that every token is what it must be, or those of some sequences."""


class Notes:
    """Memory that holds ids and positions."""

    vocab_size, max_steps, max_prompt, max_new = 3, 1, 6, 5
    layout = {"engine": "notes"}  # noqa: RUF012

    def __init__(self, pool: BlockPool, max_context: int) -> None:
        self.pool = pool
        self.max_context = max_context

    def prefill(self, held: Held, new: Ids) -> None:
        test_prefix.compute(self.pool, held.sequence, new)

    def append(self, steps: list[tuple[Held, Ids]]) -> None:
        self.prefill(*steps[0])

    def check(self, prefixes: PrefixCache, live: list[Held]) -> None:
        test_prefix.check(prefixes, self.pool, *(held.sequence for held in live))
        for held in live:
            assert test_prefix.read(self.pool, held.sequence) == held.ids


class Computed:
    """An engine's memory. What it holds must give the logits of the same ids that its twin computes in one piece."""

    vocab_size, max_prompt = 256, 50

    def __init__(self, engine: Engine, twin: Engine, decodes: bool) -> None:
        """Steps are computed by `decode`, or by `forward` as prompts are: then all logits are bit-equal."""
        assert engine.identity == twin.identity
        self.engine = engine
        self.pool = engine.pool
        self.max_context = engine.info.max_context
        self.max_steps, self.max_new = (3, 4) if decodes else (1, 40)
        self.layout = dict(engine.identity)
        self._twin = twin
        self._decodes = decodes
        self._fresh: dict[tuple[int, ...], np.ndarray] = {}
        self._calls = 0

    def prefill(self, held: Held, new: Ids) -> None:
        rows = np.arange(len(new))
        self.compare(held.ids + new, self.engine.forward(np.array(new), held.sequence, rows))

    def append(self, steps: list[tuple[Held, Ids]]) -> None:
        if not self._decodes:
            self.prefill(*steps[0])
            return
        logits = self.engine.decode([Step(held.sequence, np.array(new)) for held, new in steps])
        for (held, new), rows in zip(steps, logits, strict=True):
            self.compare(held.ids + new, rows)

    def check(self, prefixes: PrefixCache, live: list[Held]) -> None:
        """Now and then, one sequence."""
        self._calls += 1
        if live and not self._calls % 5:
            self.check_bytes(live[self._calls // 5 % len(live)])

    def check_bytes(self, held: Held) -> None:
        """The keys and values alone, in the memory of the twin, say what comes next."""
        kept = min(len(held.ids), self.max_context - 1)
        sequence = CacheSequence(self._twin.pool)
        sequence.reserve(kept)
        for index, block in enumerate(held.sequence.block_table[: self.pool.blocks_for(kept)]):
            count = min(kept - index * self.pool.block_size, self.pool.block_size)
            arrays = self.pool.memory.read(block, count)
            self._twin.pool.memory.write(sequence.block_table[index], count, arrays)
        sequence.commit(kept)
        rows = self._twin.forward(np.array([7]), sequence, np.array([0])).copy()
        sequence.free()
        self.compare([*held.ids[:kept], 7], rows)

    def compare(self, ids: Ids, rows: np.ndarray) -> None:
        """The logits of the last ids are those of all ids computed afresh."""
        fresh = self._fresh.get(tuple(ids))
        if fresh is None:
            fresh = self._fresh[tuple(ids)] = compute_afresh(self._twin, ids)
        if self._decodes:
            assert np.abs(rows - fresh[-len(rows) :]).max() <= FLOAT32_BOUND * np.abs(fresh).max()
        else:
            assert np.array_equal(rows, fresh[-len(rows) :])


def compute_afresh(engine: Engine, ids: Ids) -> np.ndarray:
    """Logits of all ids, in one piece."""
    sequence = CacheSequence(engine.pool)
    logits = engine.forward(np.array(ids), sequence, np.arange(len(ids))).copy()
    sequence.free()
    return logits


class Machine:
    """What a scheduler does to a KV cache, in any order."""

    def __init__(self, model: Model, folder: Path) -> None:
        self.model = model
        self.pool = model.pool
        self.prefixes = PrefixCache(model.pool)
        self.live: list[Held] = []
        self.happened: Counter[str] = Counter()
        self._folder = folder
        self._identity = SnapshotIdentity("model", "tokenizer", model.layout)
        self._saved: list[tuple[Snapshot, Ids]] = []
        self._known: list[Ids] = [[]]  # what there has been, so that it comes again

    def do(self, name: str, dice: random.Random) -> None:
        getattr(self, f"_{name}")(dice)
        self.pool.check_integrity(
            [*self.prefixes.held_blocks(), *(block for held in self.live for block in held.sequence.block_table)]
        )
        self.prefixes.check_integrity()
        assert [held.sequence.num_tokens for held in self.live] == [len(held.ids) for held in self.live]
        self.model.check(self.prefixes, self.live)

    def close(self) -> None:
        for snapshot, _ in self._saved:
            snapshot.close()

    def _start(self, dice: random.Random) -> None:
        """A request: what is kept of its prompt, and the rest computed."""
        if len(self.live) == MAX_LIVE:
            return
        ids = self._known_ids(dice) + self._new_ids(dice, self.model.max_prompt)
        ids = ids[: self.model.max_context]
        held = self._match(ids, len(ids) - 1)
        if self._extend(held, ids[len(held.ids) :]):
            self._remember(held)
            self.prefixes.insert(held.ids, held.sequence, whole=False)
        else:
            self._leave_one(held)

    def _append(self, dice: random.Random) -> None:
        chosen = dice.sample(self.live, min(len(self.live), dice.randint(1, self.model.max_steps)))
        steps = []
        for held in chosen:
            following = [ids[len(held.ids) :] for ids in self._known if ids[: len(held.ids)] == held.ids]
            new = dice.choice([*following, []])[: dice.randint(0, self.model.max_new)]
            new += self._new_ids(dice, self.model.max_new)
            new = new[: min(self.model.max_new, self.model.max_context - len(held.ids))]
            if new:
                steps.append((held, new))
        if not steps:
            return
        tables = [held.sequence.block_table.copy() for held, _ in steps]
        with self._full_pool_changes_nothing(len(steps) == 1) as worked:
            self.model.append(steps)
            worked.append(True)
        if worked:
            for (held, new), table in zip(steps, tables, strict=True):
                self.happened["copy"] += held.sequence.block_table[: len(table)] != table
                held.ids += new
                self._remember(held)

    def _fork(self, dice: random.Random) -> None:
        if self.live and len(self.live) < MAX_LIVE:
            held = dice.choice(self.live)
            self.live.append(Held(held.sequence.fork(), held.ids.copy()))
            self.happened["fork"] += 1

    def _trim(self, dice: random.Random) -> None:
        if self.live:
            held = dice.choice(self.live)
            kept = dice.randint(0, len(held.ids))
            assert held.sequence.trim(kept) == len(held.ids) - kept
            del held.ids[kept:]
            self.happened["trim"] += 1

    def _interrupt(self, dice: random.Random) -> None:
        """Room is made and nothing computed."""
        if self.live:
            held = dice.choice(self.live)
            with self._full_pool_changes_nothing():
                held.sequence.reserve(dice.randint(0, self.model.max_context - len(held.ids)))

    def _free(self, dice: random.Random) -> None:
        if self.live:
            held = dice.choice(self.live)
            self.live.remove(held)
            held.sequence.free()
            self.happened["free"] += 1

    def _keep(self, dice: random.Random) -> None:
        if self.live:
            held = dice.choice(self.live)
            self.prefixes.insert(held.ids, held.sequence, whole=False)
            full = len(held.ids) // self.pool.block_size * self.pool.block_size
            assert self.prefixes.count_match(held.ids) >= full
            self.happened["keep"] += 1

    def _leave(self, dice: random.Random) -> None:
        if self.live:
            self._leave_one(dice.choice(self.live))

    def _leave_one(self, held: Held) -> None:
        self.live.remove(held)
        self.prefixes.insert(held.ids, held.sequence, whole=True)
        held.sequence.free()
        assert self.prefixes.count_match(held.ids) == len(held.ids)
        self.happened["leave"] += 1

    def _evict(self, dice: random.Random) -> None:
        """All that were asked for, or none."""
        count, spare, free = dice.randint(1, 3), self.prefixes.num_evictable, self.pool.num_free
        self.pool.reclaim(count, 0)
        assert self.pool.num_free - free == (count if count <= spare else 0)
        self.happened["evict"] += count <= spare

    def _clear(self, dice: random.Random) -> None:
        spare, free = self.prefixes.num_evictable, self.pool.num_free
        self.prefixes.clear()
        assert (self.prefixes.num_evictable, self.pool.num_free) == (0, free + spare)
        self.happened["clear"] += 1

    def _pin(self, dice: random.Random) -> None:
        ids = self._known_ids(dice)
        assert self.prefixes.pin(ids) == self.prefixes.count_match(ids)
        self.happened["pin"] += self.prefixes.stats.pinned_blocks > 0

    def _unpin(self, dice: random.Random) -> None:
        before = [self.prefixes.count_match(ids) for ids in self._known]
        self.prefixes.unpin_all()
        assert [self.prefixes.count_match(ids) for ids in self._known] == before
        assert self.prefixes.stats.pinned_blocks == 0
        self.happened["unpin"] += 1

    def _save(self, dice: random.Random) -> None:
        held = dice.choice([held for held in self.live if held.ids] or [None])
        if held is None:
            return
        if len(self._saved) == MAX_SAVED:
            self._saved.pop(0)[0].close()
        path = self._folder / f"{self.happened['save'] % MAX_SAVED}.kv"
        save_snapshot(path, [*held.ids, 0], held.sequence, self.pool, self._identity)
        snapshot = open_snapshot(path, self._identity)
        assert list(snapshot.keys) == held.ids
        self._saved.append((snapshot, held.ids.copy()))
        self.happened["save"] += 1

    def _restore(self, dice: random.Random) -> None:
        """Into a new sequence, or behind what is kept of it."""
        if not self._saved or len(self.live) == MAX_LIVE:
            return
        snapshot, ids = dice.choice(self._saved)
        wanted = dice.randint(1, len(ids))
        if dice.random() < 0.5:
            with self._full_pool_changes_nothing():
                self.live.append(Held(snapshot.restore(self.pool, wanted), ids[:wanted]))
                self.happened["restore"] += 1
            return
        held = self._match(ids, dice.randint(0, wanted))
        with self._full_pool_changes_nothing():
            assert snapshot.restore(self.pool, wanted, held.sequence) is held.sequence
            held.ids = ids[:wanted]
            self.happened["restore behind"] += 1

    def _match(self, ids: Ids, limit: int) -> Held:
        """Of these ids what is kept, less the last block where that would need a copy and there is no room for one."""
        kept = self.prefixes.count_match(ids[:limit])
        held = Held(self.prefixes.match(ids, limit), [])
        found = held.sequence.num_tokens
        held.ids = ids[:found]
        self.live.append(held)
        if found != kept:
            assert found == kept // self.pool.block_size * self.pool.block_size
            assert self.pool.num_free == 0 or (self.pool.counts_tokens and self.pool.num_free_tokens <= kept)
        if found % self.pool.block_size:
            assert self.pool.holders(held.sequence.block_table[-1]) == 1  # it may append at once
        self.happened["hit"] += found > 0
        self.happened["no room for a copy"] += found < kept
        return held

    def _extend(self, held: Held, new: Ids) -> bool:
        with self._full_pool_changes_nothing() as worked:
            self.model.prefill(held, new)
            held.ids += new
            worked.append(True)
        return bool(worked)

    @contextmanager
    def _full_pool_changes_nothing(self, atomic: bool = True) -> Iterator[list[bool]]:
        before = self._state()
        try:
            yield []
        except CacheFullError:
            self.happened["full"] += 1
            assert self._state() == before or not atomic

    def _state(self) -> object:
        tables = [(held.sequence.num_tokens, held.sequence.block_table.copy()) for held in self.live]
        return tables, self.pool.num_free, self.prefixes.stats, self.prefixes.held_blocks()

    def _known_ids(self, dice: random.Random) -> Ids:
        ids = dice.choice(self._known)
        return ids[: dice.randint(0, len(ids))]

    def _new_ids(self, dice: random.Random, most: int) -> Ids:
        return [dice.randrange(self.model.vocab_size) for _ in range(dice.randint(1, most))]

    def _remember(self, held: Held) -> None:
        self._known = [*self._known[-15:], held.ids.copy()]


# How often each operation comes.
OPERATIONS = {
    "start": 12,
    "append": 16,
    "fork": 5,
    "trim": 6,
    "interrupt": 3,
    "free": 3,
    "keep": 4,
    "leave": 8,
    "evict": 3,
    "clear": 1,
    "pin": 2,
    "unpin": 2,
    "save": 2,
    "restore": 4,
}
EVERYTHING = {*OPERATIONS, "restore behind", "hit", "full", "copy"} - {"start", "append", "interrupt"}


def run(machine: Machine, count: int) -> None:
    dice = random.Random(11)
    names = dice.choices(list(OPERATIONS), list(OPERATIONS.values()), k=count)
    for name in names:
        machine.do(name, dice)
    missing = EVERYTHING - {name for name, times in machine.happened.items() if times}
    assert not missing


def paged_notes(num_blocks: int, size: int) -> Notes:
    return Notes(test_prefix.paged_pool(num_blocks, size), num_blocks * size)


def slot_notes(num_slots: int, max_context: int, max_tokens: int | None = None) -> Notes:
    return Notes(test_prefix.slot_pool(num_slots, max_context, max_tokens), max_context)


@pytest.mark.parametrize(("num_blocks", "size"), [(14, 2), (11, 3), (9, 4)])
def test_paged_blocks(num_blocks: int, size: int, tmp_path: Path) -> None:
    """15,000 operations in all three. About 7 s."""
    machine = Machine(paged_notes(num_blocks, size), tmp_path)
    run(machine, 5000)
    machine.close()


@pytest.mark.parametrize(("num_slots", "max_tokens"), [(2, None), (3, None), (5, None), (9, 40)])
def test_slots(num_slots: int, max_tokens: int | None, tmp_path: Path) -> None:
    """20,000 operations in all four, the last with memory for fewer tokens than slots would hold. About 9 s."""
    machine = Machine(slot_notes(num_slots, 14, max_tokens), tmp_path)
    run(machine, 5000)
    machine.close()


class AnyOrder(RuleBasedStateMachine):
    """Few operations that hypothesis makes fewer where they fail."""

    @initialize(slots=st.booleans(), count=st.integers(1, 5), size=st.integers(1, 6))
    def open(self, slots: bool, count: int, size: int) -> None:
        self._folder = TemporaryDirectory()
        self._machine = Machine((slot_notes if slots else paged_notes)(count, size), Path(self._folder.name))

    @rule(name=st.sampled_from(list(OPERATIONS)), dice=st.randoms(use_true_random=False))
    def do(self, name: str, dice: random.Random) -> None:
        self._machine.do(name, dice)

    def teardown(self) -> None:
        self._machine.close()
        self._folder.cleanup()


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@pytest.mark.parametrize(
    ("decodes", "reproducible"), [(False, True), (True, True), (True, False)], ids=["prefill", "decode", "batch"]
)
def test_engine(tiny_bundle: Path, engine: str, decodes: bool, reproducible: bool, tmp_path: Path) -> None:
    """500 operations. About 2 s.

    Tokens that a prefill computed in pieces are bit-equal to those computed at once. Those of a decode come from other
    kernels of attention, and rounding is all that these may differ in. Without `reproducible` single tokens of several
    sequences share a run, on ONNX Runtime too, and blocks move for it.
    """
    bundle = open_bundle(tiny_bundle)
    exact = replace(EXACT[engine], max_context=96, reproducible=reproducible)
    token_bytes = open_engine(bundle, exact).info.kv_bytes_per_token
    small = open_engine(bundle, replace(exact, kv_cache_bytes=4 * 97 * token_bytes))
    model = Computed(small, open_engine(bundle, exact), decodes)
    machine = Machine(model, tmp_path)
    run(machine, 500)
    for held in machine.live:
        model.check_bytes(held)

    # And in the very same engine: what each sequence says comes next, then the same from nothing.
    machine.prefixes.unpin_all()
    machine.prefixes.clear()
    dice = random.Random(12)
    while len(machine.live) < 3:
        machine.do(dice.choice(["start", "fork", "restore"]), dice)
    found = []
    for held in machine.live:
        ids = [*held.ids[: small.info.max_context - 1], 9]
        held.sequence.trim(len(ids) - 1)
        with suppress(CacheFullError):  # where they share all there is, the first cannot have a copy
            found.append((ids, small.forward(np.array([9]), held.sequence, np.array([0])).copy()))
        held.sequence.free()
    assert len(found) > 1
    machine.prefixes.clear()
    assert small.pool.num_free == small.pool.num_blocks
    for ids, rows in found:
        model.compare(ids, rows)
        model.compare(ids, compute_afresh(small, ids))
    machine.close()
