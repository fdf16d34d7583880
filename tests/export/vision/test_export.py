"""A bundle's picture tower from end to end: what is written computes what the checkpoint does, and resumes."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Glm4vForConditionalGeneration

from edge.export.architectures.registry import describe, describe_tower
from edge.export.checkpoint.checkpoint import open_checkpoint
from edge.export.pipeline import export
from edge.export.stages import RESUMED, RESUMED_PICTURES, Progress
from edge.export.tensors import PackedTensor, Weight
from edge.export.vision import segments
from edge.export.vision.golden import golden_inputs
from edge.export.vision.names import LEARNED, PATCHES, canonical_shapes
from edge.export.weights.store import WeightStore
from edge.runtime import bundle
from edge.runtime.differences import distance
from edge.runtime.errors import OutputError, RecipeError, SettingsError, TensorError, VerificationError
from edge.runtime.manifest import Manifest
from tests import tiny_pictures

KINDS = ("4v", "glm4v")
TOWER = ["picture patches", "picture layer 0", "picture layer 1", "picture layer 2", "picture adapter"]
TEXT = ["embedding", "block 0", "block 1", "block 2", "head", "writing"]
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
STAGES = [*TEXT, *TOWER, "writing pictures"]


def slow(*values: object) -> Any:
    """Parameters of a test that takes two exports."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    tiny_pictures.make_4v(folder / "4v")
    tiny_pictures.make_glm4v(folder / "glm4v")
    return folder


@pytest.fixture(scope="module")
def exact(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles in float32, of one layer a segment, for both engines."""
    folder = tmp_path_factory.mktemp("exact")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "SEGMENT_LAYERS", 1)
        for kind in KINDS:
            export(checkpoints / kind, folder / kind, "fp32")
    return folder


@pytest.fixture(scope="module")
def rounded(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles as they are by default, but for the text's recipe."""
    folder = tmp_path_factory.mktemp("rounded")
    for kind in KINDS:
        export(checkpoints / kind, folder / kind, "int4-asym-g64")
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def run_openvino(opened: bundle.Bundle, inputs: dict[str, Any]) -> np.ndarray:
    from edge.runtime.engines.openvino_core import make_core

    core, values = make_core(), dict(inputs)
    for path in opened.vision_parts("openvino"):
        model = core.read_model(path, path.with_name(bundle.VISION_BIN))
        compiled = core.compile_model(model, "CPU", EXACT)
        names = [port.any_name for port in compiled.inputs]
        values["hidden"] = compiled({name: np.ascontiguousarray(values[name]) for name in names})[0]
    rows: np.ndarray = values["hidden"]
    return rows


def run_onnx(opened: bundle.Bundle, inputs: dict[str, Any]) -> np.ndarray:
    import onnxruntime

    values = dict(inputs)
    for path in opened.vision_parts("onnx"):
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        values["hidden"] = session.run(None, {i.name: values[i.name] for i in session.get_inputs()})[0]
    rows: np.ndarray = values["hidden"]
    return rows


def golden_of(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / bundle.VISION_GOLDEN) as archive:
        return dict(archive)


@pytest.mark.parametrize("kind", KINDS)
def test_graphs_compute_the_golden_rows(kind: str, exact: Path, rounded: Path) -> None:
    """On both engines, one layer a segment and all in one, of floats and of integers: float32 sums in another order."""
    for folder, parts in ((exact / kind, 3), (rounded / kind, 1)):
        opened, golden = bundle.open_bundle(folder), golden_of(folder)
        assert len(opened.vision_parts("onnx")) == len(opened.vision_parts("openvino")) == parts
        inputs = {name: golden[name] for name in golden if not name.endswith("rows")}
        for run in (run_openvino, run_onnx):
            # 3 layers of sums of 64 and 128 products: a few dozen roundings of 6e-8.
            assert distance(run(opened, inputs), golden["rows"]) < 1e-5
    assert distance(golden_of(exact / kind)["rows"], golden_of(exact / kind)["float_rows"]) < 1e-6


def test_rows_are_those_of_transformers(checkpoints: Path, exact: Path) -> None:
    """Of a picture of 4 x 4 patches, the grid that places were learned on: what is exported is the model itself."""
    model = Glm4vForConditionalGeneration.from_pretrained(checkpoints / "glm4v", dtype=torch.float64)
    golden = golden_of(exact / "glm4v")
    with torch.no_grad():
        grid = torch.tensor([[1, 4, 4]])
        expected = model.model.visual(torch.from_numpy(golden["patches"]).double(), grid).float().numpy()
    assert distance(golden["rows"], expected) < 3e-6
    assert distance(run_onnx(bundle.open_bundle(exact / "glm4v"), golden), expected) < 3e-6


@pytest.mark.parametrize("kind", KINDS)
def test_the_manifest_tells_all_of_the_tower(kind: str, rounded: Path, checkpoints: Path) -> None:
    manifest = bundle.open_bundle(rounded / kind).manifest
    vision = manifest.vision
    assert vision is not None
    opened = open_checkpoint(checkpoints / kind)
    tower = describe_tower(opened, describe(opened)[0])
    assert tower is not None
    assert vision.spec == tower.spec
    assert (vision.recipe, vision.segments) == ("int8-asym", 1)
    assert {name: record.shape for name, record in vision.tensors.items()} == canonical_shapes(vision.spec)
    for name, record in vision.tensors.items():
        is_table = len(record.shape) == 1 or name in LEARNED
        assert record.precision == ("fp32" if is_table else "int8-asym")
    assert vision.weight_bytes == sum(record.nbytes for record in vision.tensors.values())
    assert vision.weight_bytes <= manifest.files[bundle.VISION_BIN].size
    assert [check.stage for check in vision.checks] == TOWER
    assert all(check.error < 2 * check.expected for check in vision.checks)
    assert {"patches", "stream", "layers.attn.scores", "layers.mlp.middle", "adapter.proj"} <= vision.largest.keys()
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert manifest.warnings == ()
    assert bundle.VISION_BIN in bundle.WEIGHTS


def test_what_is_largest_is_what_the_model_computes(checkpoints: Path, exact: Path) -> None:
    """Of the golden picture, in transformers: outputs of matrices, and what the layers add up to."""
    model = Glm4vForConditionalGeneration.from_pretrained(checkpoints / "glm4v", dtype=torch.float32)
    vision = bundle.open_bundle(exact / "glm4v").manifest.vision
    assert vision is not None
    seen: dict[str, float] = {}

    def watch(kind: str) -> Any:
        return lambda _m, _i, out: seen.update({kind: max(seen.get(kind, 0.0), out.abs().max().item())})

    tower = model.model.visual
    tower.merger.proj.register_forward_hook(watch("adapter.proj"))
    for block in tower.blocks:
        block.attn.qkv.register_forward_hook(watch("layers.attn.qkv"))
        block.mlp.down_proj.register_forward_hook(watch("layers.mlp.down"))
        block.register_forward_hook(watch("blocks"))
    with torch.no_grad():
        tower(torch.from_numpy(golden_of(exact / "glm4v")["patches"]), torch.tensor([[1, 4, 4]]))
    for kind in ("adapter.proj", "layers.attn.qkv", "layers.mlp.down"):
        assert vision.largest[kind] == pytest.approx(seen[kind], rel=1e-3)
    assert vision.largest["stream"] >= seen["blocks"] * 0.999


def test_the_golden_picture_is_the_same_every_time(rounded: Path) -> None:
    vision = bundle.open_bundle(rounded / "4v").manifest.vision
    assert vision is not None
    golden = golden_of(rounded / "4v")
    for name, values in golden_inputs(vision.spec).items():
        np.testing.assert_array_equal(golden[name], values)


@pytest.mark.parametrize(("kind", "format"), [("4v", "onnx"), slow("glm4v", "openvino")])
def test_one_format_alone_has_the_same_weights(
    kind: str, format: Any, checkpoints: Path, rounded: Path, tmp_path: Path
) -> None:
    manifest = export(checkpoints / kind, tmp_path / "out", "int4-asym-g64", format=format)
    both = bundle.open_bundle(rounded / kind).manifest
    assert manifest.vision == both.vision
    opened = bundle.open_bundle(tmp_path / "out")
    assert bool(opened.vision_parts("onnx")) == (format == "onnx")
    assert bool(opened.vision_parts("openvino")) == (format == "openvino")
    golden = golden_of(tmp_path / "out")
    run = run_onnx if format == "onnx" else run_openvino
    assert distance(run(opened, golden), golden["rows"]) < 1e-5
    np.testing.assert_array_equal(golden["rows"], golden_of(rounded / kind)["rows"])


@pytest.mark.parametrize("recipe", ["int4-sym-g128", *(slow(r) for r in ("int8-sym", "int4-sym-channel", "fp16"))])
def test_recipes_of_towers(recipe: str, checkpoints: Path, tmp_path: Path) -> None:
    manifest = export(checkpoints / "4v", tmp_path / "out", "int8-asym", pictures=recipe)
    assert manifest.vision is not None
    assert manifest.vision.recipe == recipe
    precision = manifest.vision.tensors["vision.layers.0.mlp.up.weight"].precision
    assert precision.startswith(recipe.removesuffix("-g128").removesuffix("-channel"))
    assert manifest.vision.tensors[PATCHES].precision == ("fp16" if recipe == "fp16" else "int8-sym")
    opened, golden = bundle.open_bundle(tmp_path / "out"), golden_of(tmp_path / "out")
    for run in (run_openvino, run_onnx):  # over the same bytes, though ONNX's integers have no sign
        assert distance(run(opened, golden), golden["rows"]) < 1e-5
    twice = [warning for warning in manifest.warnings if "vision.bin again as unsigned ones" in warning]
    assert len(twice) == ("sym" in recipe)


@pytest.mark.parametrize("kind", ["glm4v", slow("4v")])
def test_without_the_tower_the_text_is_as_it_was(kind: str, checkpoints: Path, rounded: Path, tmp_path: Path) -> None:
    manifest = export(checkpoints / kind, tmp_path / "out", "int4-asym-g64", pictures="none")
    assert manifest.vision is None
    assert manifest.spec.rope_sections == ()
    assert manifest.decisions == ("the picture tower is left out; the bundle answers to text alone",)
    assert not [name for name in manifest.files if name.startswith("vision")]
    both = bundle.open_bundle(rounded / kind).manifest
    assert manifest.tensors == both.tensors
    assert manifest.source_sha256 != both.source_sha256


def test_a_tower_is_no_part_of_a_text_model(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"pictures is int8-asym, and .* has no picture tower"):
        export(tiny_checkpoint, tmp_path / "out", "int8-asym", pictures="int8-asym")
    with pytest.raises(RecipeError, match="a picture tower is rounded to nearest"):
        export(tiny_checkpoint, tmp_path / "out", "int8-asym", pictures="int4-asym-g128-awq-gptq")
    with pytest.raises(RecipeError, match="recipe 'off' is unknown"):
        export(tiny_checkpoint, tmp_path / "out", "int8-asym", pictures="off")


def test_rows_fit_a_rotated_text(checkpoints: Path, rounded: Path, tmp_path: Path) -> None:
    """The rotation of the residual stream keeps lengths, and turned rows are those of the tower times it."""
    from edge.export.weights.rotation import Rotation

    text = tmp_path / "words.txt"
    text.write_text(" ".join(f"word{i % 97} and {i}" for i in range(3000)))
    recipe = "int4-asym-g128-rot-gptq"
    export(checkpoints / "4v", tmp_path / "out", recipe, calibration=text, pictures="fp32")
    turned, plain = golden_of(tmp_path / "out")["rows"], golden_of(rounded / "4v")["float_rows"]
    expected = Rotation(plain.shape[1]).apply(plain)
    assert distance(turned, expected) < 1e-5
    assert distance(turned, plain) > 0.1


def stop_at(stage: str, checkpoint: Path, out: Path) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.stage == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as stopped:
        export(checkpoint, out, "int4-asym-g64", progress=interrupt)
    last = "picture" if "picture" in stage else "block"
    assert f"stopped after {last}" in stopped.value.__notes__[0]


def resumed(checkpoint: Path, out: Path) -> list[str]:
    seen: list[Progress] = []
    export(checkpoint, out, "int4-asym-g64", progress=seen.append)
    done = [progress.done for progress in seen]
    assert done == sorted(done)
    assert seen[-1].done == seen[-1].total
    return [progress.stage for progress in seen]


@pytest.mark.parametrize(
    ("kind", "stage"),
    [
        ("4v", "picture layer 1"),
        slow("4v", "block 1"),
        slow("glm4v", "picture patches"),
        slow("glm4v", "writing pictures"),
    ],
)
def test_an_export_resumes_in_the_tower(
    kind: str, stage: str, checkpoints: Path, rounded: Path, tmp_path: Path
) -> None:
    """With the bytes of one that nothing disturbed."""
    stop_at(stage, checkpoints / kind, tmp_path / "out")
    again = resumed(checkpoints / kind, tmp_path / "out")
    assert digests(tmp_path / "out") == digests(rounded / kind)
    assert again[0] == RESUMED
    assert (RESUMED_PICTURES in again) == stage.startswith(("picture", "writing"))
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


@pytest.mark.parametrize(
    ("damaged", "anew"),
    [
        ("bundle/vision.bin", TOWER),
        slow("kept/pictures/picture-*.npy", TOWER),
        slow("bundle/openvino_model.bin", ["embedding", "block 0", "block 1", "block 2"]),
    ],
)
def test_what_was_altered_begins_anew_alone(
    damaged: str, anew: Sequence[str], checkpoints: Path, rounded: Path, tmp_path: Path
) -> None:
    """The tower without the text, and the text without the tower."""
    stop_at("picture layer 2", checkpoints / "4v", tmp_path / "out")
    (path,) = (tmp_path / ".out.partial").glob(damaged)
    content = bytearray(path.read_bytes())
    content[1000] ^= 1  # not at the end, where graphs have added theirs
    path.write_bytes(content)
    again = resumed(checkpoints / "4v", tmp_path / "out")
    assert [stage for stage in again if stage in anew] == list(anew)
    other = "block 1" if anew == TOWER else "picture layer 0"
    assert other not in again
    assert digests(tmp_path / "out") == digests(rounded / "4v")


@pytest.mark.slow
def test_another_precision_of_the_tower_begins_anew(checkpoints: Path, tmp_path: Path) -> None:
    stop_at("picture layer 1", checkpoints / "4v", tmp_path / "out")
    seen: list[Progress] = []
    manifest = export(
        checkpoints / "4v", tmp_path / "out", "int4-asym-g64", pictures="int4-asym-g64", progress=seen.append
    )
    assert [progress.stage for progress in seen] == STAGES
    assert manifest.vision is not None
    assert manifest.vision.recipe == "int4-asym-g64"


def test_a_broken_layer_is_found(checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scales in the wrong rows: finite, plausible numbers, and another tower."""
    put = WeightStore.put

    def wrong(self: WeightStore, name: str, weight: Weight) -> None:
        if name == "vision.layers.1.mlp.down.weight":
            assert isinstance(weight, PackedTensor)
            weight = replace(weight, scale=weight.scale[::-1], data=weight.data[::-1])
        put(self, name, weight)

    monkeypatch.setattr(WeightStore, "put", wrong)
    with pytest.raises(VerificationError, match=r"picture layer 1 is off by .* rounding its weights explains about"):
        export(checkpoints / "4v", tmp_path / "out", "int8-asym")
    assert list(tmp_path.iterdir()) == []


def test_a_value_that_is_no_number_is_the_checkpoints(checkpoints: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(checkpoints / "glm4v", tmp_path / "copy"))
    tensors = load_file(copy / "model.safetensors")
    tensors["model.visual.blocks.2.norm1.weight"][3] = torch.nan
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(TensorError, match=r"blocks.2.norm1.weight holds NaN or infinity"):
        export(copy, tmp_path / "out", "int8-asym")


@pytest.mark.slow
def test_the_disk_has_to_have_room_for_the_tower(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edge.export import pipeline

    asked: list[int] = []
    monkeypatch.setattr(pipeline, "check_space", lambda _folder, needed: asked.append(needed))
    stop_at("picture layer 1", checkpoints / "4v", tmp_path / "out")
    export(checkpoints / "4v", tmp_path / "out", "int4-asym-g64")
    export(checkpoints / "4v", tmp_path / "text", "int4-asym-g64", pictures="none")
    begun, again, text = asked
    vision = bundle.open_bundle(tmp_path / "out").manifest.vision
    assert vision is not None
    assert begun - text > vision.weight_bytes  # and what its stages leave for each other
    assert begun - again > vision.weight_bytes / 2  # two of three layers were there, and most of the text


@pytest.mark.slow
def test_a_full_disk_keeps_the_towers_layers(
    checkpoints: Path, rounded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    with monkeypatch.context() as patch:
        put = WeightStore.put

        def full(self: WeightStore, name: str, weight: Weight) -> None:
            if name.startswith("vision.layers.2."):
                raise OSError(errno.ENOSPC, "No space left on device")
            put(self, name, weight)

        patch.setattr(WeightStore, "put", full)
        with pytest.raises(OutputError, match=r"the disk is full .*; stopped after picture layer 1; what is done"):
            export(checkpoints / "4v", tmp_path / "out", "int4-asym-g64")
    again = resumed(checkpoints / "4v", tmp_path / "out")
    assert again[-4:] == [RESUMED_PICTURES, "picture layer 2", "picture adapter", "writing pictures"]
    assert digests(tmp_path / "out") == digests(rounded / "4v")
