"""An export that would not fit into memory is refused before it writes, or takes fewer weights at once."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edge.export import pipeline, space
from edge.export.assignment import Assignments
from edge.export.forecast.dry_run import dry_run
from edge.export.pipeline import export
from edge.export.plan import Plan, make_plan
from edge.export.settings import ExportSettings
from edge.export.space import AT_ONCE, CERTAIN, memory_bytes, within_memory
from edge.runtime.errors import MemoryLimitError
from edge.runtime.files import sha256_of
from edge.runtime.machine import MemoryLimit

GB = 10**9


@pytest.fixture(scope="module")
def plan(tiny_checkpoint: Path) -> Plan:
    return make_plan(tiny_checkpoint, ExportSettings("int8-asym"))


@pytest.fixture
def large(plan: Plan) -> Plan:
    """A plan of GLM-4-9B's vocabulary and widths."""
    found = [
        replace(assigned, shape=(27_392 if assigned.in_block else 151_552, 4096)) if assigned.is_matrix else assigned
        for assigned in plan.assignments.values()
    ]
    return replace(plan, assignments=Assignments(found))


def limited(monkeypatch: pytest.MonkeyPatch, *limits: MemoryLimit) -> None:
    monkeypatch.setattr(space, "memory_limits", lambda: list(limits))
    monkeypatch.setattr(space, "anonymous_bytes", lambda: 0)


def container(left: int, most: int) -> MemoryLimit:
    return MemoryLimit("the container", 8 * GB, left, most)


def test_fewer_weights_at_once_take_less(large: Plan) -> None:
    sizes = [memory_bytes(replace(large, weights_at_once=at_once)) for at_once in AT_ONCE]
    assert AT_ONCE[0] is None
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 1.2 * sizes[-1]


def test_as_many_weights_at_once_as_fit(large: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, container(64 * GB, 64 * GB))
    for at_once in AT_ONCE:
        size = memory_bytes(replace(large, weights_at_once=at_once))
        assert within_memory(large, size).weights_at_once == at_once
        limited(monkeypatch, container(size, size))
        assert within_memory(large, None).weights_at_once == at_once  # where nothing was given, what is free counts
        limited(monkeypatch, container(64 * GB, 64 * GB))
    with pytest.raises(MemoryLimitError, match=r"takes about .* and max_memory_bytes is .*; nothing was written"):
        within_memory(large, memory_bytes(replace(large, weights_at_once=AT_ONCE[-1])) - 1)


def test_what_the_process_has_taken_counts(large: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch)
    size = memory_bytes(large)
    assert within_memory(large, size).weights_at_once is None
    monkeypatch.setattr(space, "anonymous_bytes", lambda: 3 * GB)
    with pytest.raises(MemoryLimitError, match=r"beside 2\.93 GB that this process has taken"):
        within_memory(large, size)


def test_without_a_limit_only_what_is_impossible_is_refused(
    large: Plan, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    smallest = replace(large, weights_at_once=AT_ONCE[-1])
    possible = int(memory_bytes(smallest) * CERTAIN)
    limited(monkeypatch, container(10**8, possible))
    assert within_memory(large, None) == smallest
    assert "100.0 MB are free (limit of the container: 8.00 GB); it may become very slow" in caplog.text
    limited(monkeypatch, container(10**8, possible - 1))
    with pytest.raises(MemoryLimitError, match=r"100\.0 MB are free \(limit of the container: 8\.00 GB\); end other"):
        within_memory(large, None)
    assert within_memory(large, 64 * GB) == large  # whoever gives a limit knows better
    limited(monkeypatch)
    assert within_memory(large, None) == large
    limited(monkeypatch, MemoryLimit("ulimit -v", GB, 1, 1, addresses=True))  # mapped files are not counted here
    assert within_memory(large, None) == large


def test_nothing_is_written_by_what_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Neither a folder nor a weight: the only files opened below the checkpoint are small ones and headers."""
    wrote: list[str] = []
    watching = [True]  # a hook cannot be taken away again

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        opened = event == "open" and isinstance(arguments[1], str) and bool(set(arguments[1]) & set("wax+"))
        if watching and (opened or event in ("os.mkdir", "os.rename", "os.truncate")):
            wrote.append(f"{event} {arguments[0]}")

    sys.addaudithook(watch)
    for run in (
        lambda: export(tiny_checkpoint, tmp_path / "out", "int8-asym", max_memory_bytes=10**7),
        lambda: dry_run(ExportSettings("int8-asym", max_memory_bytes=10**7), tiny_checkpoint, tmp_path / "out"),
    ):
        wrote.clear()
        with pytest.raises(MemoryLimitError, match=r"and max_memory_bytes is 10\.0 MB"):
            run()
        seen = [entry for entry in wrote if "/dev/null" not in entry]
        assert seen == []
    watching.clear()
    assert list(tmp_path.iterdir()) == []


def test_bytes_are_the_same_however_many_weights_are_worked_on(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = set()
    for at_once in (None, 1 << 11):
        settings = ExportSettings("int8-asym", format="openvino")
        out = tmp_path / str(at_once)
        monkeypatch.setattr(pipeline, "within_memory", lambda p, _, at=at_once: replace(p, weights_at_once=at))
        pipeline.export_with(settings, tiny_checkpoint, out)
        weights.add(sha256_of(out / "openvino_model.bin"))
    assert len(weights) == 1
