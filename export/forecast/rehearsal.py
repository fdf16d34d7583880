"""How long an export will take: a small model of random weights goes through the same functions, and is timed.

In: a plan. Out: seconds, which hold for this machine as busy as it is now. Writes nothing.

The small model has one decoder block of the same form, no wider than what takes a second or two. It is compressed with
all the tokens of a calibration, because no part of the time grows evenly with their number, and scaled up by operations
(`_work`); where nothing is fitted to text, calls of nncf count apart. Reading is timed on matrices of the checkpoint
itself. What does not depend on the model is FIXED_S.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from edge.export.assignment import Assignments, assign
from edge.export.budget import sensitivity
from edge.export.budget.disturbance import CARRIED
from edge.export.compress import awq
from edge.export.compress.calibration import WINDOW, WINDOWS, Calibration
from edge.export.compress.precision import Precision
from edge.export.compress.recipes import Recipe
from edge.export.parallel import one_blas_thread
from edge.export.plan import Plan
from edge.export.proof import GOLDEN_TOKENS, Verifier
from edge.export.stages import pack_stage
from edge.export.tensors import FloatArray
from edge.export.weights.names import EMBEDDING, Sources, Stage, stages_of
from edge.runtime.spec import ModelSpec

# Loading packages, proving graphs, making tokenizer models, writing graphs: an export of a model of next to nothing.
FIXED_S = 4.0
TEXT_S = 4.0  # more where the text that comes with Python is read and cut into tokens
WIDEST = 1024  # hidden size of the small model
WIDEST_FITTED = 256  # with calibration, where all its tokens pass the block
WORDS = 16384  # in its vocabulary
# Operations that take as long as rounding a weight, and as long as passing a value of a token through a block; chosen
# so that exports of the demo model with -awq and with -gptq are met (2 cores, AVX-512 VNNI).
OF_ROUNDING, OF_VALUE = 200.0, 600.0
OF_TOWER = 2.0  # times a parameter of the embedding: rounded as that is, and a picture of 64 patches passes it


class RandomWeights:
    """Weights of a model that no file holds, in memory so that reading them takes no time."""

    def __init__(self, spec: ModelSpec, assignments: Assignments) -> None:
        self.spec = spec
        rng = np.random.default_rng(0)
        self._values = {
            name: rng.standard_normal(found.shape, np.float32) / np.float32(found.shape[-1]) ** np.float32(0.5)
            if found.is_matrix
            else np.ones(found.shape, np.float32)
            for name, found in assignments.items()
        }

    @property
    def sources(self) -> Sources:
        return dict.fromkeys(self._values, ())

    def read(self, name: str) -> FloatArray:
        return self._values[name]

    def check_finite(self, name: str) -> None:
        """They are finite."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What parts of the small model took."""

    vocabulary_s: float  # a parameter of the embedding, compressed and checked
    block_s: float  # the small block, compressed and checked, without the calls
    calls_s: float  # what nncf takes for the matrices of a block, however small they are
    reading_s: float  # a parameter of the checkpoint
    small: ModelSpec


def expected_seconds(plan: Plan) -> tuple[float, float]:
    """About how long the export will take, and about how long measuring for a budget will take before it."""
    recipe = plan.recipe
    if plan.options:  # most matrices will get 4 bits, in one way or another
        recipe = replace(recipe, linear=Precision(4, recipe.linear.symmetric, 128))
    likely = replace(plan, recipe=recipe, assignments=assign(recipe, plan.spec))
    with one_blas_thread():
        rates = _rehearse(likely)
    spec = plan.spec
    vocabulary = sum(a.parameters for a in likely.assignments.values() if not a.in_block and a.is_matrix)
    vocabulary_s = vocabulary * (rates.vocabulary_s + 2 * rates.reading_s)
    first = stages_of(spec)[1]
    block, small = (table.of_stage(first) for table in (likely.assignments, assign(recipe, rates.small)))
    block_s = rates.calls_s + rates.block_s * _work(block, spec, recipe) / _work(small, rates.small, recipe)
    block_s += 2 * block.parameters * rates.reading_s
    total = FIXED_S + (TEXT_S if recipe.calibrated else 0) + vocabulary_s + spec.num_layers * block_s
    if plan.tower is not None:
        total += OF_TOWER * plan.tower.assignments.parameters * (rates.vocabulary_s + 2 * rates.reading_s)
    return total, _measuring_tokens(plan) / (2 * WINDOWS * WINDOW) * spec.num_layers * block_s


def _rehearse(plan: Plan) -> Rates:
    """Time the stages of a small model."""
    from edge.export.compress.nncf import Compressor

    recipe = plan.recipe
    small = _small(plan.spec, WIDEST_FITTED if recipe.calibrated else WIDEST)
    assignments = assign(recipe, small)
    weights = RandomWeights(small, assignments)
    plan_of_small = replace(plan, weights=weights, assignments=assignments)
    embedding, block, _ = stages_of(small)
    compressor = Compressor()
    ids = np.random.default_rng(0).integers(0, small.vocab_size, (WINDOWS, WINDOW))
    calibration = Calibration(ids, small, twin=recipe.method == "gptq") if recipe.calibrated else None

    def call() -> None:
        compressor.compress("w.weight", np.ones((8, 128), np.float32), Precision(4, group_size=128))

    call()  # nncf takes seconds to import, and longer for its first call than for others
    calls = sum(a.is_matrix and not a.precision.is_float for a in assignments.of_stage(block).values())
    calls_s = 0.0 if recipe.calibrated else calls * min(_seconds(call), _seconds(call))
    verifier = Verifier(list(range(GOLDEN_TOKENS)), small, [])

    def embed() -> None:
        packed = pack_stage(embedding, plan_of_small, compressor, calibration)
        verifier.embed({EMBEDDING: weights.read(EMBEDDING)}, packed)

    def pass_block() -> None:
        packed = pack_stage(block, plan_of_small, compressor, calibration)
        verifier.block(0, {name: weights.read(name) for name in packed}, packed)

    # The first call of a kind compares nncf with what does its work.
    vocabulary_s, block_s = min(_seconds(embed), _seconds(embed)), _seconds(pass_block)
    if calibration is None:  # quick, and so easily disturbed
        block_s = min(block_s, _seconds(pass_block))
    block_s = max(block_s - calls_s, block_s / 10)
    return Rates(vocabulary_s / (small.vocab_size * small.hidden_size), block_s, calls_s, _reading(plan), small)


def _seconds(run: Callable[[], None]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _reading(plan: Plan) -> float:
    """Seconds for a parameter of the checkpoint: of the smallest matrix in three blocks, the one in the middle."""
    blocks = stages_of(plan.spec)[1:-1]

    def of_block(stage: Stage) -> float:
        block = plan.assignments.of_stage(stage)
        matrix = min((a for a in block.values() if a.is_matrix), key=lambda a: a.parameters)
        return _seconds(lambda: _touch(plan.weights.read(matrix.name))) / matrix.parameters

    return sorted(map(of_block, (blocks[0], blocks[len(blocks) // 2], blocks[-1])))[1]


def _touch(weight: FloatArray) -> None:
    """So that a mapped file is really read."""
    np.add.reduce(weight.view(np.uint8).reshape(-1)[:: 1 << 12])


def _small(spec: ModelSpec, widest: int) -> ModelSpec:
    """A model with one block of the same form, no wider than this."""
    vocab_size = min(spec.vocab_size, WORDS)
    if spec.hidden_size <= widest:
        return replace(spec, num_layers=1, vocab_size=vocab_size)
    share = widest / spec.hidden_size
    kv_heads = max(round(spec.num_kv_heads * share), 1)
    return replace(
        spec,
        num_layers=1,
        hidden_size=widest,
        intermediate_size=max(round(spec.intermediate_size * share / 128), 1) * 128,
        num_heads=max(round(spec.num_heads * share / kv_heads), 1) * kv_heads,
        num_kv_heads=kv_heads,
        vocab_size=vocab_size,
    )


def _work(block: Assignments, spec: ModelSpec, recipe: Recipe) -> float:
    """Operations of a block, up to a factor: rounding its weights, and what is done with all tokens."""
    matrices = [assigned for assigned in block.values() if assigned.is_matrix]
    work = sum(OF_ROUNDING * matrix.parameters for matrix in matrices)
    if not recipe.calibrated:
        return work
    tokens, searched = WINDOWS * WINDOW, len(awq.POWERS) * awq.SEARCHED_TOKENS * awq.SEARCHED_ROWS
    fits = recipe.method.endswith("gptq") or recipe.rank > 0
    # What a token is besides what it is multiplied with: attention to a window, norms, gates, sums.
    values = spec.num_heads * WINDOW + 4 * (spec.hidden_size + spec.intermediate_size) + spec.q_size + 2 * spec.kv_size
    work += (2 if recipe.method == "gptq" else 1) * tokens * (4.0 * WINDOW * spec.q_size + OF_VALUE * values)
    for matrix in matrices:
        n, k = matrix.shape
        work += (4.0 if recipe.method == "gptq" else 2.0) * tokens * n * k
        work += 2.0 * searched * k if matrix.scaled == "inputs" else 0.0
        if fits:  # moments of inputs; and columns that are rounded and moved, each with all before it
            work += tokens * k * k + 6.0 * n * k * k
    return work


def _measuring_tokens(plan: Plan) -> float:
    """Tokens that pass a block while the effect of matrices is measured; a model is carried on from each of them."""
    if not plan.options:
        return 0.0
    carried = min(sensitivity.DEPTHS, plan.spec.num_layers) * len(plan.options) / max(plan.spec.num_layers, 1)
    return sensitivity.WINDOW * (sensitivity.WINDOWS + CARRIED * carried / 2)
