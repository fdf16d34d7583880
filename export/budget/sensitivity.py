"""What rounding each matrix costs the model: measured on real tokens, one matrix at a time.

In: float weights, windows of tokens, and the choices there are for each matrix: precisions, with channels scaled (AWQ)
or not. Out: a `Sensitivity`, the KLD that every choice is predicted to cost. Knows nothing about budgets, recipes or
files.

The cost of a choice is error x gain. The error is the power of what rounding adds to the matrix's output, relative to
that output: rows of the matrix are rounded as the export will round them, for some windows, and the product is taken
with others. The gain is KLD per unit of error: the matrix alone is replaced by its rounded form, and the tokens go on
through the float model to its logits. KLD is a quadratic form of a small disturbance, so it grows in proportion to its
power, and disturbances of different matrices, which have nothing to do with each other, add up.

Everything is carried through the model in one pass, so that each weight is read once. Of each kind of matrix those of
at most DEPTHS blocks are replaced; between them the gain is interpolated in depth, by its logarithm. There the error is
measured for one precision, scaled and not, and for the others follows from rounding to nearest and from what fitting
took off that in the blocks around.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.export.budget.disturbance import CARRIED, PIECE, Branching, kld_sum, power_of, round_as_exported
from edge.export.checkpoint.checkpoint import Checkpoint
from edge.export.compress import awq
from edge.export.compress.moments import Moments, moments
from edge.export.compress.precision import FEW_BITS, Rounding
from edge.export.compress.rounding import nearest
from edge.export.graph import decoder
from edge.export.graph.numpy_parallel import ParallelBuilder
from edge.export.journal import Journal
from edge.export.parallel import in_parallel, one_blas_thread
from edge.export.tensors import Float32Array, FloatArray, Weight, rows_of, to_float32
from edge.export.walk import Batches, Walk
from edge.export.weights.names import EMBEDDING, FINAL_NORM, HEAD, Stage, stages_of
from edge.export.weights.source import ReadWhenNeeded, WeightSource

Candidates = Mapping[str, Sequence[Rounding]]  # a matrix's canonical name -> what it may be, smallest first

DEPTHS = 10  # blocks whose matrices are replaced
WINDOW = 256  # tokens
FITTED = 16  # windows that rounding is fitted to
WINDOWS = CARRIED + FITTED
SAMPLED_ROWS = 256  # of a matrix, for its errors
AT_ONCE = 16  # windows of replaced models that pass a block together
FLOOR = 1e-12  # of errors and gains: their logarithms are taken


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What every choice is predicted to cost."""

    errors: Mapping[str, Mapping[Rounding, float]]  # power of a matrix's rounding error, relative to its output's
    gains: Mapping[str, float]  # nats/token of KLD per unit of that
    measured: tuple[str, ...]  # matrices whose gain was measured; that of the others is interpolated

    def cost(self, name: str, choice: Rounding) -> float:
        """Predicted KLD of this choice, nats/token."""
        return self.errors[name][choice] * self.gains[name]

    def to_json(self) -> dict[str, object]:
        errors = {name: _by_text(found) for name, found in self.errors.items()}
        return {"errors": errors, "gains": dict(self.gains), "measured": list(self.measured)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Sensitivity:  # JSON, as to_json gives it
        errors = {name: _by_rounding(found) for name, found in data["errors"].items()}
        return cls(errors, {name: float(gain) for name, gain in data["gains"].items()}, tuple(data["measured"]))


def _by_text(errors: Mapping[Rounding, float]) -> dict[str, float]:
    return {str(choice): error for choice, error in errors.items()}


def _by_rounding(errors: Mapping[str, float]) -> dict[Rounding, float]:
    """The inverse of `_by_text`. Raises RecipeError."""
    return {Rounding.parse(choice): float(error) for choice, error in errors.items()}


def measure(
    checkpoint: Checkpoint,
    weights: WeightSource,
    candidates: Candidates,
    ids: npt.NDArray[np.int64],
    progress: Callable[[str, int], None] = lambda _stage, _blocks: None,
    journal: Journal | None = None,
    depths: int = DEPTHS,
) -> Sensitivity:
    """Errors of all candidates and gains of all matrices.

    checkpoint: that the weights are made of. ids: (n, T) windows; the first CARRIED are measured on, the others are
    fitted to. progress: stage, blocks done. journal: of everything that the result depends on; a measurement that was
    ended continues from it, with the same result. The result does not depend on the number of cores. Raises RecipeError
    where activations are not finite, and OSError where the journal cannot be written.
    """
    assert len(ids) > CARRIED, "windows are needed to fit to as well"
    spec = weights.spec
    measured = _measured(spec.num_layers, depths)
    walk = Walk(stages_of(spec), journal)
    run = _Measurement(checkpoint, weights, candidates, ids)
    run.resume(walk)
    with one_blas_thread():
        for stage in walk.remaining:
            if stage.index > 0:
                progress(stage.name, stage.index - 1)
            if stage.is_head:
                break
            if stage.layer is None:
                names = run.embed()
            else:
                names = run.block(stage.layer, stage.own(spec), replace=stage.layer in measured)
            walk.finish(stage, run.record(names), **run.states())
        return run.head()


def _measured(layers: int, depths: int) -> list[int]:
    """The first two and the last two blocks, which are unlike their neighbours, and some spread evenly between."""
    inner = np.linspace(1, layers - 2, depths - 2).round().astype(int).tolist()
    return sorted({0, layers - 1, *inner}) if layers > depths else list(range(layers))


class _Measurement:
    """Hidden states of the float model, and of models in which one matrix is replaced, between two stages.

    `embed` and `block` return the matrices they measured; a `Walk` keeps `record` and `states` for `resume` to read.
    """

    def __init__(
        self, checkpoint: Checkpoint, weights: WeightSource, candidates: Candidates, ids: npt.NDArray[np.int64]
    ) -> None:
        self._checkpoint = checkpoint
        self._weights, self._spec, self._candidates, self._ids = weights, weights.spec, candidates, ids
        self._hidden: Float32Array = np.zeros(0, np.float32)  # (n, T, H)
        self._replaced: dict[str, Float32Array] = {}  # matrix -> (CARRIED, T, H)
        self._errors: dict[str, dict[Rounding, float]] = {}
        self._nearest: dict[str, dict[Rounding, float]] = {}  # the same of rounding to nearest
        self._swapped: dict[str, float] = {}  # errors of the matrices that were put in

    def resume(self, walk: Walk[Stage]) -> None:
        """Continue after the stages that a walk has done."""
        for record in walk.records:
            for name, found in record["matrices"].items():
                self._errors[name] = _by_rounding(found["errors"])
                if found["nearest"]:
                    self._nearest[name] = _by_rounding(found["nearest"])
                if found["swapped"] is not None:
                    self._swapped[name] = found["swapped"]
        if walk.records:
            self._hidden = np.array(walk.states("hidden"))
            models = walk.states("replaced")
            for i, name in enumerate(walk.records[-1]["replaced"]):
                self._replaced[name] = np.array(models[i * CARRIED : (i + 1) * CARRIED])

    def states(self) -> dict[str, Float32Array | Batches]:
        shape = (len(self._replaced) * CARRIED, *self._hidden.shape[1:])
        return {"hidden": self._hidden, "replaced": Batches(shape, self._replaced.values())}

    def record(self, names: Iterable[str]) -> dict[str, object]:
        """What was measured of these matrices, and the order of the states of models that one is replaced in."""
        matrices = {
            name: {
                "errors": _by_text(self._errors[name]),
                "nearest": _by_text(self._nearest.get(name, {})),
                "swapped": self._swapped.get(name),
            }
            for name in names
        }
        return {"matrices": matrices, "replaced": list(self._replaced)}

    def embed(self) -> list[str]:
        """Start."""
        matrix, spec = self._weights.read(EMBEDDING), self._spec
        self._hidden = self._float({EMBEDDING: matrix}).embedding(self._ids, "embed")
        found, places = np.unique(self._ids[:CARRIED], return_inverse=True)
        rows = to_float32(np.ascontiguousarray(matrix[found]))
        counts = np.bincount(places.ravel()).astype(np.float32)[:, None]
        power = float((np.square(rows) * counts).sum())
        rounded = {choice: nearest(rows, choice.precision) for choice in self._candidates[EMBEDDING]}
        self._errors[EMBEDDING] = {
            choice: float((np.square(q - rows) * counts).sum()) / power for choice, q in rounded.items()
        }
        swap = _middle(self._candidates[EMBEDDING])
        self._swapped[EMBEDDING] = self._errors[EMBEDDING][swap]
        self._replaced[EMBEDDING] = rounded[swap][places.reshape(-1)].reshape(CARRIED, -1, spec.hidden_size)
        return [EMBEDDING]

    def block(self, layer: int, names: Sequence[str], *, replace: bool) -> list[str]:
        """Pass a block of these weights; with `replace`, with models in which one of its matrices is replaced."""
        self._checkpoint.prefetch(part for name in names for part in self._weights.sources[name])
        floats = ReadWhenNeeded(self._weights.read, names)
        seen: list[str] = []
        replaced: list[str] = []

        def look(name: str, inputs: Float32Array) -> Weight | None:
            seen.append(name)
            swap = self._look(name, floats[name], inputs, replace=replace)  # the last one read
            if swap is not None:
                replaced.append(name)
            return swap

        out = decoder.block(Branching(floats, self._spec, len(self._ids), look), self._hidden.copy(), layer, self._spec)
        n = len(self._ids)
        before = list(self._replaced)
        for start in range(0, len(before), AT_ONCE // CARRIED):
            several = before[start : start + AT_ONCE // CARRIED]
            hidden = np.concatenate([self._replaced[name] for name in several])
            hidden = decoder.block(self._float(floats), hidden, layer, self._spec)
            for i, name in enumerate(several):
                self._replaced[name] = hidden[i * CARRIED : (i + 1) * CARRIED].copy()
        for i, name in enumerate(replaced):
            self._replaced[name] = out[n + i * CARRIED : n + (i + 1) * CARRIED].copy()
        self._hidden = out[:n].copy()
        self._checkpoint.release()
        return seen

    def head(self) -> Sensitivity:
        """Finish: the KLD of every replaced model."""
        spec = self._spec
        tied = spec.tied_embeddings
        name = EMBEDDING if tied else HEAD
        matrix = self._weights.read(name)
        floats: dict[str, Weight] = {HEAD: matrix, FINAL_NORM: self._weights.read(FINAL_NORM)}
        builder = self._float(floats)

        def normed(hidden: Float32Array) -> Float32Array:
            return builder.rms_norm(hidden, "norm", spec.stream_eps)

        last = normed(self._hidden)
        swap: Weight | None
        if tied:  # one matrix in two places, and one disturbance: only the precision of rows is known of it
            swap = nearest(to_float32(matrix), _middle(self._candidates[EMBEDDING]).precision)
        else:
            swap = self._look(HEAD, matrix, last.reshape(-1, last.shape[-1]), replace=True)
            self._replaced[HEAD] = self._hidden[:CARRIED]
        assert swap is not None
        own = {EMBEDDING} if tied else {HEAD}
        sums = dict.fromkeys(self._replaced, 0.0)
        for window in range(CARRIED):
            expected = builder.linear(last[window : window + 1], "lm_head")[0]
            for other, hidden in self._replaced.items():
                using = self._float({HEAD: swap}) if other in own else builder
                found = using.linear(normed(hidden[window : window + 1]), "lm_head")[0]
                sums[other] += sum(in_parallel(lambda i: kld_sum(expected, found, i), range(0, len(found), PIECE)))  # noqa: B023
        tokens = self._ids[:CARRIED].size
        klds = {other: total / tokens for other, total in sums.items()}
        return self._summary(klds)

    def _float(self, floats: Mapping[str, Weight]) -> ParallelBuilder:
        """A builder of the float model, which computes on all cores."""
        return ParallelBuilder(floats, self._spec, lambda name, _inputs: floats[name])

    def _look(self, name: str, weight: FloatArray, inputs: Float32Array, *, replace: bool) -> Weight | None:
        """Errors of a matrix's candidates; the matrix as the middle one has it, if it is to be put in."""
        tokens, candidates = self._ids[:CARRIED].size, self._candidates[name]
        held, fitting = inputs[:tokens], inputs[tokens:]
        rows = to_float32(weight[:: max(len(weight) // SAMPLED_ROWS, 1)])
        power = power_of(held, rows)
        self._nearest[name], self._errors[name] = {}, {}

        def look(choices: Sequence[Rounding], fitted: Moments, scales: Float32Array | float) -> None:
            """Errors of these choices; `fitted` are moments of the scaled inputs."""
            scaled, middle = rows * scales, _middle(choices)
            for choice in choices:
                found = nearest(scaled, choice.precision) / scales
                self._nearest[name][choice] = power_of(held, rows, found) / power
                if replace or choice == middle:
                    found = rows_of(round_as_exported(scaled, fitted, choice.precision), 0, len(rows)) / scales
                    self._errors[name][choice] = power_of(held, rows, found) / power

        scalable, scales = _with(candidates, awq=True), None
        if scalable:
            channels, precision = awq.shared_channels(name, self._spec), _middle(scalable).precision
            scales = awq.scales_of_inputs(weight, fitting[: awq.SEARCHED_TOKENS], precision, channels)
        met, swap, replacement = moments(fitting), _middle(candidates), None
        look(_with(candidates, awq=False), met, 1.0)
        if scalable and scales is None:  # none are the best
            look(scalable, met, 1.0)
        if replace:
            replacement = round_as_exported(to_float32(weight), met, swap.precision)
            self._swapped[name] = power_of(held, weight, replacement) / power_of(held, weight)
        del met  # of GLM-4-9B's largest matrix these have 750 MB
        if scales is not None:
            look(scalable, moments(fitting, scales), scales)
        return replacement

    def _summary(self, klds: Mapping[str, float]) -> Sensitivity:
        gains = {name: kld / max(self._swapped[name], FLOOR) for name, kld in klds.items()}
        for name in [name for name in self._nearest if name not in klds]:
            known = [other for other in klds if _kind(other) == _kind(name)]

            def between(values: Sequence[float], name: str = name, known: list[str] = known) -> float:
                logs = [math.log(max(value, FLOOR)) for value in values]
                return math.exp(float(np.interp(_layer(name), [_layer(other) for other in known], logs)))

            gains[name] = between([gains[other] for other in known])
            for choice, error in self._nearest[name].items():
                swap = _middle(_with(self._candidates[name], awq=choice.awq))
                if choice == swap:
                    continue
                left = 1.0  # 8 bits are rounded to nearest indeed
                if choice.precision.is_narrow:
                    others = [self._left(other, choice) / self._left(other, swap) for other in known]
                    left = self._left(name, swap) * between(others)
                self._errors[name][choice] = error * left
        return Sensitivity(self._errors, gains, tuple(klds))

    def _left(self, name: str, choice: Rounding) -> float:
        """What is left of the error of rounding to nearest when rounding is fitted to text."""
        return max(self._errors[name][choice], FLOOR) / max(self._nearest[name][choice], FLOOR)


def _middle(candidates: Sequence[Rounding]) -> Rounding:
    """The one that is put in: neither so coarse that proportion ends, nor so fine that little is measured."""
    plain = _with(candidates, awq=False) or list(candidates)
    plain = [choice for choice in plain if choice.precision.bits >= FEW_BITS] or plain
    return plain[len(plain) // 2]


def _with(candidates: Sequence[Rounding], *, awq: bool) -> list[Rounding]:
    return [choice for choice in candidates if choice.awq == awq]


def _layer(name: str) -> int:
    return int(name.split(".")[1])


def _kind(name: str) -> str:
    """The same for one matrix of every block."""
    return name.split(".", 2)[-1]
