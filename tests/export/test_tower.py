"""The picture tower's graphs compute what its definition says, and what no likely misreading of it says."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from transformers.models.glm4v.configuration_glm4v import Glm4vVisionConfig
from transformers.models.glm4v.modeling_glm4v import Glm4vVisionModel

from edge.export.graph import tower_numpy, tower_runners
from edge.export.graph.onnx import tower as onnx_tower
from edge.export.graph.onnx.writer import Borrowed
from edge.export.graph.openvino import tower as openvino_tower
from edge.export.graph.tower_runners import NumpyTowerRunner, OnnxTowerRunner, OpenVINOTowerRunner, TowerRunner
from edge.export.tensors import Float32Array, LowRank, PackedTensor, Weight, pack
from edge.runtime.engines.openvino_core import make_core
from edge.runtime.errors import RecipeError
from edge.runtime.graph_names import HIDDEN
from edge.runtime.vision.picture import Picture
from edge.runtime.vision.preprocess import tower_inputs
from edge.runtime.vision.spec import VisionSpec
from tests import vision_reference as reference
from tests import vision_tensors as towers
from tests.oracle import dequantize

# Of the largest value. Torch's own float32 is within 1.2e-6 of its float64 on these towers.
TOLERANCE = 3e-6
RUNNERS: tuple[Callable[[], TowerRunner], ...] = (NumpyTowerRunner, OpenVINOTowerRunner, OnnxTowerRunner)
SILU = "QuickGelu"  # with an alpha of 1
GRIDS = ((6, 6), (2, 2), (4, 10), (10, 4))  # rows and columns of patches; "eva" has the first alone


@dataclass(frozen=True)
class Case:
    """A tower, a picture, and the rows that its definition gives."""

    spec: VisionSpec
    tensors: dict[str, torch.Tensor]
    pixels: torch.Tensor

    @cached_property
    def weights(self) -> dict[str, Weight]:
        return towers.canonical(self.tensors, self.spec)

    @cached_property
    def inputs(self) -> dict[str, npt.NDArray[Any]]:
        return reference.inputs_of(self.pixels, self.spec)

    @cached_property
    def expected(self) -> npt.NDArray[np.float64]:
        return self.rows("")

    def rows(self, mistake: str) -> npt.NDArray[np.float64]:
        rows_of = reference.eva_rows if self.spec.kind == "eva" else reference.glm4v_rows
        found: npt.NDArray[np.float64] = rows_of(self.tensors, self.pixels, self.spec, mistake).numpy()
        return found


def eva(before_norms: float = towers.SPREAD, **other: Any) -> Case:  # Any: fields of a VisionSpec
    spec = towers.eva_spec(**other)
    return Case(spec, towers.eva_tensors(spec, before_norms), reference.pixels_of(spec.side, spec.side, spec))


def glm4v(rows: int, columns: int, before_norms: float = towers.SPREAD) -> Case:
    spec = towers.glm4v_spec()
    return Case(spec, towers.glm4v_tensors(spec, before_norms), reference.pixels_of(rows, columns, spec))


CASES = {
    "eva": eva(),
    "eva, small before norms": eva(towers.SMALL),
    "eva, one row": eva(image_size=8),
    "eva, published patches": eva(patch_size=14, image_size=56),  # of 588 values, which blocks of no kernel divide
    "glm4v, small before norms": glm4v(4, 6, towers.SMALL),
    **{f"glm4v, {rows} x {columns}": glm4v(rows, columns) for rows, columns in GRIDS},
}


def whole(runner: TowerRunner, case: Case, weights: Mapping[str, Weight] | None = None) -> Float32Array:
    every = range(case.spec.num_layers)
    return runner.segment(weights or case.weights, case.inputs, case.spec, every, first=True, last=True)


def error(found: Float32Array, expected: npt.NDArray[np.floating[Any]]) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("make", RUNNERS, ids=lambda make: make.name)
@pytest.mark.parametrize("name", CASES)
def test_rows_are_those_of_the_definition(name: str, make: Callable[[], TowerRunner]) -> None:
    found = whole(make(), CASES[name])
    assert found.dtype == np.float32
    assert error(found, CASES[name].expected) <= TOLERANCE


MISTAKES = [
    (case, mistake)
    for case, all in (
        ("eva, small before norms", reference.EVA_MISTAKES),
        ("glm4v, small before norms", reference.GLM4V_MISTAKES),
    )
    for mistake in all
]


@pytest.mark.parametrize(("name", "mistake"), MISTAKES)
def test_a_mistake_would_be_seen(name: str, mistake: str) -> None:
    """By 50 times the tolerance at least, so that what agrees with the definition does not have it."""
    case = CASES[name]
    assert error(case.rows(mistake).astype(np.float32), case.expected) >= 50 * TOLERANCE


def test_numpy_gives_the_same_rows_in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of patches come in pieces, and so do the rows of a head's scores; the last piece of each is short."""
    monkeypatch.setattr(tower_numpy, "PIECE_ROWS", 5)
    monkeypatch.setattr(tower_numpy, "CHUNK_ELEMENTS", 7 * 36)
    for name in ("eva", "glm4v, 4 x 10"):
        assert error(whole(NumpyTowerRunner(), CASES[name]), CASES[name].expected) <= TOLERANCE


def test_gelu_of_layers_is_that_of_erf() -> None:
    """The one by tanh differs by 4e-6 of the rows only, so operators are looked at."""
    case, memory = CASES["eva"], Borrowed()
    every = range(case.spec.num_layers)
    graph = onnx_tower.segment_model(case.weights, case.spec, every, memory, first=True, last=True).graph
    kinds = {(node.domain, node.op_type) for node in graph.node if "elu" in node.op_type and node.op_type != SILU}
    assert kinds == {("com.microsoft", "Gelu")}
    model = openvino_tower.segment_model(case.weights, case.spec, every, first=True, last=True)
    nodes = [node for node in model.get_ordered_ops() if node.get_type_name() == "Gelu"]
    assert {node.get_attributes()["approximation_mode"] for node in nodes} == {"ERF"}
    x = np.linspace(-6, 6, 10_001, dtype=np.float32)
    exact = np.array([math.erf(value) for value in x.tolist()])
    assert np.abs(tower_numpy.erf(x) - exact).max() <= 2e-7


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_transformers_agrees_with_the_definition(dtype: torch.dtype, attention: str) -> None:
    """Its rotation and places are in float32 whatever the model is in, so the tolerance is that of float32."""
    spec = towers.glm4v_spec()
    tensors = towers.glm4v_tensors(spec)
    config = Glm4vVisionConfig(
        depth=spec.num_layers,
        hidden_size=spec.hidden_size,
        num_heads=spec.num_heads,
        image_size=spec.image_size,
        patch_size=spec.patch_size,
        temporal_patch_size=spec.frames,
        out_hidden_size=spec.out_size,
        intermediate_size=spec.merger_size,
        rms_norm_eps=spec.norm_eps,
        attn_implementation=attention,
    )
    model = Glm4vVisionModel(config).to(dtype).eval()
    model.load_state_dict({name.removeprefix(towers.GLM4V): tensor for name, tensor in tensors.items()})
    for rows, columns in GRIDS:
        case = CASES[f"glm4v, {rows} x {columns}"]
        patches = torch.from_numpy(case.inputs["patches"]).to(dtype)
        with torch.no_grad():
            theirs = model(patches, torch.tensor([[1, rows, columns]]))
        assert error(theirs.float().numpy(), case.expected) <= TOLERANCE


@pytest.mark.parametrize(
    ("kind", "rows", "columns"), [("eva", 6, 6), ("glm4v", 4, 10), ("glm4v", 10, 4), ("glm4v", 2, 2)]
)
def test_inputs_made_from_a_picture_are_those_of_the_definition(kind: str, rows: int, columns: int) -> None:
    """Of a picture that needs no resizing. Pixels within rounding of float32, shares and turns as well."""
    spec = towers.eva_spec() if kind == "eva" else towers.glm4v_spec()
    shape = (rows * spec.patch_size, columns * spec.patch_size, 3)
    colours = np.random.default_rng(8).integers(0, 256, shape, np.uint8)
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (spec.mean, spec.std))
    pixels = ((torch.from_numpy(colours).double() / 255 - mean) / std).permute(2, 0, 1)
    expected, found = reference.inputs_of(pixels, spec), tower_inputs(Picture.of(colours), spec)
    assert set(found) == set(expected)
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("make", RUNNERS, ids=lambda make: make.name)
@pytest.mark.parametrize("name", ["eva", "glm4v, 4 x 10"])
def test_segments_give_the_rows_of_the_whole(name: str, make: Callable[[], TowerRunner]) -> None:
    """Bit for bit: what passes between them is float32, as it is inside the whole."""
    case, runner = CASES[name], make()
    weights, inputs, spec = case.weights, case.inputs, case.spec
    expected = whole(runner, case)
    hidden = runner.segment(weights, inputs, spec, range(2), first=True, last=False)
    rest = runner.segment(weights, {**inputs, HIDDEN: hidden}, spec, range(2, 3), first=False, last=True)
    np.testing.assert_array_equal(rest, expected)
    hidden = tower_runners.patches(runner, weights, inputs, spec)
    for index in range(spec.num_layers):
        hidden = tower_runners.layer(runner, weights, hidden, index, inputs, spec)
    np.testing.assert_array_equal(tower_runners.adapter(runner, weights, hidden, spec), expected)


def packed(
    shape: tuple[int, int],
    bits: int,
    groups: int,
    random: np.random.Generator,
    *,
    middle: bool,
    spread: float = towers.SPREAD,
) -> PackedTensor:
    """Random integers and scales; signed and without zero points if `middle`, else with some near the middle."""
    n, k = shape
    zeros = random.integers(7 << bits - 4, 10 << bits - 4, n * groups, np.uint8)
    return PackedTensor(
        shape,
        bits,
        middle,
        k // groups,
        random.integers(0, 256, n * k * bits // 8, np.uint8),
        (random.uniform(0.5, 1.5, (n, groups)) * spread * math.sqrt(12) / (1 << bits)).astype(np.float16),
        None if middle else pack(zeros, bits),
    )


def with_packed(
    weights: Mapping[str, Weight], bits: int, group: int, *, middle: bool, rank: int = 0
) -> dict[str, Weight]:
    """The same tower with random packed matrices; that of patches has 8 bits and a scale a row."""
    random, found = np.random.default_rng(4), dict(weights)
    for name, weight in weights.items():
        if weight.ndim == 2 and name.endswith(".weight") and name != "vision.places.weight":  # type: ignore[union-attr]
            n, k = weight.shape
            if name == "vision.patches.weight":
                found[name] = packed((n, k), 8, 1, random, middle=middle)
                continue
            tensor = packed((n, k), bits, k // group if group else 1, random, middle=middle)
            if rank:
                parts = [packed(shape, 8, 1, random, middle=middle) for shape in ((rank, k), (n, rank))]
                tensor = replace(tensor, low_rank=LowRank(*parts))
            found[name] = tensor
    return found


PACKED = {
    "8 bits": (8, 0, False, 0),
    "8 bits, symmetric": (8, 0, True, 0),
    "8 bits in groups": (8, 16, False, 0),
    "4 bits in groups": (4, 16, False, 0),
    "4 bits, symmetric": (4, 0, True, 0),
    "4 bits and a low rank": (4, 16, False, 16),
}


PAIRS = [
    *(("eva", form) for form in PACKED),
    *(("glm4v, 4 x 10", form) for form in ("8 bits in groups", "4 bits in groups")),
    *(("eva, published patches", form) for form in ("8 bits", "8 bits, symmetric")),
]


@pytest.mark.parametrize("make", RUNNERS, ids=lambda make: make.name)
@pytest.mark.parametrize(("name", "form"), PAIRS)
def test_packed_matrices_are_multiplied_with_floats(name: str, form: str, make: Callable[[], TowerRunner]) -> None:
    """Within rounding of float32: activations of 8 bits would be off by 1e-2."""
    case, (bits, group, middle, rank) = CASES[name], PACKED[form]
    weights = with_packed(case.weights, bits, group, middle=middle, rank=rank)
    floats = {key: dequantize(w) if isinstance(w, PackedTensor) else w for key, w in weights.items()}
    expected = whole(NumpyTowerRunner(), case, floats)
    assert error(whole(make(), case, weights), expected) <= TOLERANCE


def test_patches_of_4_bits_are_refused_in_words() -> None:
    case = CASES["eva"]
    weights = with_packed(case.weights, 4, 16, middle=False)
    matrix = weights["vision.patches.weight"]
    weights["vision.patches.weight"] = packed(matrix.shape, 4, 4, np.random.default_rng(1), middle=False)
    with pytest.raises(RecipeError, match="groups of 12"):
        whole(OnnxTowerRunner(), case, weights)


def test_scores_are_never_written_out() -> None:
    """Attention is one operator, of those that compute it in blocks: 6,401 patches would have scores of 2.6 GB."""
    for case in (CASES["eva"], CASES["glm4v, 6 x 6"]):
        layers = range(case.spec.num_layers)
        graph: onnx.GraphProto = onnx_tower.segment_model(
            case.weights, case.spec, layers, Borrowed(), first=True, last=True
        ).graph
        kinds = [node.op_type for node in graph.node]
        assert kinds.count("MultiHeadAttention") == len(layers)
        assert "Softmax" not in kinds
        model = openvino_tower.segment_model(case.weights, case.spec, layers, first=True, last=True)
        kinds = [node.get_type_name() for node in model.get_ordered_ops()]
        assert kinds.count("ScaledDotProductAttention") == len(layers)
        assert "Softmax" not in kinds


def test_openvino_turns_heads_in_one_operator() -> None:
    """Several, each with a result of its own, took 147 MB more where two layers were given 6,400 patches."""
    case = CASES["glm4v, 2 x 2"]
    model = openvino_tower.segment_model(case.weights, case.spec, range(1), first=False, last=False)
    nodes = make_core().compile_model(model, "CPU").get_runtime_model().get_ordered_ops()
    assert [node.get_rt_info()["layerType"].astype(str) for node in nodes].count("RoPE") == 1


@pytest.mark.slow
@pytest.mark.parametrize("make", RUNNERS[1:], ids=lambda make: make.name)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", ["eva", "glm4v"])
def test_a_layer_of_the_published_width_is_that_of_numpy(kind: str, bits: int, make: Callable[[], TowerRunner]) -> None:
    """Kernels choose their ways by width.

    A sum of K products is off by sqrt(K) roundings of 2**-24, which add up by chance; here, both sums are rounded.
    """
    if kind == "eva":
        spec = towers.eva_spec(num_layers=1, hidden_size=1792, num_heads=16, intermediate_size=15360)
    else:
        spec = towers.glm4v_spec(num_layers=1, hidden_size=1536, num_heads=12, intermediate_size=4096)
    random, h = np.random.default_rng(2), spec.hidden_size
    small = towers.eva_tensors(replace(spec, out_size=16, merger_size=16)) if kind == "eva" else None
    tensors = small or towers.glm4v_tensors(replace(spec, out_size=16, merger_size=16))
    layer = {n: w for n, w in towers.canonical(tensors, spec).items() if ".layers." in n}
    weights = {
        name: packed(weight.shape, bits, 1 if bits == 8 else weight.shape[1] // 128, random, middle=False, spread=0.02)
        if weight.ndim == 2  # type: ignore[union-attr]
        else weight
        for name, weight in layer.items()
    }
    turns = random.uniform(-np.pi, np.pi, (64, spec.head_dim // 2))
    inputs = {"cos": np.cos(turns).astype(np.float32), "sin": np.sin(turns).astype(np.float32)}
    hidden = random.standard_normal((64, h), np.float32)
    expected = tower_runners.layer(NumpyTowerRunner(), weights, hidden, 0, inputs, spec)
    bound = 2 * max(TOLERANCE, 2**-24 * math.sqrt(spec.intermediate_size))
    assert error(tower_runners.layer(make(), weights, hidden, 0, inputs, spec), expected) <= bound
