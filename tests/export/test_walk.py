"""A walk continues after the stages that were finished, and begins anew where a file is not what it recorded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.export.journal import Journal
from edge.export.tensors import Float32Array
from edge.export.walk import Batches, Walk
from edge.export.weights.names import Stage, canonical_shapes, stages_of
from edge.runtime.spec import ModelSpec

SPEC = ModelSpec("glm", 2, 32, 64, 2, 1, 16, 16, 1e4, 1e-5, 256, 64, False, False, False)


def states(index: int) -> Float32Array:
    return np.full((2, 3), index, np.float32)


def opened(folder: Path) -> Walk[Stage]:
    return Walk(stages_of(SPEC), Journal(folder / "journal", "key"))


def walked(folder: Path, stages: int) -> Walk[Stage]:
    walk = opened(folder)
    for stage in walk.remaining[:stages]:
        walk.finish(stage, {"index": stage.index}, hidden=states(stage.index))
    return walk


@given(st.booleans(), st.booleans(), st.integers(1, 4))
def test_stages_bring_every_weight_once_in_order(tied: bool, norms: bool, layers: int) -> None:
    spec = ModelSpec("glm", layers, 32, 64, 2, 1, 16, 16, 1e4, 1e-5, 256, 64, True, tied, norms)
    stages = stages_of(spec)
    assert [name for stage in stages for name in stage.own(spec)] == list(canonical_shapes(spec))
    assert [stage.index for stage in stages] == list(range(layers + 2))
    assert [stage.name for stage in stages] == ["embedding", *(f"block {i}" for i in range(layers)), "head"]
    assert [stage.is_head for stage in stages] == [False] * (layers + 1) + [True]
    assert ("embed.weight" in stages[-1].needed(spec)) == tied


@pytest.mark.parametrize("done", range(4))
def test_it_continues_where_it_was(done: int, tmp_path: Path) -> None:
    walked(tmp_path, done)
    again = opened(tmp_path)
    assert again.remaining == stages_of(SPEC)[done:]
    assert again.records == [{"index": index} for index in range(done)]
    if done:
        assert np.array_equal(again.states("hidden"), states(done - 1))
    files = {path.name for path in (tmp_path / "journal").glob("*.npy")}
    assert files == ({f"hidden-{done}.npy"} if done else set()), "only what the next stage needs"


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "of another stage"])
def test_states_that_are_not_what_was_recorded(damage: str, tmp_path: Path) -> None:
    walked(tmp_path, 2)
    path = tmp_path / "journal" / "hidden-2.npy"
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:-1])
    elif damage == "flipped":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        np.save(path, states(0))
    again = opened(tmp_path)
    assert (again.remaining, again.records) == (stages_of(SPEC), [])
    assert walked(tmp_path, 2).records == [{"index": 0}, {"index": 1}]


def test_parts_are_made_of_the_states_before(tmp_path: Path) -> None:
    walk = walked(tmp_path, 1)
    before = walk.states("hidden")
    walk.finish(walk.remaining[0], {}, hidden=Batches((2, 3), (row[None] + 1 for row in before)))
    assert np.array_equal(opened(tmp_path).states("hidden"), states(0) + 1)


def test_a_stage_that_fails_is_not_recorded(tmp_path: Path) -> None:
    walk = walked(tmp_path, 1)

    def parts() -> Iterator[Float32Array]:
        yield states(1)[:1]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        walk.finish(walk.remaining[0], {}, hidden=Batches((2, 3), parts()))
    again = opened(tmp_path)
    assert again.remaining == stages_of(SPEC)[1:]
    assert np.array_equal(again.states("hidden"), states(0))


def test_stages_are_done_in_their_order(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="in their order"):
        opened(tmp_path).finish(Stage(2, "block 1", 1), {}, hidden=states(2))


def test_without_a_journal_nothing_is_kept() -> None:
    walk = Walk(stages_of(SPEC), None)
    for stage in walk.remaining:
        walk.finish(stage, {}, hidden=states(stage.index))
    assert (walk.remaining, walk.records) == (stages_of(SPEC), [])
