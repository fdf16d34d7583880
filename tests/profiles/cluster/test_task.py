"""What a node looks at before it takes part."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from edge.profiles.cluster.task import OWN_THREADS, Wanted, boot_id, look, run_here
from edge.profiles.machine_record import machine_record, versions_record


@pytest.fixture
def wanted(tmp_path: Path) -> Wanted:
    (tmp_path / "mark").write_text("ours")
    (tmp_path / "model").write_bytes(b"12345")
    return Wanted(versions_record(), {str(tmp_path / "model"): 5}, str(tmp_path / "mark"), "ours", None)


def test_a_node_like_this_machine_is_fit(wanted: Wanted, tmp_path: Path) -> None:
    facts = look("id", wanted)
    assert (facts.node_id, facts.machine, facts.unfit) == ("id", machine_record(), "")
    assert facts.boot == boot_id()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mark", "model"]


def test_other_versions_are_told(wanted: Wanted) -> None:
    other = replace(wanted, versions={**wanted.versions, "numpy": "1.0"})
    assert look("id", other).unfit == (
        f"it has numpy {wanted.versions['numpy']}, the machine of the sweep 1.0; install the same"
    )
    more = replace(wanted, versions={**wanted.versions, "zlib": "1.0"})
    assert look("id", more).unfit == "it has zlib (none), the machine of the sweep 1.0; install the same"


def test_a_folder_that_is_not_shared_is_told(wanted: Wanted, tmp_path: Path) -> None:
    (tmp_path / "mark").write_text("of another sweep")
    message = f"it does not see {tmp_path}; results need a folder that all nodes share under one path"
    assert look("id", wanted).unfit == message
    (tmp_path / "mark").unlink()
    assert look("id", wanted).unfit == message


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="nothing is read-only for this user")
def test_a_folder_that_is_read_only_is_told(wanted: Wanted, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        assert "cannot write into" in look("id", wanted).unfit
    finally:
        tmp_path.chmod(0o700)


def test_a_checkpoint_that_is_another_is_told(wanted: Wanted, tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"1234")
    assert look("id", wanted).unfit == (
        f"it does not see {tmp_path / 'model'} as the machine of the sweep does; share it under the same path"
    )


def test_an_unfit_node_runs_nothing(wanted: Wanted, tmp_path: Path) -> None:
    (tmp_path / "mark").unlink()
    report = run_here("id", wanted, {"task": "fly"}, None, lambda *_state: None)
    assert report.outcome is None
    assert report.error.startswith("the node cannot take part: it does not see")


def test_threads_that_ray_sets_are_not_those_of_a_step(wanted: Wanted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.profiles.cluster.task.run_step", lambda _task, _tell: os.environ.get(OWN_THREADS))
    monkeypatch.setenv(OWN_THREADS, "1")
    assert run_here("id", wanted, {}, None, lambda *_state: None).outcome is None
    told = run_here("id", replace(wanted, own_threads="3"), {}, None, lambda *_state: None)
    assert str(told.outcome) == "3"
