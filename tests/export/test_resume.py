"""A killed export continues where it was, and gives the same bytes as one that was left alone.

What is about the checkpoint, and no file of a bundle, exports one format: it takes a third of the time of both.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge.export import pipeline, source_files
from edge.export.budget import sensitivity
from edge.export.checkpoint import mapped as mapped_module
from edge.export.pipeline import export
from edge.export.settings import Format
from edge.export.stages import RESUMED, Progress
from edge.export.tensors import PackedTensor, Weight
from edge.export.weights.store import WeightStore
from edge.runtime.bundle import MANIFEST, open_bundle
from edge.runtime.errors import CheckpointError, OutputError, VerificationError

STAGES = ["embedding", "block 0", "block 1", "block 2", "head", "writing"]


def digests(bundle: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(bundle.iterdir())}


@pytest.fixture(scope="module")
def untouched(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What an export gives that nothing disturbs."""
    out = tmp_path_factory.mktemp("untouched") / "bundle"
    export(tiny_checkpoint, out, "int4-asym-g64")
    return digests(out)


def kill_at(stage: str, checkpoint: Path, out: Path, format: Format = "both") -> None:
    """Start an export in a process of its own, which kills itself after this stage."""
    script = f"""
import os, signal
from edge.export.pipeline import export
def progress(p):
    if p.stage == {stage!r}:
        os.kill(os.getpid(), signal.SIGKILL)
export({str(checkpoint)!r}, {str(out)!r}, "int4-asym-g64", format={format!r}, progress=progress)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


# In the midst of blocks, and when all are done; the others by `make test-slow`.
@pytest.mark.parametrize(
    "stage",
    [stage if stage in ("block 1", "writing") else pytest.param(stage, marks=pytest.mark.slow) for stage in STAGES],
)
def test_killed_after_a_stage(stage: str, tiny_checkpoint: Path, untouched: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    kill_at(stage, tiny_checkpoint, out)
    assert not out.exists()
    seen: list[Progress] = []
    export(tiny_checkpoint, out, "int4-asym-g64", progress=seen.append)
    assert digests(out) == untouched
    assert list(tmp_path.iterdir()) == [out]
    # Stages that were recorded before the kill are not done again; the head always is.
    told, *again = [progress.stage for progress in seen]
    assert told == RESUMED
    assert again == STAGES[min(STAGES.index(stage) + 1, 4) :] or again == STAGES[min(STAGES.index(stage) + 2, 4) :]
    assert seen[0].resumed > 0


@pytest.mark.slow
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
    kill_at("block 1", tiny_checkpoint, out, format="onnx")
    seen: list[Progress] = []
    manifest = export(tiny_checkpoint, out, "int8-asym", format="onnx", progress=seen.append)
    assert [progress.stage for progress in seen] == STAGES
    assert manifest.recipe == "int8-asym"
    open_bundle(out)


def test_a_changed_checkpoint_begins_anew(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    kill_at("block 1", tiny_checkpoint, out, format="onnx")
    weights = tiny_checkpoint / "model.safetensors"
    times = weights.stat()
    os.utime(weights, (times.st_atime, times.st_mtime + 10))
    try:
        seen: list[Progress] = []
        export(tiny_checkpoint, out, "int4-asym-g64", format="onnx", progress=seen.append)
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
                export(tiny_checkpoint, out, "int8-asym", format="onnx")

    export(tiny_checkpoint, out, "int8-asym", format="onnx", progress=second)
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
    kill_at("block 1", tiny_checkpoint, tmp_path / "resumed", format="onnx")
    export(tiny_checkpoint, tmp_path / "resumed", "int4-asym-g64", format="onnx")
    export(tiny_checkpoint, tmp_path / "fresh", "int4-asym-g64", format="onnx")
    assert asked[0] < asked[1]
    assert shutil.disk_usage(tmp_path).free > asked[1]


def stages_of(out: Path, checkpoint: Path, recipe: str = "int4-asym-g64", format: Format = "both") -> list[str]:
    """What an export did."""
    seen: list[Progress] = []
    export(checkpoint, out, recipe, format=format, progress=seen.append)
    return [progress.stage for progress in seen]


def interrupt_at(stage: str, checkpoint: Path, out: Path, format: Format = "both") -> None:
    """Start an export here and interrupt it after this stage."""

    def interrupt(progress: Progress) -> None:
        if progress.stage == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(checkpoint, out, "int4-asym-g64", format=format, progress=interrupt)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("bundle/openvino_model.bin", "altered"),
        ("bundle/openvino_model.bin", "shorter"),
        ("bundle/openvino_model.bin", "gone"),
        ("journal/hidden-*.npy", "altered"),
        ("journal/hidden-*.npy", "gone"),
        ("journal/journal.json", "altered"),
    ],
)
def test_altered_work_begins_anew(
    name: str, how: str, tiny_checkpoint: Path, untouched: dict[str, str], tmp_path: Path
) -> None:
    """Neither is it used, nor does it get a digest that fits."""
    out = tmp_path / "out"
    interrupt_at("block 1", tiny_checkpoint, out)
    (path,) = (tmp_path / ".out.partial").glob(name)
    content = bytearray(path.read_bytes())
    match how:
        case "altered":
            place = len(content) // 2 if path.suffix != ".json" else content.index(b"error") + 12
            content[place] = ord("7") if content[place] != ord("7") else ord("8")
            path.write_bytes(content)
        case "shorter":
            path.write_bytes(content[:-1000])
        case "gone":
            path.unlink()
    assert stages_of(out, tiny_checkpoint) == STAGES
    assert digests(out) == untouched


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "chat_template.jinja", "config.json"])
def test_another_checkpoint_with_the_same_size_and_date_begins_anew(
    file: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """As `cp -p` and `rsync -t` leave one."""
    copy, out = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")), tmp_path / "out"
    interrupt_at("block 1", copy, out, format="onnx")
    changed = copy / file
    times, content = changed.stat(), bytearray(changed.read_bytes())
    match file:
        case "model.safetensors":  # in a tensor of the first block
            content[tensor_place(content, "model.layers.0.mlp.down_proj.weight") + 2] ^= 1
        case "tokenizer.json":
            content = bytearray(content.replace(b"observation", b"observatiom"))
        case "chat_template.jinja":
            content = bytearray(content.replace(b"<|assistant|>", b"<|assistent|>"))
        case "config.json":
            content = bytearray(content.replace(b"257", b"259"))
    changed.write_bytes(content)
    os.utime(changed, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert stages_of(out, copy, format="onnx") == STAGES
    (tmp_path / "fresh").mkdir()
    export(copy, tmp_path / "fresh" / "out", "int4-asym-g64", format="onnx")
    assert digests(out) == digests(tmp_path / "fresh" / "out")


def tensor_place(content: bytearray, name: str) -> int:
    """Where a tensor begins in a safetensors file."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    start: int = header[name]["data_offsets"][0]
    return 8 + size + start


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("model.safetensors", lambda path: path.write_bytes(path.read_bytes())),  # another date
        ("tokenizer.json", lambda path: path.write_bytes(path.read_bytes()[:-1])),
        ("config.json", lambda path: path.unlink()),
    ],
)
def test_a_checkpoint_that_changes_meanwhile(
    file: str, change: Callable[[Path], object], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))

    def meanwhile(progress: Progress) -> None:
        if progress.stage == "writing":
            change(copy / file)

    with pytest.raises(CheckpointError, match=rf"{file} changed while the export ran"):
        export(copy, tmp_path / "out", "int4-asym-g64", format="onnx", progress=meanwhile)
    assert list(tmp_path.iterdir()) == [copy]


def test_a_small_file_that_changes_with_its_date_kept(tiny_checkpoint: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))

    def meanwhile(progress: Progress) -> None:
        if progress.stage == "block 0":
            config = copy / "config.json"
            times = config.stat()
            config.write_text(config.read_text().replace("257", "259"))
            os.utime(config, ns=(times.st_atime_ns, times.st_mtime_ns))

    with pytest.raises(CheckpointError, match=r"config\.json changed while the export ran"):
        export(copy, tmp_path / "out", "int4-asym-g64", format="onnx", progress=meanwhile)


def test_another_file_at_the_name_of_a_large_one(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its size and date: a copy is no change, another content is one."""
    monkeypatch.setattr(source_files, "_SMALL_BYTES", 1000)
    copy = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    weights = copy / "model.safetensors"

    def replace_by(content: bytes) -> Callable[[Progress], None]:
        def meanwhile(progress: Progress) -> None:
            if progress.stage == "block 0":
                times = weights.stat()
                (copy / "new").write_bytes(content)
                os.utime(copy / "new", ns=(times.st_atime_ns, times.st_mtime_ns))
                (copy / "new").rename(weights)

        return meanwhile

    content = bytearray(weights.read_bytes())
    export(copy, tmp_path / "same", "int4-asym-g64", format="onnx", progress=replace_by(bytes(content)))
    content[tensor_place(content, "model.layers.0.mlp.down_proj.weight") + 2] ^= 1
    with pytest.raises(CheckpointError, match="was replaced by another checkpoint"):
        export(copy, tmp_path / "other", "int4-asym-g64", format="onnx", progress=replace_by(bytes(content)))
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(("stage", "mapped"), [("embedding", False), ("block 0", False), ("embedding", True)])
def test_a_checkpoint_that_shrinks_does_not_end_the_process(
    stage: str, mapped: bool, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """In a process of its own, which SIGBUS would end."""
    copy, out = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")), tmp_path / "out"
    script = f"""
import os
from edge.export.checkpoint import mapped
from edge.export.pipeline import export
from edge.runtime.errors import TensorError
mapped.READ_BYTES = {0 if mapped else mapped_module.READ_BYTES}
def progress(p):
    if p.stage == {stage!r}:
        os.truncate({str(copy / "model.safetensors")!r}, 4096)
try:
    export({str(copy)!r}, {str(out)!r}, "int4-asym-g64", format="onnx", progress=progress)
except TensorError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    if mapped and done.returncode == -signal.SIGBUS:
        pytest.skip("it was being looked at, which nothing protects that is mapped: tensors of over 256 MB")
    assert done.returncode == 0, done.stderr
    assert "model.safetensors ends at byte 4,096 now" in done.stdout
    assert list(tmp_path.iterdir()) == [copy]


def test_what_is_in_the_way_at_the_end_costs_seconds(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The finished bundle is put in place by the same command, without a stage computed again."""
    out, thesis = tmp_path / "out", tmp_path / "out" / "thesis.txt"

    def meanwhile(progress: Progress) -> None:
        if progress.stage == "writing":
            out.mkdir()
            thesis.write_text("years of work")

    with pytest.raises(OutputError, match="is not replaced; the finished bundle is kept as"):
        export(tiny_checkpoint, out, "int4-asym-g64", progress=meanwhile)
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]
    out.rename(tmp_path / "moved")
    assert stages_of(out, tiny_checkpoint) == []
    open_bundle(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["moved", "out"]


def test_a_finished_bundle_that_was_altered_is_made_anew(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def put_file(progress: Progress) -> None:
        if progress.stage == "head":
            out.write_text("mine")

    with pytest.raises(OutputError):
        export(tiny_checkpoint, out, "int4-asym-g64", progress=put_file)
    kept = tmp_path / ".out.partial" / "bundle" / "tokenizer.json"
    kept.write_text(kept.read_text().replace("observation", "observatiom"))
    out.unlink()
    assert stages_of(out, tiny_checkpoint) == STAGES
    open_bundle(out).check_hashes()


@pytest.mark.slow
def test_other_settings_begin_anew_with_what_was_measured(
    tiny_checkpoint: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sensitivity of a model serves every budget."""
    calls = []
    measure = sensitivity.measure

    def counted(*arguments: Any) -> sensitivity.Sensitivity:
        calls.append(arguments)
        return measure(*arguments)

    monkeypatch.setattr(sensitivity, "measure", counted)

    def interrupt(progress: Progress) -> None:
        if progress.stage == "embedding":
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt) as found:
        export(tiny_checkpoint, out, max_bytes=100_000, calibration=text, progress=interrupt)
    assert "the same command resumes" in found.value.__notes__[0]
    manifest = export(tiny_checkpoint, out, max_bytes=120_000, calibration=text)
    assert len(calls) == 1
    assert 100_000 < manifest.weight_bytes <= 120_000
    assert list(tmp_path.iterdir()) == [out]


_SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("journal.json", "hidden-*.npy", "replaced-*.npy")]


@pytest.fixture(scope="module")
def fresh(tiny_checkpoint: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The manifest of an export within a budget that nothing disturbs."""
    out = tmp_path_factory.mktemp("fresh") / "out"
    export(tiny_checkpoint, out, max_bytes=120_000, calibration=text)
    return (out / MANIFEST).read_bytes()


@pytest.mark.parametrize("altered", [None, *_SLOW])
def test_a_measurement_that_was_ended_continues(
    altered: str | None, tiny_checkpoint: Path, text: Path, fresh: bytes, tmp_path: Path
) -> None:
    """With the same choices and the same bytes; where its files were altered it begins anew."""
    out = tmp_path / "out"

    def interrupt(progress: Progress) -> None:
        if progress.stage == "measuring block 2":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(tiny_checkpoint, out, max_bytes=120_000, calibration=text, progress=interrupt)
    if altered is not None:
        (path,) = (tmp_path / ".out.partial" / "kept" / "sensitivity").glob(altered)
        content = bytearray(path.read_bytes())
        content[-9] ^= 1
        path.write_bytes(content)
    seen: list[str] = []
    export(
        tiny_checkpoint,
        out,
        max_bytes=120_000,
        calibration=text,
        progress=lambda progress: seen.append(progress.stage),
    )
    measured = [stage for stage in seen if stage.startswith("measuring")]
    assert measured == [f"measuring {name}" for name in (STAGES[3:-1] if altered is None else STAGES[1:-1])]
    assert (out / MANIFEST).read_bytes() == fresh
    assert list(tmp_path.iterdir()) == [out]
