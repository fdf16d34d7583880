"""Folds change weights and no bit of any logit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.export.float16.folds import FoldedWeights, Folds
from edge.export.graph import decoder
from edge.export.graph.numpy_builder import NumpyBuilder
from edge.export.graph.runners import OnnxRunner, OpenVINORunner, Runner
from edge.export.plan import make_plan
from edge.export.settings import ExportSettings
from edge.export.tensors import Float32Array, to_float32
from edge.export.weights.names import canonical_shapes
from edge.export.weights.source import WeightSource
from edge.runtime.differences import FLOAT32_BOUND, distance
from edge.runtime.spec import MAX_EXPONENT, ModelSpec
from tests import tiny
from tests.tiny import Tiny

IDS: npt.NDArray[Any] = np.arange(2, 26).reshape(1, 24)
EXPONENTS = st.integers(0, MAX_EXPONENT)
Source = Callable[[Tiny], WeightSource]


@pytest.fixture(scope="session")
def source_of(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Weights of each tiny model, made once."""
    made: dict[str, WeightSource] = {}

    def source(kind: Tiny) -> WeightSource:
        if kind.name not in made:
            folder = tmp_path_factory.mktemp("folds") / kind.name
            tiny.make(kind, folder)
            made[kind.name] = make_plan(folder, ExportSettings("fp32")).weights
        return made[kind.name]

    return source


def all_weights(source: WeightSource) -> dict[str, Float32Array]:
    return {name: to_float32(source.read(name)) for name in canonical_shapes(source.spec)}


def logits(source: WeightSource) -> Float32Array:
    found: Float32Array = decoder.decoder(NumpyBuilder(all_weights(source), source.spec), IDS, source.spec)
    return found


def folds_of(spec: ModelSpec, draw: Callable[[st.SearchStrategy[Any]], Any], *, safe_norms: bool) -> Folds:
    each = st.tuples(*[EXPONENTS] * spec.num_layers)
    return Folds(
        residual=draw(EXPONENTS),
        output=draw(EXPONENTS) if spec.output_norms else 0,
        up=draw(each),
        values=draw(each),
        qkv=draw(each),
        gate_up=draw(each),
        head=0 if spec.tied_embeddings else draw(EXPONENTS),
        safe_norms=safe_norms,
    )


@pytest.mark.parametrize("kind", tiny.TINIES, ids=str)
@settings(max_examples=6)
@given(data=st.data(), safe_norms=st.booleans())
def test_no_bit_of_a_logit_changes(kind: Tiny, source_of: Source, data: st.DataObject, safe_norms: bool) -> None:
    source = source_of(kind)
    folds = folds_of(source.spec, data.draw, safe_norms=safe_norms)
    unfolded = FoldedWeights(source, Folds.none(source.spec, safe_norms=safe_norms))
    np.testing.assert_array_equal(logits(FoldedWeights(source, folds)), logits(unfolded))


@pytest.mark.parametrize("field", [field.name for field in fields(Folds) if field.name != "safe_norms"])
def test_every_fold_changes_what_it_says_and_nothing_else(field: str, source_of: Source) -> None:
    """Each is an exact power of two in at least two places, so that one without the other would be seen above."""
    kind = next(t for t in tiny.TINIES if t.name == ("0414" if field == "output" else "partial-bias-untied"))
    source = source_of(kind)
    none = Folds.none(source.spec)
    changed: dict[str, Any] = {field: 3 if isinstance(getattr(none, field), int) else (0, 3, 0)}
    folds = replace(none, **changed)
    folded, ratios = FoldedWeights(source, folds), set[float]()
    for name in canonical_shapes(source.spec):
        before, after = to_float32(source.read(name)), to_float32(folded.read(name))
        ratios |= set(np.unique(after[before != 0] / before[before != 0]).tolist())
    eps = (folded.spec.stream_eps / source.spec.stream_eps, folded.spec.output_eps / source.spec.output_eps)
    if field in ("residual", "output"):
        assert ratios == {1, 2**-3}
        assert eps == ((2**-6, 1) if field == "residual" else (1, 2**-6))
    else:
        assert ratios == {1, 2**-3, 2**3}
        assert eps == (1, 1)


def test_without_a_fold_nothing_changes(source_of: Source) -> None:
    source = source_of(tiny.TINIES[0])
    folded = FoldedWeights(source, Folds.none(source.spec))
    assert folded.spec == source.spec
    assert folded.sources == source.sources
    for name in canonical_shapes(source.spec):
        np.testing.assert_array_equal(folded.read(name), source.read(name))
    assert Folds.from_json(Folds.none(source.spec).to_json()) == Folds.none(source.spec)


def run(runner: Runner, source: WeightSource) -> Float32Array:
    """Logits of the graphs that a bundle is made of."""
    weights, spec = all_weights(source), source.spec
    hidden = runner.embedding(weights, IDS, spec)
    for layer in range(spec.num_layers):
        own = {name: values for name, values in weights.items() if name.startswith(f"layers.{layer}.")}
        hidden = runner.block(own, hidden, layer, spec)
    return runner.head(weights, hidden, spec)


@pytest.mark.parametrize("runner", [OpenVINORunner, OnnxRunner])
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(t, id=t.name, marks=[] if t.name in ("full-tied", "0414") else pytest.mark.slow)
        for t in tiny.TINIES
    ],
)
def test_no_bit_changes_in_the_graphs_of_engines(kind: Tiny, runner: type[Runner], source_of: Source) -> None:
    source = source_of(kind)
    spec = source.spec
    each = tuple(range(1, spec.num_layers + 1))
    head, output = (0 if spec.tied_embeddings else 2), (4 if spec.output_norms else 0)
    expected = logits(source)
    for safe_norms in (False, True):
        folds = Folds(5, output, each, each, each, each, head, safe_norms)
        found = run(runner(), FoldedWeights(source, folds))
        unfolded = run(runner(), FoldedWeights(source, Folds.none(spec, safe_norms=safe_norms)))
        np.testing.assert_array_equal(found, unfolded)
        assert distance(found, expected) < FLOAT32_BOUND / 100


def test_safe_norms_square_magnitudes_of_one_at_most(source_of: Source) -> None:
    """In the graph: what is squared is a quotient, and the divisor comes from magnitudes."""
    from edge.export.graph.openvino.models import head_model

    source = source_of(tiny.TINIES[0])
    folded = FoldedWeights(source, Folds.none(source.spec, safe_norms=True))
    nodes = head_model(all_weights(folded), folded.spec).get_ordered_ops()
    squared = [node for node in nodes if node.get_type_name() == "Power"]
    assert len(squared) == 2
    for node in squared:
        quotient = node.input_value(0).get_node()
        assert quotient.get_type_name() == "Divide"
        largest = quotient.input_value(1).get_node()
        assert largest.get_type_name() == "Maximum"
        reduced = largest.input_value(0).get_node()
        assert reduced.get_type_name() == "ReduceMax"
        assert reduced.input_value(0).get_node().get_type_name() == "Abs"
