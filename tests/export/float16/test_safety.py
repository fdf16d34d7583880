"""Exports for devices that compute in float16: what they record, and that nothing else about them is different."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edge.api import load
from edge.commands import inspect
from edge.export.compress.recipes import FOR_NPU
from edge.export.float16 import safety
from edge.export.pipeline import export
from edge.export.stages import RESUMED, Progress
from edge.runtime.bundle import open_bundle
from edge.runtime.errors import BundleError
from edge.runtime.golden import read_golden
from edge.runtime.manifest import Manifest, digest_of
from tests import tiny
from tests.export.float16.sabotage import MODEL, SABOTAGES, Tensors, residual, sabotaged

NAMES = ("plain", "overflowing")


def digests(bundle: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(bundle.iterdir())}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model, and the same function with everything too large that folds are for."""
    folder = tmp_path_factory.mktemp("float16")
    tiny.make(MODEL, folder / "plain")
    config = json.loads((folder / "plain" / "config.json").read_text())
    (folder / "plain" / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 2.0**-30}))

    def everything(tensors: Tensors) -> int:
        return sum(sabotage(tensors) for sabotage in SABOTAGES.values())

    sabotaged(folder / "plain", folder / "overflowing", everything)
    return {name: folder / name for name in NAMES}


@pytest.fixture(scope="module")
def made(checkpoints: dict[str, Path], text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles in float32 of both for a GPU, and of the plain one for a CPU."""
    folder = tmp_path_factory.mktemp("made")
    for name, checkpoint in checkpoints.items():
        export(checkpoint, folder / name, "fp32", device="GPU", calibration=text)
    export(checkpoints["plain"], folder / "cpu", "fp32", device="CPU")
    return {path.name: path for path in folder.iterdir()}


def test_what_is_recorded(made: dict[str, Path]) -> None:
    plain, overflowing, cpu = (open_bundle(made[name]).manifest for name in (*NAMES, "cpu"))
    assert cpu.float16 is None
    assert "float16" not in json.loads(cpu.to_json())
    assert plain.float16 is not None
    assert not plain.float16.folded
    assert plain.spec == cpu.spec
    record = overflowing.float16
    assert record is not None
    assert (record.device, record.norms) == ("GPU", "plain")
    assert record.residual == overflowing.spec.residual_exponent > 0
    for exponents in (record.up, record.values, record.qkv, record.gate_up):
        assert exponents[1] > 0
    assert record.head > 0
    assert record.headroom["residual"] >= 4
    assert record.kld is not None
    assert record.kld < 1e-3
    assert not record.left
    assert Manifest.from_json(overflowing.to_json()) == overflowing


@pytest.mark.parametrize("engine", ["openvino", "onnx"])
def test_the_same_answers(made: dict[str, Path], engine: str) -> None:
    """By the golden rows bit for bit, and by what engines write."""
    answers = []
    for bundle in made.values():
        with load(bundle, engine=engine) as llm:
            stream = llm.generate(list(range(40, 60)), max_new_tokens=24, ignore_stop_ids=True)
            answers.append([chunk.token_ids for chunk in stream])
    assert answers[0] == answers[1] == answers[2]
    golden = [read_golden((bundle / "golden.npz").read_bytes(), MODEL.vocab_size) for bundle in made.values()]
    for other in golden[1:]:
        np.testing.assert_array_equal(other.logits, golden[0].logits)


def test_a_cpu_is_the_default_and_gets_what_it_always_got(
    checkpoints: dict[str, Path], made: dict[str, Path], tmp_path: Path
) -> None:
    export(checkpoints["plain"], tmp_path / "out", "fp32")
    assert digests(tmp_path / "out") == digests(made["cpu"])


def test_a_stopped_export_resumes_with_its_folds(
    checkpoints: dict[str, Path], made: dict[str, Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is measured twice. With other folds, stages that were made with the first are made anew."""
    out, resumed = tmp_path / "out", []

    def run(until: str) -> None:
        def stop(step: Progress) -> None:
            resumed.append(step.stage == RESUMED)
            if step.stage == until:
                raise KeyboardInterrupt

        export(checkpoints["overflowing"], out, "fp32", device="GPU", calibration=text, progress=stop)

    with pytest.raises(KeyboardInterrupt):
        run("block 0")
    kept = next(out.parent.glob(".out.partial")) / "kept" / safety.KEPT
    ranges = kept.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(safety, "measure", None)
        with pytest.raises(KeyboardInterrupt):
            run("head")
        assert any(resumed)
    found = json.loads(ranges)
    for block in found["blocks"]:
        block["residual"] *= 4
    kept.write_text(json.dumps(found))
    resumed.clear()
    with pytest.raises(KeyboardInterrupt):
        run("head")
    assert not any(resumed)
    kept.write_text("{}")  # damaged: measured anew
    run("never")
    assert digests(out) == digests(made["overflowing"])


def test_what_no_fold_helps_is_said(checkpoints: dict[str, Path], text: Path, tmp_path: Path) -> None:
    """A gate passes no scale: what it gives in float16 is no number, which the emulated run shows."""
    checkpoint = tmp_path / "checkpoint"
    sabotaged(checkpoints["plain"], checkpoint, lambda _: 0)
    tensors = load_file(checkpoint / "model.safetensors")
    gate_up = tensors["model.layers.1.mlp.gate_up_proj.weight"]
    gate_up[: len(gate_up) // 2] *= 1e6
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    manifest = export(checkpoint, tmp_path / "out", "fp32", device="GPU", calibration=text, format="openvino")
    record = manifest.float16
    assert record is not None
    assert record.kld is None
    assert any(line.startswith("gate: ") for line in record.left)
    assert any("emulated float16 is not finite, first in layers.1." in warning for warning in manifest.warnings)
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_an_npu_gets_safe_norms_and_symmetric_integers(
    checkpoints: dict[str, Path], text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = export(checkpoints["overflowing"], tmp_path / "out", device="NPU", calibration=text)
    record = manifest.float16
    assert record is not None
    assert manifest.recipe == FOR_NPU
    assert (record.device, record.norms) == ("NPU", "safe")
    assert manifest.spec.safe_norms
    assert record.kld is not None
    assert record.kld < 1e-2
    assert all("asym" not in tensor.precision for tensor in manifest.tensors.values())
    assert any("npu-" in warning for warning in manifest.warnings), "rules for NPUs refuse a model as small as this"
    assert inspect._bundle(tmp_path / "out", as_json=False) == 0
    said = capsys.readouterr().out
    assert "for NPUs, which compute in float16: norms safe, folds: residual / " in said
    assert "bits of headroom" in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"residual": 0}, "residual is 0"),
        ({"norms": "safe"}, "norms is 'safe'"),
        ({"up": [1]}, "up has 1 exponents, expected one for each of 3 blocks"),
        ({"device": "TPU"}, "device is 'TPU', expected GPU or NPU"),
        ({"headroom": {"gate": "much"}}, "gate is 'much'"),
        ({"values": [0, 99, 0]}, "values is"),
    ],
)
def test_a_record_that_cannot_be(made: dict[str, Path], change: dict[str, object], message: str) -> None:
    """Of another model than the spec, or of no model."""
    data = json.loads((made["overflowing"] / "manifest.json").read_text())
    del data["manifest_sha256"]
    data["float16"] |= change
    data["manifest_sha256"] = digest_of(data)
    with pytest.raises(BundleError, match=message):
        Manifest.from_json(json.dumps(data))


@pytest.mark.slow
@pytest.mark.parametrize("device", ["GPU", "NPU"])
@pytest.mark.parametrize(
    "recipe",
    ["int4-sym-g128-rot-gptq", "int4-asym-g128-awq-gptq", "int4-asym-g128-rot-gptq-lora", "int8-sym", "fp16", None],
)
def test_folds_compose_with_every_way_to_compress(
    checkpoints: dict[str, Path], tmp_path: Path, recipe: str | None, device: str
) -> None:
    """The checkpoint passes the end of float16 in its stream, and what is made of it does not. None: a budget."""
    folder = sabotaged(checkpoints["plain"], tmp_path / "checkpoint", residual)
    choice = {"max_bytes": 200_000} if recipe is None else {"recipe": recipe}
    manifest = export(folder, tmp_path / "out", device=device, **choice)  # type: ignore[arg-type]
    record = manifest.float16
    assert record is not None
    assert record.kld is not None
    assert record.kld < 1e-2
    assert not [warning for warning in manifest.warnings if "scales" in warning]
