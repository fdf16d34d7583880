"""Whole sweeps on a cluster that is played: the rows of one machine, and nothing measured twice.

The steps are played, too; test_ray.py has real ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from edge.profiles import sweep as sweeps
from edge.profiles import sweep_results
from edge.profiles.cluster.executor import ClusterSteps
from edge.profiles.cluster.pool import Lost, Report, Work
from edge.profiles.machine_record import machine_record
from edge.profiles.record import Row, read_profile
from edge.profiles.settings import SweepSettings
from edge.profiles.sweep import sweep
from edge.profiles.sweep_plan import SweepPlan
from edge.profiles.sweep_progress import SweepProgress
from edge.profiles.sweep_steps import Executor, OneProcess
from edge.runtime.errors import ProfileError, SettingsError
from tests.profiles.cluster.scripted import OTHER, ScriptedPool, node
from tests.profiles.test_sweep import SMALL, Steps

NAMES = ["int8-asym/openvino", "int8-asym/onnx", "int4-asym-g64/openvino", "int4-asym-g64/onnx"]


class Cluster:
    """Two nodes, of which each task runs a played step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps = Steps()
        self.pool = ScriptedPool()
        self.fail: dict[str, str] = {}  # step -> error
        self.lose: dict[str, int] = {}  # step -> how often
        monkeypatch.setattr("edge.profiles.processes.run_step", self.steps)
        monkeypatch.setattr(sweep_results, "_opens", Path.is_dir)
        monkeypatch.setattr(sweeps, "_executor", self.executor)

    def executor(self, plan: SweepPlan, ray: str | None) -> AbstractContextManager[Executor]:
        return OneProcess(plan.settings.threads) if ray is None else self.played()

    @contextmanager
    def played(self) -> Iterator[Executor]:
        """A cluster that has just been joined."""
        machines = {**dict.fromkeys("ab", machine_record()), **self.pool.machines}
        self.pool = ScriptedPool(node("a"), node("b"), machines=machines)
        self.pool.ends = self.ends
        with ClusterSteps(self.pool, machine_record(), "here", 2, lambda _step: 1) as executor:
            yield executor

    def ends(self, work: Work, name: str) -> Report | Lost:
        facts = self.pool.facts(name)
        if self.lose.get(work.name):
            self.lose[work.name] -= 1
            return Lost("its node died")
        if work.name in self.fail:
            return Report(facts, error=self.fail[work.name])
        try:
            return Report(facts, self.steps(work.task, lambda *_state: None))
        except ProfileError as error:
            return Report(facts, error=str(error))

    @property
    def ran(self) -> list[str]:
        """Names of the steps that were submitted."""
        return [work.name for work in self.pool.submitted]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(monkeypatch)


def on_cluster(checkpoint: Path, out: Path, settings: SweepSettings = SMALL) -> list[Row]:
    return list(sweep(checkpoint, out, settings, ray="played").rows)


def unplaced(rows: list[Row]) -> list[Row]:
    return [replace(row, places={}) for row in rows]


def test_rows_are_those_of_one_machine(cluster: Cluster, tiny_checkpoint: Path, tmp_path: Path) -> None:
    seen: list[SweepProgress] = []
    profile = sweep(tiny_checkpoint, tmp_path / "out", SMALL, seen.append, ray="played")
    alone = sweep(tiny_checkpoint, tmp_path / "alone", SMALL)
    assert unplaced(list(profile.rows)) == list(alone.rows)
    assert all(row.places.keys() == {"export", "accuracy", "speed"} for row in profile.rows)
    assert (profile.failures, profile.notes) == ((), ())
    assert sorted(cluster.ran) == sorted(
        ["reference", "export int8-asym", "export int4-asym-g64", *NAMES, *(f"{name}: speed" for name in NAMES)]
    )
    assert [name.endswith(": speed") for name in cluster.ran] == [False] * 7 + [True] * 4
    assert (seen[-1].steps_done, seen[-1].num_steps, seen[-1].seconds_left) == (11, 11, 0)
    assert not (tmp_path / "out" / "bundles").exists()


def test_until_its_speed_is_there_a_row_has_its_accuracy(
    cluster: Cluster, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    notes = []

    def look(progress: SweepProgress) -> None:
        if progress.row is not None:
            notes.append(read_profile(tmp_path).notes)

    sweep(tiny_checkpoint, tmp_path, SMALL, look, ray="played")
    waiting = [1, 2, 3, 4, 3, 2, 1]
    assert notes == [*((f"Speeds of {count} settings are still to be measured",) for count in waiting), ()]


def test_again_measures_nothing_and_after_an_interrupt_what_is_missing(
    cluster: Cluster, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    cells = 0

    def stop(progress: SweepProgress) -> None:
        nonlocal cells
        cells += progress.row is not None
        if cells == 5:  # the first speed
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(tiny_checkpoint, tmp_path, SMALL, stop, ray="played")
    rows = on_cluster(tiny_checkpoint, tmp_path)
    assert len(cluster.ran) == 3
    assert all(name.endswith(": speed") for name in cluster.ran), "neither text, exports nor accuracy again"
    assert [row.ttft_ms for row in rows] == [7.0] * 4
    assert on_cluster(tiny_checkpoint, tmp_path) == rows
    assert cluster.ran == []


def test_one_machine_goes_on_where_a_cluster_stopped(cluster: Cluster, tiny_checkpoint: Path, tmp_path: Path) -> None:
    rows = on_cluster(tiny_checkpoint, tmp_path)
    cluster.steps.done.clear()
    assert list(sweep(tiny_checkpoint, tmp_path, SMALL).rows) == rows
    assert cluster.steps.done == []


def test_one_machine_measures_again_what_another_kind_did(
    cluster: Cluster, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    cluster.pool.machines = {"b": OTHER}
    rows = on_cluster(tiny_checkpoint, tmp_path)
    others = sum(any(place.machine is not None for place in row.places.values()) for row in rows)
    assert others > 0
    cluster.steps.done.clear()
    again = list(sweep(tiny_checkpoint, tmp_path, SMALL).rows)
    assert len([step for step in cluster.steps.done if step.endswith("None")]) == others
    assert unplaced(again) == unplaced(rows)


def test_without_speed_bundles_go_with_their_last_accuracy(
    cluster: Cluster, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    rows = on_cluster(tiny_checkpoint, tmp_path, replace(SMALL, speed=False))
    assert [(row.ttft_ms, sorted(row.places)) for row in rows] == [(None, ["accuracy", "export"])] * 4
    assert not any(name.endswith(": speed") for name in cluster.ran)


def test_losses_cost_the_steps_that_were_lost(cluster: Cluster, tiny_checkpoint: Path, tmp_path: Path) -> None:
    cluster.lose = {"reference": 1, "export int8-asym": 2, NAMES[1]: 1, f"{NAMES[3]}: speed": 2}
    assert len(on_cluster(tiny_checkpoint, tmp_path)) == 4
    counts = {name: cluster.ran.count(name) for name in set(cluster.ran)}
    assert {name: count for name, count in counts.items() if count > 1} == {
        "reference": 2, "export int8-asym": 3, NAMES[1]: 2, f"{NAMES[3]}: speed": 3,
    }  # fmt: skip


def test_failures_leave_what_is_measured(cluster: Cluster, tiny_checkpoint: Path, tmp_path: Path) -> None:
    cluster.fail = {"export int8-asym": "no disk", NAMES[2]: "no room", f"{NAMES[3]}: speed": "no memory"}
    seen: list[SweepProgress] = []
    profile = sweep(tiny_checkpoint, tmp_path, SMALL, seen.append, ray="played")
    assert {failure.name: failure.error for failure in profile.failures} == {
        NAMES[0]: "export failed: no disk",
        NAMES[1]: "export failed: no disk",
        NAMES[2]: "no room",
        NAMES[3]: "no memory",
    }
    assert [(row.name, row.ttft_ms) for row in profile.rows] == [(NAMES[3], None)]
    assert seen[-1].steps_done == seen[-1].num_steps == 11
    cluster.fail = {}
    assert [row.ttft_ms for row in on_cluster(tiny_checkpoint, tmp_path)] == [7.0] * 4
    assert NAMES[3] not in cluster.ran


def test_a_reference_that_fails_ends_the_sweep(cluster: Cluster, tiny_checkpoint: Path, tmp_path: Path) -> None:
    cluster.fail = {"reference": "no room"}
    with pytest.raises(ProfileError, match="no room"):
        on_cluster(tiny_checkpoint, tmp_path)
    assert cluster.pool.cancelled == ["export int8-asym", "export int4-asym-g64"]


def test_a_hub_id_is_refused_before_a_cluster_is_joined(tmp_path: Path) -> None:
    from edge.profiles.cluster.nodes import cluster_executor

    plan = SweepPlan("org/name", tmp_path, SMALL, {}, {}, None, "", (), ())  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="org/name is no path, and nodes of a cluster download nothing"):
        cluster_executor(plan, "127.0.0.1:1").__enter__()
    assert list(tmp_path.iterdir()) == []


def test_threads_decide_the_key_as_cores_do(tiny_checkpoint: Path, tmp_path: Path) -> None:
    from edge.profiles.sweep_plan import plan_sweep

    cores = machine_record()["cores"]
    keys = [
        plan_sweep(tiny_checkpoint, tmp_path / "out", replace(SMALL, threads=threads)).cells[0].key
        for threads in (None, cores, cores + 1, 1)
    ]
    assert keys[0] == keys[1] == keys[2]
    assert (keys[3] == keys[0]) == (cores == 1)
    with pytest.raises(SettingsError, match="0 threads were asked for, expected 1 or more"):
        plan_sweep(tiny_checkpoint, tmp_path / "out", replace(SMALL, threads=0))
