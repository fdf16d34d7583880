"""Proof that what export wrote is the model it read: the same tokens go through float and compressed weights.

In: one stage at a time (embedding, a decoder block, the head), as float weights and as compressed ones. Out: how far
the stage is off, and how much of that its recipe's rounding explains; and golden logits of both for the bundle. Both
sides are computed in plain numpy from the stored bytes, and the bundle's graphs are compared with the result. Memory is
that of one block. Knows nothing about files.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from edge.export import emulation
from edge.export.emulation import NUMERICS, write_golden_rows
from edge.export.graph import numpy_builder
from edge.export.graph.runners import Runner
from edge.export.npz import put_array
from edge.export.tensors import Float32Array, FloatArray, PackedTensor, Weight, take_rows, to_float32
from edge.export.weights.names import EMBEDDING, HEAD
from edge.runtime.bundle import GOLDEN, SELF_TEST
from edge.runtime.differences import FLOAT32_BOUND, distance, kl_divergence
from edge.runtime.errors import VerificationError
from edge.runtime.golden import GoldenLogits
from edge.runtime.golden_rows import GoldenRows
from edge.runtime.spec import ModelSpec
from edge.runtime.tensor_records import StageCheck

GOLDEN_TEXT = (
    "The capital of France is Paris. 法国的首都是巴黎。 def f(x): return x + 1\n\n"
    'Le 14 juillet 1789, la Bastille tombe. {"a": [1, 2.5], "b": "Größe"}'
)
GOLDEN_TOKENS = 32  # of the text, at most: enough rows to tell a device that rounds from one that computes wrongly
GOLDEN_ROWS = 4  # rows of logits kept: the last ones, which have seen the most
PROVEN_ROWS = 4096  # of the head, whose graph does not depend on their number
STREAMS = 2 + NUMERICS  # of hidden states
SAMPLED_ROWS = 256  # of a matrix, to estimate the size of its weights

# A stage may be off by this many times what rounding explains on average. Attention and norms can amplify noise several
# times; a misplaced scale or a wrong order of rows gives an error as large as the output itself.
TOLERATED = 8.0
WRONG = 1.0  # an error as large as what the stage computes, whatever the recipe; of 2 bits, a budget may ask for it


@dataclass(frozen=True)
class Golden(GoldenLogits):
    """What is stored in a bundle: logits of the last GOLDEN_ROWS tokens, and the largest ones of all tokens."""

    rows: GoldenRows | None = None

    def write(self, folder: Path) -> None:
        """Write an .npz for each: same golden logits, same bytes."""
        if self.rows is not None:
            write_golden_rows(self.rows, folder / SELF_TEST)
        arrays: dict[str, npt.NDArray[Any]] = {
            "ids": self.ids,
            "float_logits": self.float_logits,
            "logits": self.logits,
        }
        with zipfile.ZipFile(folder / GOLDEN, "w") as archive:
            for name, array in arrays.items():
                put_array(archive, name, array, compressed=True)

    @property
    def kld(self) -> float:
        """Mean KL divergence of the compressed model from the float one, nats/token."""
        return kl_divergence(self.float_logits, self.logits)


class Sampled(Mapping[str, FloatArray]):
    """Float weights that keep the size of each one's numbers when it is read, so that none is read again for it."""

    def __init__(self, weights: Mapping[str, FloatArray]) -> None:
        self._weights = weights
        self._sizes: dict[str, tuple[tuple[int, ...], float]] = {}

    def __getitem__(self, name: str) -> FloatArray:
        weight = self._weights[name]
        if name not in self._sizes:
            rows = to_float32(weight[:: max(weight.shape[0] // SAMPLED_ROWS, 1)])
            self._sizes[name] = weight.shape, float(np.sqrt(np.mean(np.square(rows, dtype=np.float64)))) or 1.0
        return weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    def size(self, name: str) -> tuple[tuple[int, ...], float]:
        """A weight's shape, and the root mean square of some of its rows."""
        if name not in self._sizes:
            self[name]
        return self._sizes[name]


class Engine(Protocol):
    """What runs a stage's graph."""

    name: str


R = TypeVar("R", bound=Engine)


class Verifier:
    """Carries hidden states of the golden tokens through both models, stage by stage.

    Every stage runs twice with the compressed weights: on the float model's input, which shows the stage's own error,
    and on the output of the compressed stages before it. Its graph is run only if it is a new one: blocks whose weights
    have the same precisions share a graph. Raises VerificationError when a stage is broken.
    """

    def __init__(self, ids: list[int], spec: ModelSpec, runners: Sequence[Runner], coarse: bool = False) -> None:
        """coarse: whether any matrix of the model has fewer than 4 bits."""
        self.ids = np.array(ids[:GOLDEN_TOKENS], np.int64)
        self._spec, self._coarse = spec, coarse
        self._graphs = GraphProof(runners)
        # Hidden states of the float model, of the compressed one, and of the latter in emulated numerics:
        # (STREAMS, T, H). Set it to resume.
        self.hidden: Float32Array = np.zeros((STREAMS, self.ids.size, spec.hidden_size), np.float32)

    def embed(self, weights: Mapping[str, FloatArray], packed: Mapping[str, Weight]) -> StageCheck:
        """Start: token ids to hidden states."""
        ids = self.ids[None]
        exact = [numpy_builder.embed(w, ids, self._spec) for w in (weights, packed)]
        self.hidden = np.concatenate([*exact, emulation.embed(packed, ids, self._spec)])
        found, places = np.unique(ids, return_inverse=True)  # the graph is the same with these rows alone
        few = {EMBEDDING: take_rows(packed[EMBEDDING], found)}
        places = places.reshape(ids.shape)
        self._graphs.prove("embedding", lambda runner: runner.embedding(few, places, self._spec), exact[1])
        return check_stage("embedding", self.hidden[1], self.hidden[0], 0, weights, packed, coarse=self._coarse)

    def block(self, layer: int, weights: Mapping[str, FloatArray], packed: Mapping[str, Weight]) -> StageCheck:
        """Run one decoder block."""
        start, others = self.hidden[:2], self.hidden[2:]
        weights = Sampled(weights)
        expected = numpy_builder.block(weights, start[:1], layer, self._spec)[0]
        found, others = emulation.block(packed, start, others, layer, self._spec)
        stage, layout = f"block {layer}", [kind_of(weight) for weight in packed.values()]
        self._graphs.prove(stage, lambda runner: runner.block(packed, start, layer, self._spec), found, layout)
        self.hidden = np.concatenate([expected[None], found[1:], others])
        return check_stage(stage, found[0], expected, start[0], weights, packed, coarse=self._coarse)

    def head(self, weights: Mapping[str, FloatArray], packed: Mapping[str, Weight]) -> tuple[StageCheck, Golden]:
        """Finish: hidden states to logits of the last rows."""
        last, others = self.hidden[:2, -GOLDEN_ROWS:], self.hidden[2:]
        expected = numpy_builder.head(weights, last[:1], self._spec)[0]
        found, logits, *noisy = emulation.head(packed, [last, self.hidden[1:2]], others, self._spec)
        name = EMBEDDING if self._spec.tied_embeddings else HEAD
        few = {**packed, name: take_rows(packed[name], np.arange(min(PROVEN_ROWS, found.shape[-1])))}
        self._graphs.prove("head", lambda runner: runner.head(few, last, self._spec), found[..., :PROVEN_ROWS])
        check = check_stage("head", found[0], expected, 0, weights, packed, coarse=self._coarse)
        rows = emulation.golden_rows(self.ids, logits[0], [found[0] for found in noisy])
        return check, Golden(self.ids, expected, found[1], rows)


def check_stage(
    stage: str,
    found: Float32Array,
    expected: Float32Array,
    start: Float32Array | int,
    weights: Mapping[str, FloatArray],
    packed: Mapping[str, Weight],
    *,
    coarse: bool = False,
) -> StageCheck:
    """Compare what a stage adds to `start` in the two models. Raises VerificationError."""
    if not np.isfinite(found).all():
        raise VerificationError(f"{stage} of the compressed model gives NaN or infinity; try another recipe")
    error = float(np.linalg.norm(found - expected) / max(float(np.linalg.norm(expected - start)), 1e-30))
    weights = weights if isinstance(weights, Sampled) else Sampled(weights)
    rounding = float(np.sqrt(sum(rounding_error(*weights.size(name), packed[name]) ** 2 for name in packed)))
    if not error <= error_bound(rounding, coarse=coarse):
        raise VerificationError(
            f"{stage} is off by {error:.2g} of its output, and rounding its weights explains about {rounding:.2g}; "
            "the compressed weights are wrong, please report this with the checkpoint's name and the recipe"
        )
    return StageCheck(stage, error, rounding)


class GraphProof(Generic[R]):
    """Compares stages' graphs with what numpy computes from the same bytes, those alone that were not proven before.

    They run in float32 with float activations, so that only the order of sums differs.
    """

    def __init__(self, runners: Sequence[R]) -> None:
        self._runners = runners  # of the graphs that the bundle will hold
        self._proven: set[tuple[str, ...]] = set()  # graphs that were seen to compute what numpy does

    def prove(
        self,
        stage: str,
        run: Callable[[R], Float32Array],
        expected: Float32Array,
        layout: list[str] | None = None,
    ) -> None:
        """Run a stage on every engine. layout: what tells its graph from those of other stages; None: its name.

        Raises VerificationError.
        """
        graph = tuple([stage] if layout is None else layout)
        if graph in self._proven:
            return
        for runner in self._runners:
            error = distance(run(runner), expected)
            if np.isfinite(expected).all() and not error <= FLOAT32_BOUND:
                raise VerificationError(
                    f"the {runner.name} graph of {stage} is off by {error:.2g} from plain arithmetic on the same "
                    f"weights, expected {FLOAT32_BOUND:g} or less; please report this with the checkpoint, the recipe "
                    "and the processor"
                )
        self._proven.add(graph)


def kind_of(weight: Weight) -> str:
    """Everything about a weight that decides the form of its graph."""
    if isinstance(weight, PackedTensor):
        rank = 0 if weight.low_rank is None else weight.low_rank.a.shape[0]
        return f"{weight.bits} {weight.signed} {weight.zero_point is None} {weight.group_size} {weight.shape} {rank}"
    return f"{weight.dtype} {weight.shape}"


def error_bound(rounding: float, *, coarse: bool) -> float:
    """How far a stage may be off whose weights' rounding explains so much, as a share of what it computes.

    Never by as much as a wrong stage is, however large its steps: with random signs, that is 1. Unless the model is
    coarse, with matrices of fewer than 4 bits: what those leave of a stage may itself be that far off, and the stages
    behind it are fitted to make up for it, so that on the float model's own input they are off as well. Then the bound
    is what rounding explains.
    """
    explained = FLOAT32_BOUND + TOLERATED * rounding
    return explained if coarse else min(explained, WRONG)


def rounding_error(shape: tuple[int, ...], size: float, packed: Weight) -> float:
    """Expected relative error of a product with a compressed matrix; 0 for a vector, and for what was not rounded.

    shape, size: of the float weight, and the root mean square of its numbers.

    Rounding to steps of s errs by s / sqrt(12) on average (uniform over half a step to either side), and the errors of
    different weights add up like independent ones: relative to the product, they are as the step to the weight.
    """
    if packed.shape != shape or len(packed.shape) != 2:
        return 0.0
    if isinstance(packed, PackedTensor):
        step = float(np.sqrt(np.mean(np.square(packed.scale, dtype=np.float64))))
    else:
        step = size * float(np.finfo(packed.dtype).eps) if packed.dtype == np.float16 else 0.0
    return step / math.sqrt(12) / size
