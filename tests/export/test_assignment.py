"""The table of what every weight gets is what a finished bundle holds, byte by byte, whatever the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from edge.commands.recipes import GLM4_9B, weight_bytes
from edge.export import pipeline
from edge.export.architectures.registry import describe
from edge.export.assignment import Assignment, Assignments, assign
from edge.export.checkpoint.checkpoint import open_checkpoint
from edge.export.compress.precision import Precision
from edge.export.compress.recipes import DEFAULT, PLAIN, find_recipe, read_table, recipes
from edge.export.forecast import dry_run as forecast
from edge.export.forecast.dry_run import DryRun, dry_run
from edge.export.pipeline import export
from edge.export.plan import make_plan
from edge.export.settings import ExportSettings, Format
from edge.export.weights.names import EMBEDDING, HEAD, canonical_shapes, stages_of
from edge.runtime.bundle import open_bundle
from tests import tiny

TWO = ("odd-groups", "full-tied")  # widths without groups of 64 and biases; one matrix for embedding and head
KINDS = {"f32": (32, False), "f16": (16, False), "u8": (8, False), "i8": (8, True), "u4": (4, False), "i4": (4, True)}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for name in TWO:
        found[name] = tmp_path_factory.mktemp(name) / "checkpoint"
        tiny.make(next(t for t in tiny.TINIES if t.name == name), found[name])
    return found


@pytest.fixture
def few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """What weights get does not depend on how many tokens they are fitted to."""
    monkeypatch.setattr(pipeline, "WINDOWS", 2)


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "expected_seconds", lambda _plan: (1.0, 0.0))


def stored(bundle: Path) -> dict[str, dict[str, tuple[str, list[int], int]]]:
    """Weight -> its constants in the graph: "" for its integers, "/scale" ...; element type, shape, bytes of each."""
    found: dict[str, dict[str, tuple[str, list[int], int]]] = {}
    layers = ElementTree.parse(bundle / "openvino_model.xml").getroot().find("layers")
    assert layers is not None
    for layer in layers:
        name, _, part = layer.get("name", "").partition("/")
        data = layer.find("data")
        if layer.get("type") == "Const" and data is not None and name.endswith((".weight", ".bias")):
            shape = [int(size) for size in data.get("shape", "").split(",")]
            found.setdefault(name, {})[part] = (data.get("element_type", ""), shape, int(data.get("size", "")))
    return found


def precision_of(parts: Mapping[str, tuple[str, list[int], int]], shape: tuple[int, ...]) -> Precision:
    """As the constants of a weight tell it."""
    (bits, signed), of_graph = KINDS[parts[""][0]], parts[""][1]
    if bits >= 16:
        return Precision(bits)
    assert signed == ("zero_point" not in parts)
    return Precision(bits, signed, of_graph[2] if len(of_graph) == 3 and of_graph[2] < shape[1] else 0)


@pytest.mark.parametrize("name", [TWO[0], *(pytest.param(name, marks=pytest.mark.slow) for name in TWO[1:])])
@pytest.mark.parametrize(  # groups of 64 as of 128, with everything else
    "recipe", [pytest.param(name, marks=pytest.mark.slow if "-g64-" in name else ()) for name in recipes()]
)
@pytest.mark.usefixtures("few_tokens", "untimed")
def test_what_is_told_before_is_what_is_stored(
    name: str, recipe: str, checkpoints: Mapping[str, Path], text: Path, tmp_path: Path
) -> None:
    """By the dry run, by the plan, in the manifest, and in the file that the graph points into."""
    settings = ExportSettings(recipe, format="openvino", calibration=text if find_recipe(recipe).calibrated else None)
    told = dry_run(settings, checkpoints[name], tmp_path / "out").assignments
    manifest = pipeline.export_with(settings, checkpoints[name], tmp_path / "out")
    assert dict(told) == dict(assign(find_recipe(recipe), manifest.spec))
    assert {name: assigned.record() for name, assigned in told.items()} == dict(manifest.tensors)
    assert list(told) == list(canonical_shapes(manifest.spec))
    spec = describe(open_checkpoint(checkpoints[name]))[0]
    assert told.nbytes == manifest.weight_bytes == weight_bytes(find_recipe(recipe), spec)
    assert told.bits_per_weight == manifest.bits_per_weight
    assert told.parameters == manifest.spec.num_parameters
    found = stored(tmp_path / "out")
    assert found.keys() == told.keys()
    for weight, assigned in told.items():
        parts = found[weight]
        wanted = assigned.precision
        if wanted.group_size == assigned.shape[-1]:  # one group is a whole row
            wanted = Precision(wanted.bits, wanted.symmetric)
        assert precision_of(parts, assigned.shape) == wanted, weight
        assert sum(size for _, _, size in parts.values()) == assigned.nbytes, weight
        assert (parts["lora_a"][1][0] if "lora_a" in parts else 0) == assigned.rank, weight
    assert told.nbytes <= open_bundle(tmp_path / "out").manifest.files["openvino_model.bin"].size


@pytest.mark.parametrize(
    ("recipe", "format"),
    [("int4-sym-g128-rot-gptq", "onnx"), ("int4-sym-g128-rot-gptq", "both"), ("two-bits", "onnx")],
)
@pytest.mark.usefixtures("few_tokens", "untimed")
def test_other_formats_hold_the_same(
    recipe: str,
    format: Format,
    checkpoints: Mapping[str, Path],
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Unsigned or twice, signed integers take what was told."""
    table = {"description": "2 bits", "linear": "int2-sym-g64", "method": "gptq", "rotate": True}
    monkeypatch.setitem(recipes(), "two-bits", read_table("two-bits", table))
    settings = ExportSettings(recipe, format=format, calibration=text)
    told = dry_run(settings, checkpoints["full-tied"], tmp_path / "out")
    manifest = pipeline.export_with(settings, checkpoints["full-tied"], tmp_path / "out")
    assert {name: assigned.record() for name, assigned in told.assignments.items()} == dict(manifest.tensors)
    assert told.warnings == manifest.warnings[: len(told.warnings)]
    twice = f"{told.assignments.signed_bytes:,} bytes of weights are in"
    assert any(twice in warning for warning in manifest.warnings) == (format == "both")
    whole = sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert whole <= told.bundle_bytes <= told.peak_bytes


@pytest.mark.usefixtures("few_tokens", "untimed")
def test_a_budget_ends_between_the_bounds(checkpoints: Mapping[str, Path], text: Path, tmp_path: Path) -> None:
    settings = ExportSettings(max_kld=0.5, calibration=text, format="openvino")
    told: DryRun = dry_run(settings, checkpoints["full-tied"], tmp_path / "out")
    manifest = pipeline.export_with(settings, checkpoints["full-tied"], tmp_path / "out")
    assert told.least_bytes <= manifest.weight_bytes <= told.most_bytes
    assert told.least_bytes < told.most_bytes
    for name, tensor in manifest.tensors.items():
        if len(tensor.shape) == 2:
            assert tensor.precision in {str(option.precision) for option in told.options[name]}
        else:
            assert tensor == told.assignments[name].record()
    found = stored(tmp_path / "out")
    for name, tensor in manifest.tensors.items():
        assert sum(size for _, _, size in found[name].values()) == tensor.nbytes


def test_stages_share_out_all_weights(checkpoints: Mapping[str, Path]) -> None:
    for name, tied in (("odd-groups", False), ("full-tied", True)):
        plan = make_plan(checkpoints[name], ExportSettings("int8-asym"))
        assignments, stages = plan.assignments, stages_of(plan.spec)
        assert [stage.name for stage in stages] == list(dict.fromkeys(found.stage for found in assignments.values()))
        parts = [assignments.of_stage(stage) for stage in stages]
        assert [weight for part in parts for weight in part] == list(assignments)
        assert sum(part.nbytes for part in parts) == assignments.nbytes
        assert stages[-1].needed(plan.spec) == ["norm.weight", EMBEDDING if tied else HEAD]
        assert stages[2].needed(plan.spec) == list(assignments.of_stage(stages[2]))


@pytest.mark.parametrize(
    ("recipe", "scaled"),
    [("int4-asym-g128", "off"), ("int4-asym-g64-awq-data-free", "weights"), ("int4-asym-g64-awq-gptq", "inputs")],
)
def test_only_matrices_of_blocks_in_4_bits_are_scaled(
    recipe: str, scaled: str, checkpoints: Mapping[str, Path]
) -> None:
    assignments = make_plan(checkpoints["odd-groups"], ExportSettings(recipe)).assignments
    for found in assignments.values():
        four = found.in_block and found.precision.bits == 4
        assert found.scaled == (scaled if four else "off"), found.name
    assert any(found.precision.bits == 4 for found in assignments.values())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("output_norms", [False, True])
def test_the_default_takes_the_bytes_of_rounding_to_nearest(tied: bool, output_norms: bool) -> None:
    """At GLM-4's widths, weight by weight; norms after attention and MLP keep no matrix from being scaled."""
    spec = replace(GLM4_9B, tied_embeddings=tied, output_norms=output_norms)
    plain, default = (assign(find_recipe(name), spec) for name in (PLAIN, DEFAULT))
    assert {name: replace(found, scaled="off") for name, found in default.items()} == dict(plain)
    scaled = {name.split(".", 2)[2] for name, found in default.items() if found.scaled == "weights"}
    assert scaled == {"attn.qkv.weight", "attn.o.weight", "mlp.gate_up.weight", "mlp.down.weight"}
    assert sum(found.scaled == "weights" for found in default.values()) == 4 * spec.num_layers


def test_the_smallest_group_counts_only_where_blocks_have_some() -> None:
    def one(name: str, stage: str, group_size: int) -> Assignment:
        return Assignment(name, stage, (4, 128), Precision(4, group_size=group_size), 0, "off", 1, "")

    embedding, block = one(EMBEDDING, "embedding", 32), one("layers.0.attn.o.weight", "block 0", 64)
    assert Assignments([embedding, block]).group_size == 32
    assert Assignments([embedding, one("layers.0.attn.o.weight", "block 0", 0)]).group_size == 0
    assert Assignments([block]).group_size == 64


def test_a_plan_is_the_only_one_that_asks_a_recipe() -> None:
    """Every other module reads the table."""
    folder = Path(pipeline.__file__).parent.resolve()
    asking = set()
    for path in [
        *folder.rglob("*.py"),
        *folder.parent.glob("edge/commands/*.py"),
        *folder.parent.glob("profiles/*.py"),
    ]:
        source = path.read_text(encoding="utf-8")
        if any(f".{method}(" in source for method in ("precision_of", "rank_of", "bytes_of", "scales")):
            asking.add(path.relative_to(folder.parent).as_posix())
    assert asking == {"export/assignment.py", "export/compress/recipes.py"}


def test_what_is_exported_by_name_is_assigned_by_name(checkpoints: Mapping[str, Path], tmp_path: Path) -> None:
    """Precisions of the vocabulary that the user wants are in the table, with their reason."""
    manifest = export(checkpoints["odd-groups"], tmp_path / "out", "int8-asym", embedding="int4-asym-g32", head="fp16")
    settings = ExportSettings("int8-asym", embedding="int4-asym-g32", head="fp16")
    assignments = make_plan(checkpoints["odd-groups"], settings).assignments
    assert (str(assignments[EMBEDDING].precision), str(assignments[HEAD].precision)) == ("int4-asym-g32", "fp16")
    assert assignments[HEAD].why == "as chosen for embedding and head"
    assert {name: found.record() for name, found in assignments.items()} == dict(manifest.tensors)
