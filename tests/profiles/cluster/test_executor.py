"""Steps on a cluster: what runs beside what, what the scheduler is told, and what becomes of steps that are lost.

The cluster is played here; test_ray.py has a real one.
"""

from __future__ import annotations

import logging

import pytest

from edge.profiles.cluster.executor import MOST_RUNS, ClusterSteps
from edge.profiles.cluster.pool import Lost, Report, Work
from edge.profiles.machine_record import Place
from edge.profiles.sweep_steps import Done, Step
from edge.runtime.errors import ClusterError
from edge.runtime.notices import LOGGER
from tests.profiles.cluster.scripted import GIGABYTE, OTHER, ScriptedPool, executor, node, step


def run(steps: ClusterSteps, *started: Step) -> list[Done]:
    for one in started:
        steps.start(one)
    return [steps.next(lambda *_state: None) for _ in started]


def test_the_scheduler_is_told_threads_memory_and_where() -> None:
    pool = ScriptedPool(node("a"), node("b"), node("small", cpus=1))
    (done,) = run(executor(pool), step("export", "e"))
    assert pool.submitted == [Work("e", {"task": "export"}, 2, GIGABYTE, 2, ("id-a", "id-b"))]
    assert (done.outcome is not None, done.place) == (True, Place("a"))


def test_a_machine_of_another_kind_is_recorded() -> None:
    pool = ScriptedPool(node("a"), machines={"a": OTHER})
    (done,) = run(executor(pool), step("accuracy", "x"))
    assert done.place == Place("a", OTHER)


def test_exports_and_accuracies_share_nodes_as_far_as_they_have_room() -> None:
    pool = ScriptedPool(node("a", cpus=4, gigabytes=8), node("b", cpus=8, gigabytes=2))
    run(executor(pool), *(step("accuracy", name) for name in "vwxyz"))
    assert pool.states[0] == {"v": "a", "w": "a", "x": "b", "y": "b"}, "two by CPUs, and two by memory"


def test_room_is_that_of_all_nodes_and_one_more() -> None:
    steps = executor(ScriptedPool(node("a", cpus=4), node("b", cpus=3)))
    started = 0
    while steps.has_room:
        steps.start(step("accuracy", f"{started}"))
        started += 1
    assert started == 3 + 1


def test_speeds_wait_for_all_else_and_have_a_whole_machine_each() -> None:
    pool = ScriptedPool(node("a", cpus=4), node("b", cpus=8), node("c", cpus=4))
    pool.boots = {"b": "one machine", "c": "one machine"}
    names = ["1", "2", "3"]
    steps = [step("speed", names[0]), step("accuracy", "x"), step("speed", names[1]), step("speed", names[2])]
    done = run(executor(pool), *steps)
    assert [one.step.name for one in done] == ["x", "1", "2", "3"]
    timed = [work for work in pool.submitted if work.name in names]
    assert [(work.cpus, work.cores, work.node_ids) for work in timed] == [
        (4, None, ("id-a",)), (8, None, ("id-b",)), (4, None, ("id-a",)),
    ]  # fmt: skip
    assert pool.states[0] == {"x": "a"}
    assert pool.states[1] == {"1": "a", "2": "b"}, "and none on c, which is b's machine"


def test_speeds_are_those_of_the_most_frequent_kind_of_machine() -> None:
    pool = ScriptedPool(node("a"), node("b"), node("c"), machines={"a": OTHER})
    run(executor(pool), *(step("speed", name) for name in "xyz"))
    assert {where for state in pool.states for where in state.values()} == {"b", "c"}


def test_it_is_known_when_this_machine_is_timing() -> None:
    pool = ScriptedPool(node("a"))
    steps = executor(pool)
    pool.boots = {"a": steps.here_boot}
    seen = []
    steps.start(step("accuracy", "x"))
    steps.start(step("speed", "y"))
    for _ in range(2):
        steps.next(lambda *_state: seen.append(steps.is_timing_here))
    assert not steps.is_timing_here
    again = executor(pool)
    again.start(step("speed", "y"))
    again._start_speeds()
    assert again.is_timing_here


def test_progress_goes_to_the_step_that_told_it() -> None:
    pool = ScriptedPool(node("a"))
    steps = executor(pool)
    told = []
    for name in "xy":
        steps.start(step("accuracy", name))
    steps.next(lambda *state: told.append((state[0].name, *state[1:])))
    assert told == [("y", "accuracy", 1, 2)]


def test_a_lost_step_runs_again_elsewhere(caplog: pytest.LogCaptureFixture) -> None:
    pool = ScriptedPool(node("a"), node("b"))

    def die(work: Work, name: str) -> Report | Lost:
        if name == "a":
            pool.alive = [node("b")]
            return Lost("its node died")
        return pool.whole(work, name)

    pool.ends = die
    with caplog.at_level(logging.INFO, logger=LOGGER):
        done = run(executor(pool), step("accuracy", "x"), step("speed", "y"))
    assert [(one.step.name, one.place) for one in done] == [("x", Place("b")), ("y", Place("b"))]
    assert [record.message for record in caplog.records] == ["x was lost (its node died); it runs again"]


@pytest.mark.parametrize("kind", ["export", "speed"])
def test_a_step_that_is_always_lost_fails_in_the_end(kind: str) -> None:
    pool = ScriptedPool(node("a"))
    pool.ends = lambda _work, _name: Lost("its node ran out of memory")
    (done,) = run(executor(pool), step("export" if kind == "export" else "speed", "x"))
    assert done.error == f"it was lost {MOST_RUNS} times (its node ran out of memory); run this again"
    assert len(pool.submitted) == MOST_RUNS


@pytest.mark.parametrize("kind", ["export", "speed"])
def test_a_step_that_waits_for_nodes_that_have_gone_is_started_again(kind: str) -> None:
    pool = ScriptedPool(node("a"))
    steps = executor(pool)
    steps.start(step("export" if kind == "export" else "speed", "x"))
    if kind == "speed":
        steps._start_speeds()
    pool.alive = [node("b")]
    assert steps.next(lambda *_state: None).place == Place("b")
    assert pool.cancelled == ["x"]


@pytest.mark.parametrize("kind", ["export", "speed"])
def test_what_no_node_can_hold_fails_at_once_and_says_what_nodes_have(kind: str) -> None:
    pool = ScriptedPool(node("a", gigabytes=4), node("b", gigabytes=8))
    cpus = 2 if kind == "export" else 1
    (done,) = run(executor(pool, gigabytes=16), step("export" if kind == "export" else "speed", "x"))
    assert done.error == (
        f"it takes {cpus} CPUs and 16.00 GB of memory, more than any node has (a 4 and 4.00 GB, b 4 and 8.00 GB); add "
        "a larger node, or take fewer threads"
    )
    assert pool.submitted == []


def test_without_nodes_every_step_fails() -> None:
    pool = ScriptedPool(node("a"))
    steps = executor(pool)
    steps.check()
    pool.alive.clear()
    done = run(steps, step("accuracy", "x"), step("speed", "y"))
    assert all("no node of the cluster can take part; add one" in one.error for one in done)


def test_unfit_nodes_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    pool = ScriptedPool(node("a"), node("b"))
    pool.unfit = {"a": "it does not see /results"}
    with caplog.at_level(logging.INFO, logger=LOGGER):
        (done,) = run(executor(pool), step("accuracy", "x"))
    assert done.place == Place("b")
    assert [record.message for record in caplog.records] == ["node a is left out: it does not see /results"]
    pool.unfit["b"] = "it has numpy 1"
    with pytest.raises(ClusterError, match=r"take part .a: it does not see /results; b: it has numpy 1\)$"):
        executor(pool).check()


def test_without_cpus_for_tasks_there_is_no_sweep() -> None:
    with pytest.raises(ClusterError, match="none has a CPU for tasks; add one"):
        executor(ScriptedPool()).check()


def test_what_runs_is_ended_with_the_sweep() -> None:
    pool = ScriptedPool(node("a"))
    with executor(pool) as steps:
        for name in "xyz":
            steps.start(step("accuracy", name))
        steps.next(lambda *_state: None)
    assert pool.cancelled == ["y", "z"]


def test_what_runs_ends_with_the_connection_where_the_cluster_is_left() -> None:
    pool = ScriptedPool(node("a"))
    leaving = executor(pool)
    leaving.is_left = True
    with leaving as steps:
        steps.start(step("accuracy", "x"))
    assert pool.cancelled == []
