"""What NNCF packed is what plain numpy says, and what the engine computes."""

from __future__ import annotations

import re

import ml_dtypes
import numpy as np
import openvino as ov
import pytest

from edge.export.compress import nncf as compress_module
from edge.export.compress.nncf import Compressor
from edge.export.compress.precision import Precision
from edge.export.compress.recipes import DEFAULT, find_recipe, read_table, recipes
from edge.export.graph.openvino.models import linear_model
from edge.export.tensors import PackedTensor, rows_of, take_rows, unpack
from edge.runtime.errors import RecipeError
from tests.oracle import dequantize

INTEGERS = [
    Precision(8),
    Precision(8, symmetric=True),
    Precision(4, group_size=32),
    Precision(4, group_size=64),
    Precision(4, symmetric=True, group_size=64),
    Precision(4, symmetric=True),
]


def random_matrix(n: int, k: int, seed: int = 0) -> np.ndarray:
    """Rows of very different scales and means, so that a scale in the wrong place shows."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, k)) * rng.uniform(0.01, 2, (n, 1)) + rng.uniform(-1, 1, (n, 1))).astype(np.float32)


def pack(weight: np.ndarray, precision: Precision) -> PackedTensor:
    return Compressor().compress("lm_head.weight", weight, precision)


@pytest.mark.parametrize("precision", INTEGERS, ids=str)
@pytest.mark.parametrize("shape", [(24, 192), (5, 320), (33, 64)], ids=str)
def test_engine_computes_the_dequantized_matrix(precision: Precision, shape: tuple[int, int]) -> None:
    """x = identity makes the engine's product the matrix itself, transposed."""
    packed = pack(random_matrix(*shape), precision)
    config = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    model = ov.Core().compile_model(linear_model({"w.weight": packed}, "w.weight"), "CPU", config)
    engine = model([np.eye(shape[1], dtype=np.float32)[None]])[0][0].T
    oracle = dequantize(packed)
    # One product each: no sums, so only the rounding of q * scale, which the graph may do in float16.
    np.testing.assert_allclose(engine, oracle, rtol=2**-11, atol=0)


@pytest.mark.parametrize("precision", INTEGERS, ids=str)
@pytest.mark.parametrize("shape", [(24, 192), (5, 320), (33, 64)], ids=str)
def test_rows_equal_the_dequantized_matrix(precision: Precision, shape: tuple[int, int]) -> None:
    """Two ways to read the same bytes: one written for speed, one to be read."""
    packed = pack(random_matrix(*shape), precision)
    oracle = dequantize(packed)
    for start, stop in [(0, shape[0]), (1, 4), (3, 99), (shape[0] - 1, shape[0])]:
        np.testing.assert_array_equal(rows_of(packed, start, stop), oracle[start:stop])


@pytest.mark.parametrize("precision", INTEGERS, ids=str)
def test_weights_in_bfloat16_are_packed_as_in_float32(precision: Precision) -> None:
    """nncf is given the checkpoint's own dtype, without a copy in float32."""
    weight = random_matrix(24, 192).astype(ml_dtypes.bfloat16)
    stored, widened = pack(weight, precision), pack(weight.astype(np.float32), precision)
    np.testing.assert_array_equal(stored.data, widened.data)
    np.testing.assert_array_equal(stored.scale, widened.scale)
    if stored.zero_point is not None:
        np.testing.assert_array_equal(stored.zero_point, widened.zero_point)


@pytest.mark.parametrize("precision", [p for p in INTEGERS if not p.symmetric], ids=str)
def test_asymmetric_integers_are_round_to_nearest(precision: Precision) -> None:
    """An oracle of its own: scale and zero point from each group's range, then nearest integer."""
    weight = random_matrix(16, 192, seed=1)
    packed = pack(weight, precision)
    levels = 2**precision.bits - 1
    groups = weight.reshape(16, packed.groups, -1)
    low, high = np.minimum(groups.min(-1), 0), np.maximum(groups.max(-1), 0)  # zero stays representable
    scale = (high - low) / levels
    zero = np.clip(np.round(-low / scale), 0, levels)
    expected = np.clip(np.round(groups / scale[:, :, None] + zero[:, :, None]), 0, levels)

    np.testing.assert_allclose(packed.scale, scale, rtol=2**-11)
    assert packed.zero_point is not None
    np.testing.assert_array_equal(
        unpack(packed.zero_point, zero.size, precision.bits, signed=False), zero.ravel().astype(int)
    )
    found = unpack(packed.data, weight.size, precision.bits, signed=False).reshape(groups.shape)
    off = found != expected
    # Where the quotient lies on the border of two integers, float32 may fall on either side.
    quotient = groups / scale[:, :, None]
    border = np.abs(quotient - np.floor(quotient) - 0.5) < 1e-3
    assert not (off & ~border).any()
    assert off.mean() < 0.005


@pytest.mark.parametrize("precision", INTEGERS, ids=str)
def test_no_weight_moves_further_than_its_step(precision: Precision) -> None:
    weight = random_matrix(16, 192, seed=2)
    packed = pack(weight, precision)
    step = np.repeat(packed.scale.astype(np.float32), packed.group_size, axis=1).reshape(weight.shape)
    # Half a step of rounding; symmetric ranges end one step early on one side; scales are rounded to float16.
    limit = 1.01 if precision.symmetric else 0.51 + 2**precision.bits * 2**-11
    assert (np.abs(dequantize(packed) - weight) / np.abs(step)).max() <= limit


@pytest.mark.parametrize(
    "precision", [Precision(8), Precision(4, group_size=32), Precision(4, symmetric=True)], ids=str
)
def test_row_chunks_equal_one_piece(precision: Precision, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = random_matrix(70, 64)
    whole = pack(weight, precision)
    monkeypatch.setattr(compress_module, "WHOLE", 0)
    monkeypatch.setattr(compress_module, "CHUNK", 16 * 64)
    chunked = pack(weight, precision)
    for field in ("data", "scale", "zero_point"):
        np.testing.assert_array_equal(getattr(whole, field), getattr(chunked, field))


@pytest.mark.parametrize("precision", INTEGERS, ids=str)
def test_taken_rows_mean_what_they_did(precision: Precision) -> None:
    packed = pack(random_matrix(24, 192), precision)
    rows = np.array([3, 0, 17])
    few = take_rows(packed, rows)
    assert isinstance(few, PackedTensor)
    np.testing.assert_array_equal(dequantize(few), dequantize(packed)[rows])


def test_one_compressor_takes_matrices_of_any_size_after_each_other() -> None:
    """Its buffer is that of the largest so far; nothing of one matrix stays in the next."""
    compressor = Compressor()
    for shape in [(8, 64), (64, 128), (3, 64), (64, 128)]:
        weight = random_matrix(*shape, seed=shape[0]).astype(np.float16)
        for precision in (Precision(4, group_size=32), Precision(8)):
            ours, alone = compressor.compress("w.weight", weight, precision), pack(weight, precision)
            np.testing.assert_array_equal(ours.data, alone.data)
            np.testing.assert_array_equal(ours.scale, alone.scale)


@pytest.mark.parametrize(
    ("recipe", "width", "expected"),
    [
        ("int4-asym-g128", 4096, "int4-asym-g128"),
        ("int4-asym-g128", 13696, "int4-asym-g128"),
        ("int4-asym-g128", 576, "int4-asym-g64"),
        ("int4-asym-g128", 96, "int4-asym-g32"),
        ("int4-asym-g64", 128, "int4-asym-g64"),
        ("int4-sym-g128", 48, "int8-sym"),
        ("int4-sym-channel", 48, "int4-sym-channel"),
        ("int8-asym", 48, "int8-asym"),
        ("fp16", 48, "fp16"),
    ],
)
def test_rule_for_widths_without_the_group(recipe: str, width: int, expected: str) -> None:
    precision, note = find_recipe(recipe).precision_of("layers.0.mlp.down.weight", (64, width))
    assert str(precision) == expected
    assert bool(note) == (expected != recipe)


@pytest.mark.parametrize("name", recipes())
def test_recipes_state_their_bytes(name: str) -> None:
    """`bytes_of` is what compression really makes, for a width with groups and one without."""
    recipe = find_recipe(name)
    shapes = {"layers.0.mlp.down.weight": (12, 256), "layers.0.attn.o.weight": (12, 96), "lm_head.weight": (9, 64)}
    for weight_name, shape in shapes.items():
        precision, _ = recipe.precision_of(weight_name, shape)
        if precision.is_float:
            assert recipe.bytes_of(weight_name, shape) == shape[0] * shape[1] * precision.bits // 8
        else:
            rank, narrow = recipe.rank_of(weight_name, shape), Precision(8, precision.symmetric)
            assert rank == (min(recipe.rank, 12) if precision.bits == 4 else 0)
            sizes = [pack(random_matrix(*shape), precision).nbytes]
            if rank:
                sizes += [pack(random_matrix(*s), narrow).nbytes for s in ((rank, shape[1]), (shape[0], rank))]
            assert recipe.bytes_of(weight_name, shape) == sum(sizes)


@pytest.mark.parametrize(
    ("given", "first"),
    [
        ("int4-asym-g218", "int4-asym-g128"),
        ("INT8", "int8-sym"),
        ("int4-asym-g128-data-free", "int4-asym-g128-awq-data-free"),
        ("int4-asym-g64-rotgptq", "int4-asym-g64-rot-gptq"),
    ],
)
def test_an_unknown_recipe_is_answered_by_the_closest_ones(given: str, first: str) -> None:
    with pytest.raises(
        RecipeError, match=rf"'{given}' is unknown, did you mean {first}(, \S+)?( or \S+)?\? "
    ) as raised:
        find_recipe(given)
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize("given", ["int5", "", "x" * 5000, "\udce9", "\n\0"])
def test_a_name_like_none_is_told_the_default(given: str) -> None:
    with pytest.raises(RecipeError, match=rf"is unknown, expected a name like {DEFAULT}; `edge recipes --all`") as told:
        find_recipe(given)
    assert len(str(told.value)) < 250


TABLE = {"description": "made up", "linear": "int4-asym-g64"}


def test_a_table_is_a_recipe() -> None:
    found = read_table("made-up", TABLE | {"awq": "inputs", "rank": 4, "head": "int4-sym-channel", "rotate": True})
    assert (found.name, str(found.linear), str(found.embedding), str(found.head)) == (
        "made-up",
        "int4-asym-g64",
        "int8-asym",
        "int4-sym-channel",
    )
    assert (found.method, found.awq, found.rank, found.rotate, found.calibrated) == (
        "data-free",
        "inputs",
        4,
        True,
        True,
    )


@pytest.mark.parametrize(
    ("table", "named"),
    [
        (3, "a single value, expected description, linear"),
        ({}, "has nothing, expected description, linear"),
        ({"linear": "fp16"}, "has 'linear', expected description, linear"),
        (TABLE | {"liner": "fp16"}, "'liner'"),
        (TABLE | {"rank": 1.5}, "rank is 1.5, expected a value like 16"),
        (TABLE | {"rank": True}, "rank is True"),
        (TABLE | {"rank": -1}, "rank is -1, expected 0 or more"),
        (TABLE | {"rotate": 1}, "rotate is 1, expected a value like true"),
        (TABLE | {"awq": "input"}, "awq is 'input', expected off, weights, inputs"),
        (TABLE | {"method": "gtpq"}, "method is 'gtpq', expected data-free, "),
        (TABLE | {"linear": "int5"}, "precision 'int5' is unknown"),
        (TABLE | {"head": "int4-asym"}, "expected a group size"),
        (TABLE | {"linear": "int8-asym", "awq": "weights"}, "are for linear layers of 4 bits or fewer"),
        (TABLE | {"linear": "int2-sym-g64", "method": "data-free"}, "2 bits must be fitted to text, use method gptq"),
        (TABLE | {"head": "int2-sym-g64"}, "head int2-sym-g64: embedding and head need 4 bits or more"),
    ],
    ids=str,
)
def test_a_mistake_in_a_table_is_named(table: object, named: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(named)) as found:
        read_table("made-up", table)
    assert str(found.value).startswith("recipes.toml, [made-up]")
