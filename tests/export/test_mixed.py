"""Models within a budget: what is chosen, what is refused, and what a killed export leaves for the next one."""

from __future__ import annotations

import argparse
import hashlib
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge.commands.kinds import size as parse_bytes
from edge.export.budget import sensitivity
from edge.export.budget.sensitivity import Sensitivity
from edge.export.compress import recipes
from edge.export.compress.precision import Rounding, stored_bytes
from edge.export.pipeline import export
from edge.export.plan import make_plan
from edge.export.settings import ExportSettings
from edge.export.weights.names import canonical_shapes
from edge.runtime.errors import RecipeError
from edge.runtime.lint import gpu, suits
from edge.runtime.manifest import Manifest
from edge.runtime.verify import verify
from tests import tiny

BUDGET = 110_000  # of a tiny model that has 98,080 bytes at least


def digests(bundle: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(bundle.iterdir())}


@pytest.fixture(scope="module")
def mixed(tiny_checkpoint: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    out = tmp_path_factory.mktemp("mixed") / "out"
    return out, export(tiny_checkpoint, out, max_bytes=BUDGET, calibration=text)


def test_a_budget_is_kept_and_used(mixed: tuple[Path, Manifest]) -> None:
    out, manifest = mixed
    precisions = {tensor.precision for tensor in manifest.tensors.values() if len(tensor.shape) == 2}
    assert BUDGET * 0.95 < manifest.weight_bytes <= BUDGET
    assert len(precisions) > 1
    assert manifest.recipe == "mixed-rot-gptq"
    assert f"{manifest.weight_bytes:,} bytes of weights, predicted KLD" in manifest.decisions[1]
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_channels_are_scaled_where_that_was_measured_to_err_less(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here of one kind of matrix, in a model that is not rotated. With the same choices and no scales, other bytes."""
    tiny.make(next(t for t in tiny.TINIES if t.name == "full-tied"), tmp_path / "checkpoint")

    def measure(*args: Any) -> Sensitivity:
        candidates = args[2]
        errors = {
            name: {
                choice: 2.0 ** -bits_of(choice, canonical_shapes(args[1].spec)[name])
                * (0.5 if choice.awq and "mlp.down" in name else 2.0 if choice.awq else 1.0)
                for choice in choices
            }
            for name, choices in candidates.items()
        }  # fmt: skip
        return Sensitivity(errors, dict.fromkeys(errors, 1.0), tuple(errors))

    monkeypatch.setattr(sensitivity, "measure", measure)
    manifest = export(tmp_path / "checkpoint", tmp_path / "scaled", max_bytes=BUDGET, calibration=text)
    scaled = {name for name, tensor in manifest.tensors.items() if "scaled channels" in tensor.note}
    assert scaled
    assert all(".mlp.down." in name for name in scaled)
    verify(tmp_path / "scaled")
    monkeypatch.setattr(recipes.Recipe, "scales", lambda *_: False)
    plain = export(tmp_path / "checkpoint", tmp_path / "plain", max_bytes=BUDGET, calibration=text)
    assert plain.tensors == manifest.tensors
    assert plain.files["openvino_model.bin"] != manifest.files["openvino_model.bin"]


def bits_of(choice: Rounding, shape: tuple[int, ...]) -> float:
    return 8 * stored_bytes(choice.precision, shape) / (shape[0] * shape[1])


def test_what_was_measured_outlives_a_kill(
    tiny_checkpoint: Path, text: Path, mixed: tuple[Path, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    script = f"""
import os, signal
from edge.export.pipeline import export
def progress(p):
    if p.stage == "block 0":
        os.kill(os.getpid(), signal.SIGKILL)
export({str(tiny_checkpoint)!r}, {str(out)!r}, max_bytes={BUDGET}, calibration={str(text)!r}, progress=progress)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    monkeypatch.setattr(sensitivity, "measure", None)  # not called again
    export(tiny_checkpoint, out, max_bytes=BUDGET, calibration=text)
    assert digests(out) == digests(mixed[0])
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["0414", "full-tied"])
def test_a_kld_is_kept_and_symmetric_for_an_npu(name: str, text: Path, tmp_path: Path) -> None:
    """By models that no rotation passes, or whose head it would untie."""
    folder = tmp_path / "checkpoint"
    tiny.make(next(t for t in tiny.TINIES if t.name == name), folder)
    manifest = export(folder, tmp_path / "out", max_kld=0.05, device="NPU", format="openvino", calibration=text)
    assert manifest.recipe == "mixed-gptq"
    assert manifest.spec.tied_embeddings == (name == "full-tied")
    assert float(manifest.decisions[1].split("predicted KLD ")[1].split()[0]) <= 0.05
    kinds = {tensor.precision for name, tensor in manifest.tensors.items() if name.startswith("layers.")}
    assert kinds <= {"int4-sym-channel", "int4-sym-g128", "int4-sym-g64", "fp32"}
    assert suits(manifest.spec, manifest.tensors, "NPU") == ()


def test_two_bits_are_for_what_fits_in_no_other_way(
    tiny_checkpoint: Path, text: Path, mixed: tuple[Path, Manifest], tmp_path: Path
) -> None:
    """On ONNX Runtime alone, and in blocks alone; the bundle's graphs give the numbers that were fitted."""
    least = 98_080  # bytes, with 4 bits
    with pytest.raises(RecipeError, match=r"98,080 bytes of weights; give --format onnx, which allows 2 bits, allow"):
        export(tiny_checkpoint, tmp_path / "out", max_bytes=least - 1, calibration=text)
    manifest = export(tiny_checkpoint, tmp_path / "out", max_bytes=least - 1, format="onnx", calibration=text)
    assert manifest.weight_bytes < least <= mixed[1].weight_bytes
    narrow = {name for name, tensor in manifest.tensors.items() if tensor.bits == 2}
    assert narrow
    assert all(name.startswith("layers.") for name in narrow)
    verify(tmp_path / "out")


def test_a_kld_that_an_npu_cannot_keep(tiny_checkpoint: Path, text: Path, tmp_path: Path) -> None:
    """With 8 bits it could."""
    limits = {"max_kld": 1e-3, "format": "openvino", "calibration": text}
    with pytest.raises(RecipeError, match="the lowest that 4 bits, which an NPU needs, give this model is about"):
        export(tiny_checkpoint, tmp_path / "out", device="NPU", **limits)  # type: ignore[arg-type]
    manifest = export(tiny_checkpoint, tmp_path / "out", **limits)  # type: ignore[arg-type]
    assert suits(manifest.spec, manifest.tensors, "NPU")


def test_a_matrix_without_a_form_for_a_device(
    tiny_checkpoint: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that no GPU would give memory for."""
    monkeypatch.setattr(gpu, "LARGEST_ALLOCATION", 1000)
    with pytest.raises(RecipeError, match=r"embed.weight has no form for a GPU: as int4-asym-channel, .* in one piece"):
        make_plan(tiny_checkpoint, ExportSettings(max_bytes=1e9, device="GPU", format="openvino", calibration=text))


def test_what_cannot_be_is_refused(tiny_checkpoint: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for limits, message in [
        ({"max_bytes": 5000}, "the budget is 5,000 bytes, the smallest that this model can be is"),
        ({"max_kld": 1e-9}, "the lowest that 8 bits give this model is about"),
        ({"max_bytes": 100_000, "max_kld": 1e-3}, "bytes of weights, the budget is 100,000, which give about"),
        ({"max_bytes": 1e6, "recipe": "int8-asym"}, "recipe int8-asym and a budget"),
    ]:
        with pytest.raises(RecipeError, match=message):
            export(tiny_checkpoint, out, calibration=text, **limits)  # type: ignore[arg-type]
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["partial-bias-untied", "full-tied"])
def test_what_a_matrix_may_be(name: str, text: Path, tmp_path: Path) -> None:
    """Every size of group, with channels scaled or not where nothing is rotated, and 8 bits; for NPUs theirs."""
    tiny.make(next(t for t in tiny.TINIES if t.name == name), tmp_path)
    matrix = "layers.0.mlp.down.weight"  # 128 wide
    plan = make_plan(tmp_path, ExportSettings(max_bytes=BUDGET, calibration=text))
    four = [f"int4-asym-{size}" for size in ("channel", "g128", "g64", "g32")]
    scaled = [f"{option}-awq" for option in four] if name == "full-tied" else []
    assert {str(option) for option in plan.options[matrix]} == {*four, *scaled, "int8-asym"}
    alone = make_plan(tmp_path, ExportSettings(max_bytes=BUDGET, format="onnx", calibration=text))
    narrow = {str(option.precision) for option in alone.options[matrix]}
    assert narrow == {*four, "int2-sym-g128", "int8-asym"}
    assert not any(option.precision.bits == 2 for option in alone.options["embed.weight"])
    npu = make_plan(tmp_path, ExportSettings(max_bytes=BUDGET, device="NPU", calibration=text))
    suited = {"int4-sym-channel", "int4-sym-g128"}
    assert {str(option.precision) for option in npu.options[matrix]} == suited
    assert {str(option.precision) for option in npu.options["embed.weight"]} > {"int4-sym-channel", "int8-sym"}


def test_vocabulary_as_the_user_wants_it(tiny_checkpoint: Path, text: Path) -> None:
    settings = ExportSettings(max_bytes=BUDGET, head="int4-asym-g32", format="onnx", calibration=text)
    plan = make_plan(tiny_checkpoint, settings)
    assert [str(precision) for precision in plan.options["lm_head.weight"]] == ["int4-asym-g32"]
    assert len(plan.options["embed.weight"]) > 1
    assert not any(option.awq for found in plan.options.values() for option in found), "behind a rotation"


@pytest.mark.parametrize("size", ["5.2GB", "5200MB", "5.2e9", "5200000000", " 5.2 gb", "5200e6B"])
def test_sizes(size: str) -> None:
    assert parse_bytes(size) == 5_200_000_000


@pytest.mark.parametrize("size", ["", "GB", "5.2.1GB", "5 bananas", "-3GB", "0", "1e999", "nan"])
def test_what_is_no_size(size: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"is not a size; give bytes like 5\.2e9"):
        parse_bytes(size)
