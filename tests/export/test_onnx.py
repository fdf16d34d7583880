"""The ONNX half of a bundle: valid files over the same bytes, for onnxruntime and, with float weights, for anyone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

from edge.export.compress.recipes import read_table, recipes
from edge.export.graph.onnx import fused, models
from edge.export.graph.onnx.files import kernel_choices
from edge.export.graph.onnx.writer import Borrowed, GraphWriter
from edge.export.graph.runners import OnnxRunner
from edge.export.pipeline import export
from edge.export.plan import make_plan
from edge.export.proof import Verifier
from edge.export.settings import Device, ExportSettings, Format
from edge.export.tensors import PackedTensor, Weight, as_unsigned, pack, rows_of
from edge.export.weights.names import canonical_shapes
from edge.export.weights.source import Weights
from edge.runtime import bundle as bundles
from edge.runtime.bundle import OnnxKernels, open_bundle
from edge.runtime.errors import RecipeError, VerificationError
from edge.runtime.rotary import cos_and_sin
from edge.runtime.spec import ModelSpec
from edge.runtime.verify import verify
from tests.export.packed import packed
from tests.oracle import dequantize
from tests.tiny import TINIES, Tiny, make, reference_logits

IDS = np.random.default_rng(3).integers(0, 256, 40)
TIMES_FLOAT32 = 8  # as in test_reference.py
READ_BY_ONNXRUNTIME = 13  # the newest ir_version of onnxruntime 1.31


def onnx_files(bundle: Path) -> list[Path]:
    return sorted(bundle.glob("*.onnx"))


@pytest.mark.parametrize("recipe", ["fp32", "fp16", "int8-asym", "int8-sym", "int4-asym-g64", "int4-sym-channel"])
@pytest.mark.parametrize("format", ["onnx", "both"])
def test_files_are_valid_and_point_into_the_weights(
    tiny_checkpoint: Path, tmp_path: Path, recipe: str, format: Format
) -> None:
    manifest = export(tiny_checkpoint, tmp_path / "bundle", recipe, format=format)
    files = onnx_files(tmp_path / "bundle")
    assert len(files) == (4 if recipe.startswith("fp") else 5)
    weights = bundles.MODEL_BIN if format == "both" and "sym" not in recipe.split("-") else bundles.ONNX_DATA
    for path in files:
        assert path.name in manifest.files
        onnx.checker.check_model(path)
        model = onnx.load(path, load_external_data=False)
        assert model.ir_version <= READ_BY_ONNXRUNTIME
        places = [{e.key: e.value for e in t.external_data} for t in model.graph.initializer if t.external_data]
        assert weights in {place["location"] for place in places}
        for place in places:
            size = manifest.files[place["location"]].size
            assert int(place["offset"]) + int(place["length"]) <= size


def test_both_takes_the_openvino_weights_as_they_are(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Unsigned integers and even rows of zero points are used where they lie; what is added is graphs."""
    alone, both = (
        export(tiny_checkpoint, tmp_path / format, "int8-asym", format=format) for format in ("openvino", "both")
    )
    assert alone.files[bundles.MODEL_BIN] == both.files[bundles.MODEL_BIN]
    parts = {kernels.part(0) for kernels in kernel_choices(both.spec, packed=True)}
    assert set(both.files) - set(alone.files) == {*parts, bundles.MODEL_ONNX, bundles.GENAI_CONFIG}


def test_signed_integers_are_stored_again_where_openvino_has_them(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """ONNX has no signed operators: `both` keeps a second copy, `onnx` only that one; the manifest says so."""
    openvino, both, alone = (
        export(tiny_checkpoint, tmp_path / format, "int4-sym-g128", format=format)
        for format in ("openvino", "both", "onnx")
    )
    integers = sum(tensor.nbytes for tensor in both.tensors.values() if tensor.precision.startswith("int"))
    assert both.files[bundles.MODEL_BIN] == openvino.files[bundles.MODEL_BIN]
    assert integers <= both.files[bundles.ONNX_DATA].size < 1.1 * integers
    assert any("signed integers" in warning for warning in both.warnings)
    assert bundles.MODEL_BIN not in alone.files
    assert alone.weight_bytes == openvino.weight_bytes
    assert not alone.warnings


def test_onnx_alone_holds_nothing_of_openvino(tiny_checkpoint: Path, tmp_path: Path) -> None:
    manifest = export(tiny_checkpoint, tmp_path / "bundle", "int4-asym-g64", format="onnx")
    assert not [name for name in manifest.files if "openvino" in name or name == bundles.SERVER_GRAPH]
    assert manifest.files[bundles.ONNX_DATA].size < 1.01 * manifest.weight_bytes + 100_000


def test_two_exports_have_the_same_bytes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    one, two = (export(tiny_checkpoint, tmp_path / name, "int4-asym-g64", format="both") for name in ("one", "two"))
    assert one.files == two.files


@pytest.mark.parametrize("tiny", TINIES, ids=lambda tiny: tiny.name)
def test_plain_graph_equals_transformers_in_the_reference_evaluator(tiny: Tiny, tmp_path: Path) -> None:
    """onnx's own evaluator knows standard operators alone. Two steps, the second on the first one's cache."""
    model = make(tiny, tmp_path / "checkpoint")
    spec = export(tmp_path / "checkpoint", tmp_path / "bundle", "fp32", format="onnx").spec
    plain = ReferenceEvaluator(str(tmp_path / "bundle" / bundles.ONNX_PLAIN))
    assert {node.domain for node in plain.proto_.graph.node} == {""}
    expected, float32_error = reference_logits(model, IDS.tolist())
    cache = {name: np.zeros((1, spec.num_kv_heads, 0, spec.head_dim), np.float32) for name in past_names(spec)}
    rows, past = [], 0
    for size in (33, 7):
        ids = IDS[None, past : past + size]
        feeds = {
            "input_ids": ids,
            "attention_mask": np.ones((1, past + size), np.int64),
            "position_ids": np.arange(past, past + size)[None],
        }
        logits, *present = plain.run(None, feeds | cache)
        rows.append(logits[0])
        cache = dict(zip(cache, present, strict=True))
        past += size
    assert np.abs(np.concatenate(rows) - expected).max() <= TIMES_FLOAT32 * float32_error


def past_names(spec: ModelSpec) -> list[str]:
    return [f"past_key_values.{layer}.{part}" for layer in range(spec.num_layers) for part in ("key", "value")]


@pytest.mark.parametrize("name", [OnnxKernels().part(0), bundles.ONNX_PLAIN])
@pytest.mark.parametrize("tiny", [TINIES[0], TINIES[1]], ids=lambda tiny: tiny.name)
def test_a_batch_equals_its_sequences(tiny: Tiny, name: str, tmp_path: Path) -> None:
    """Two prompts of different lengths, padded on the right, and a token more for each.

    To float32 rounding: a batch is other shapes of products. The plain graph is told positions.
    """
    make(tiny, tmp_path / "checkpoint")
    spec = export(tmp_path / "checkpoint", tmp_path / "bundle", "fp32", format="onnx").spec
    session = onnxruntime.InferenceSession(tmp_path / "bundle" / name)
    plain, lengths, room = name == bundles.ONNX_PLAIN, (9, 5), 16

    def run(
        ids: np.ndarray, mask: np.ndarray, cache: dict[str, np.ndarray]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        new = ids.shape[1]
        feeds = {"input_ids": ids, "attention_mask": mask} | cache
        if plain:
            feeds["position_ids"] = np.maximum(mask.cumsum(1)[:, -new:] - 1, 0)
        else:
            feeds["wanted_rows"] = np.arange(new)
        if "cos" in {value.name for value in session.get_inputs()}:
            feeds |= dict(zip(("cos", "sin"), cos_and_sin(np.arange(room), spec), strict=True))
        logits, *present = session.run(None, feeds)
        return logits, dict(zip(past_names(spec), present, strict=True))

    def empty(batch: int) -> dict[str, np.ndarray]:
        shape = (batch, spec.num_kv_heads, 0 if plain else room, spec.head_dim)
        return {past: np.zeros(shape, np.float32) for past in past_names(spec)}

    alone = []
    for i, length in enumerate(lengths):
        ids = IDS[None, 10 * i : 10 * i + length + 1]
        first, cache = run(ids[:, :length], np.ones((1, length), np.int64), empty(1))
        second, _ = run(ids[:, length:], np.ones((1, length + 1), np.int64), cache)
        alone.append((first[0], second[0]))

    longest = max(lengths)
    ids, mask = np.zeros((2, longest), np.int64), np.zeros((2, longest), np.int64)
    for i, length in enumerate(lengths):
        ids[i, :length], mask[i, :length] = IDS[10 * i : 10 * i + length], 1
    first, cache = run(ids, mask, empty(2))
    next_ids = np.array([[IDS[10 * i + length]] for i, length in enumerate(lengths)])
    if plain:  # its cache keeps the padding where it is
        next_mask = np.concatenate([mask, np.ones((2, 1), np.int64)], axis=1)
    else:  # its buffers go on behind each sequence's own last token
        next_mask = np.array([[1] * (length + 1) + [0] * (longest - length) for length in lengths])
    second, _ = run(next_ids, next_mask, cache)
    for i, length in enumerate(lengths):
        np.testing.assert_allclose(first[i, :length], alone[i][0], atol=1e-4)
        np.testing.assert_allclose(second[i], alone[i][1], atol=1e-4)


@pytest.mark.parametrize(("layers", "part_bytes", "expected"), [(4, 1e9, 1), (7, 30_000, 6), (7, 60_000, 5), (2, 1, 2)])
def test_parts_hold_every_layer_once(
    layers: int, part_bytes: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "PART_BYTES", part_bytes)
    spec = ModelSpec("glm", layers, 32, 64, 2, 1, 16, 16, 1e4, 1e-5, 256, 64, False, False, False)
    shapes = canonical_shapes(spec)
    parts = models.decoder_parts({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, spec)
    assert [layer for part in parts for layer in part] == list(range(layers))
    assert len(parts) == expected
    assert max(len(part) for part in parts) - min(len(part) for part in parts[:-1] or parts) <= 1


def test_a_wrong_graph_is_noticed_at_export(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runner's graph is held against plain numpy: an emitter that swaps gate and up does not get through."""
    plan = make_plan(tiny_checkpoint, ExportSettings("fp32", format="onnx"))
    assert isinstance(plan.weights, Weights)
    weights = plan.weights.block(0)
    verifier = Verifier(IDS.tolist(), plan.spec, [OnnxRunner()])
    verifier.hidden = np.random.default_rng(0).normal(size=verifier.hidden.shape).astype(np.float32)
    gate_and_up = fused.OnnxBuilder._gate_and_up

    def swapped(self: fused.OnnxBuilder, x: str) -> tuple[str, str]:
        gate, up = gate_and_up(self, x)
        return up, gate

    monkeypatch.setattr(fused.OnnxBuilder, "_gate_and_up", swapped)
    with pytest.raises(VerificationError, match="ONNX Runtime graph of block 0 is off"):
        verifier.block(0, weights, weights)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zero_points", [True, False])
@pytest.mark.parametrize("group_size", [16, 32, 48, 96])
@pytest.mark.parametrize("n", [7, 8])
def test_packed_matrices_equal_plain_numpy(n: int, group_size: int, zero_points: bool, bits: int) -> None:
    """Rows, products and look-ups: odd rows of zero points, groups cut into blocks, implied zero points."""
    rng, k = np.random.default_rng(n + group_size), 96
    groups = k // group_size
    weight = PackedTensor(
        (n, k),
        bits,
        signed=not zero_points,
        group_size=group_size,
        data=rng.integers(0, 256, n * k * bits // 8, np.uint8),
        scale=rng.uniform(0.01, 0.1, (n, groups)).astype(np.float16),
        zero_point=pack(rng.integers(0, 1 << bits, n * groups), bits) if zero_points else None,
    )
    matrix = dequantize(weight)
    np.testing.assert_array_equal(dequantize(as_unsigned(weight)), matrix)
    np.testing.assert_array_equal(rows_of(as_unsigned(weight), 0, n), matrix)
    spec = ModelSpec("glm", 1, k, k, 6, 6, 16, 16, 1e4, 1e-5, n, 64, False, False, False)
    ids = np.arange(n)[None, ::-1].copy()
    looked_up = OnnxRunner().embedding({"embed.weight": weight}, ids, spec)
    np.testing.assert_allclose(looked_up[0], matrix[::-1], rtol=1e-6)
    x = rng.normal(size=(1, 3, k)).astype(np.float32)
    ones: dict[str, Weight] = {"norm.weight": np.ones(k, np.float32), "lm_head.weight": weight}
    product = OnnxRunner().head(ones, x, spec)
    normed = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(product, normed @ matrix.T, atol=1e-4)


TWO_BITS = "two-bits"


@pytest.fixture
def two_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe of 2 bits: none is shipped, budgets alone choose them."""
    table = {"description": "2 bits", "linear": "int2-sym-g64", "method": "gptq", "rotate": True}
    monkeypatch.setitem(recipes(), TWO_BITS, read_table(TWO_BITS, table))


@pytest.mark.usefixtures("two_bits")
@pytest.mark.parametrize("recipe", ["int8-asym", "int4-asym-g64", TWO_BITS])
def test_matrices_of_8_and_2_bits_are_never_unpacked(
    recipe: str, tiny_checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    """onnxruntime's kernel for them rounds activations; without accuracy_level 4 it makes float matrices of them."""
    calibration = text if recipe == TWO_BITS else None
    export(tiny_checkpoint, tmp_path / "bundle", recipe, format="onnx", calibration=calibration)
    for path in (tmp_path / "bundle").glob("*.onnx"):
        nodes = onnx.load(path, load_external_data=False).graph.node
        products = [_attributes(node) for node in nodes if node.op_type == "MatMulNBits"]
        others = [product for product in products if product["bits"] != 4]
        assert {product["bits"] for product in others} == ({2, 8} if recipe == TWO_BITS else {8}), path
        assert {product["accuracy_level"] for product in others} == {fused.INT8_ACTIVATIONS}


def _attributes(node: onnx.NodeProto) -> dict[str, object]:
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


@pytest.mark.usefixtures("two_bits")
def test_two_bits_give_a_bundle_for_onnx_alone(tiny_checkpoint: Path, text: Path, tmp_path: Path) -> None:
    """Whose warning says why, and whose engine computes what was proved at export."""
    manifest = export(tiny_checkpoint, tmp_path / "bundle", TWO_BITS, format="both", calibration=text)
    assert manifest.fewest_bits == 2
    assert any("2 bits, so the bundle has graphs for ONNX Runtime alone" in warning for warning in manifest.warnings)
    assert bundles.MODEL_BIN not in manifest.files
    assert [report.engine for report in verify(tmp_path / "bundle")] == ["onnx"]


@pytest.mark.usefixtures("two_bits")
@pytest.mark.parametrize(("format", "device"), [("openvino", None), ("both", "NPU"), ("onnx", "GPU")])
def test_two_bits_are_refused_where_nothing_multiplies_them(
    format: Format, device: Device | None, tiny_checkpoint: Path, text: Path
) -> None:
    settings = ExportSettings(TWO_BITS, format=format, device=device, calibration=text)
    with pytest.raises(RecipeError, match="OpenVINO cannot multiply matrices of 2 bits; use --format onnx without"):
        make_plan(tiny_checkpoint, settings)


def test_two_bits_have_no_blocks_that_no_kernel_takes() -> None:
    """A group of 256 is two blocks of 128 with one scale: onnxruntime would unpack the matrix for every token."""
    weight = packed(2, signed=False, group_size=256)
    assert weight.shape == (2, 256)
    writer = GraphWriter(Borrowed())
    spec = ModelSpec("glm", 1, 256, 256, 4, 4, 64, 64, 1e4, 1e-5, 2, 64, False, False, False)
    for kernels in (OnnxKernels(), OnnxKernels(int8_activations=True)):
        fused.OnnxBuilder(writer, {"mlp.weight": weight}, spec, kernels).linear("x", "mlp")
    products = [_attributes(node) for node in writer.model("g").graph.node if node.op_type == "MatMulNBits"]
    assert [product["block_size"] for product in products] == [128, 128]


def test_a_row_of_zeros_has_a_product_of_zeros() -> None:
    """Nothing to divide by in any block."""
    rng, k = np.random.default_rng(0), 64
    weight = PackedTensor(
        (8, k), 8, signed=False, group_size=k, data=rng.integers(0, 256, 8 * k, np.uint8),
        scale=np.ones((8, 1), np.float16), zero_point=rng.integers(0, 256, 8, np.uint8),
    )  # fmt: skip
    spec = ModelSpec("glm", 1, k, k, 4, 4, 16, 16, 1e4, 1e-5, 8, 64, False, False, False)
    weights: dict[str, Weight] = {"norm.weight": np.ones(k, np.float32), "lm_head.weight": weight}
    np.testing.assert_array_equal(OnnxRunner().head(weights, np.zeros((1, 2, k), np.float32), spec), 0)


def test_widths_that_kernels_do_not_know(tmp_path: Path) -> None:
    """Before anything is compressed."""
    make(Tiny("narrow", intermediate_size=136), tmp_path / "checkpoint")
    with pytest.raises(RecipeError, match=r"layers\.0\.mlp\.down\.weight has groups of 136 weights"):
        export(tmp_path / "checkpoint", tmp_path / "bundle", "int8-asym", format="both")
    export(tmp_path / "checkpoint", tmp_path / "bundle", "int8-asym", format="openvino")


def test_small_constants_are_in_the_graph_and_large_ones_are_not() -> None:
    writer = GraphWriter(memory := Borrowed())
    writer.constant("small", np.zeros(4, np.float32))
    writer.constant("large", np.zeros(1000, np.float32))
    assert list(memory.arrays) == ["large"]


def test_open_bundle_keeps_the_formats_apart(tiny_checkpoint: Path, tmp_path: Path) -> None:
    export(tiny_checkpoint, tmp_path / "bundle", "int8-asym", format="openvino")
    assert not onnx_files(tmp_path / "bundle")
    assert open_bundle(tmp_path / "bundle").file(bundles.ONNX_DATA) is None
