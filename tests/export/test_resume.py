"""A killed export goes on where it was, and gives the same bytes as one that was left alone."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from edge.export import pipeline
from edge.export.pipeline import export
from edge.export.stages import Progress
from edge.export.store import WeightStore
from edge.export.tensors import PackedTensor, Weight
from edge.runtime.bundle import open_bundle
from edge.runtime.errors import OutputError, VerificationError

STAGES = ["embedding", "block 0", "block 1", "block 2", "head", "writing"]


def digests(bundle: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(bundle.iterdir())}


@pytest.fixture(scope="module")
def untouched(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What an export gives that nothing disturbs."""
    out = tmp_path_factory.mktemp("untouched") / "bundle"
    export(tiny_checkpoint, out, "int4-asym-g64")
    return digests(out)


def kill_at(stage: str, checkpoint: Path, out: Path) -> None:
    """Start an export in a process of its own, which kills itself after this stage."""
    script = f"""
import os, signal
from edge.export.pipeline import export
def progress(p):
    if p.stage == {stage!r}:
        os.kill(os.getpid(), signal.SIGKILL)
export({str(checkpoint)!r}, {str(out)!r}, "int4-asym-g64", progress=progress)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize("stage", STAGES)
def test_killed_after_a_stage(stage: str, tiny_checkpoint: Path, untouched: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    kill_at(stage, tiny_checkpoint, out)
    assert not out.exists()
    seen: list[Progress] = []
    export(tiny_checkpoint, out, "int4-asym-g64", progress=seen.append)
    assert digests(out) == untouched
    assert list(tmp_path.iterdir()) == [out]
    # Stages that were recorded before the kill are not done again; the head always is.
    again = [progress.stage for progress in seen]
    assert again == STAGES[min(STAGES.index(stage) + 1, 4) :] or again == STAGES[min(STAGES.index(stage) + 2, 4) :]
    assert seen[0].resumed > 0


@pytest.mark.parametrize("delay_s", [1.2, 1.7, 2.2, 2.7])
def test_killed_at_any_moment(delay_s: float, tiny_checkpoint: Path, untouched: dict[str, str], tmp_path: Path) -> None:
    """Moments that no stage decides: imports, compression, the tokenizer's own process, the last files."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "edge", "export", str(tiny_checkpoint), str(out), "--recipe", "int4-asym-g64"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(delay_s)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if not out.exists():
        subprocess.run(command, check=True, capture_output=True)
    assert digests(out) == untouched


def test_another_recipe_begins_anew(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    kill_at("block 1", tiny_checkpoint, out)
    seen: list[Progress] = []
    manifest = export(tiny_checkpoint, out, "int8-asym", progress=seen.append)
    assert [progress.stage for progress in seen] == STAGES
    assert manifest.recipe == "int8-asym"
    open_bundle(out)


def test_a_changed_checkpoint_begins_anew(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    kill_at("block 1", tiny_checkpoint, out)
    weights = tiny_checkpoint / "model.safetensors"
    times = weights.stat()
    os.utime(weights, (times.st_atime, times.st_mtime + 10))
    try:
        seen: list[Progress] = []
        export(tiny_checkpoint, out, "int4-asym-g64", progress=seen.append)
    finally:
        os.utime(weights, (times.st_atime, times.st_mtime))
    assert [progress.stage for progress in seen] == STAGES


def test_a_damaged_journal_begins_anew(tiny_checkpoint: Path, untouched: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    kill_at("block 1", tiny_checkpoint, out)
    journal = tmp_path / ".out.partial" / "journal" / "journal.json"
    journal.write_text(journal.read_text()[:-40])
    export(tiny_checkpoint, out, "int4-asym-g64")
    assert digests(out) == untouched


def test_two_exports_to_one_place(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def second(progress: Progress) -> None:
        if progress.stage == "block 0":
            with pytest.raises(OutputError, match="is being written by another export"):
                export(tiny_checkpoint, out, "int8-asym")

    export(tiny_checkpoint, out, "int8-asym", progress=second)
    open_bundle(out)


def test_a_broken_block_is_found(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scales in the wrong rows: finite, plausible numbers, and another model."""
    put = WeightStore.put

    def wrong(self: WeightStore, name: str, weight: Weight) -> None:
        if name == "layers.1.mlp.down.weight":
            assert isinstance(weight, PackedTensor)
            weight = replace(weight, scale=weight.scale[::-1], data=weight.data[::-1])
        put(self, name, weight)

    monkeypatch.setattr(WeightStore, "put", wrong)
    with pytest.raises(VerificationError, match=r"block 1 is off by .* rounding its weights explains about"):
        export(tiny_checkpoint, tmp_path / "out", "int8-asym")
    assert list(tmp_path.iterdir()) == []


def test_the_disk_check_counts_what_is_there(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(pipeline, "check_space", lambda folder, needed: asked.append(needed))
    kill_at("block 1", tiny_checkpoint, tmp_path / "resumed")
    export(tiny_checkpoint, tmp_path / "resumed", "int4-asym-g64")
    export(tiny_checkpoint, tmp_path / "fresh", "int4-asym-g64")
    assert asked[0] < asked[1]
    assert shutil.disk_usage(tmp_path).free > asked[1]
