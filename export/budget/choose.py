"""Mixed precision: the best model within a budget of bytes, or the smallest one within a budget of KLD.

In: limits, a model's shapes, and what every choice would cost (`sensitivity`). Out: for every matrix its precision and
whether its channels are scaled, and the decisions in words. The choice is exact (`budget`); what it rests on, the
predicted KLD, is a sum over matrices of what each costs alone, without what an engine rounds. Knows nothing about
files, or about how costs were measured.
"""

from __future__ import annotations

from collections.abc import Mapping

from edge.export.budget.knapsack import Choice, Option, choose
from edge.export.budget.sensitivity import Candidates, Sensitivity
from edge.export.compress.precision import Precision, Rounding, fit, stored_bytes
from edge.export.compress.recipes import Recipe
from edge.export.graph.onnx.blocks import block_size
from edge.export.settings import Limits
from edge.export.weights.names import EMBEDDING, HEAD, canonical_shapes
from edge.runtime.errors import RecipeError
from edge.runtime.spec import ModelSpec

# Symmetric ones beside these make models no better (docs/findings.md), and bundles of two formats hold them twice.
USUAL = tuple(
    Precision.parse(text)
    for text in ("int4-asym-channel", "int4-asym-g128", "int4-asym-g64", "int4-asym-g32", "int8-asym")
)
# NPUs multiply symmetric integers only, with one scale a row or for 128 weights (OpenVINO GenAI on NPU, documentation).
NPU = tuple(Precision.parse(text) for text in ("int4-sym-channel", "int4-sym-g128", "int8-sym"))


def base_recipe(limits: Limits, spec: ModelSpec) -> Recipe:
    """What is fixed before anything is measured: how matrices are rounded, and 8 bits where nothing is chosen.

    Rotated, where it can be: norms behind attention and MLP stand in the way, and a tied head, which would become a
    matrix of its own, for whose bytes all others can have more bits.
    """
    eight = Precision(8, symmetric=limits.device == "NPU")
    rotate = not spec.output_norms and not spec.tied_embeddings
    name = "mixed-rot-gptq" if rotate else "mixed-gptq"
    return Recipe(name, "chosen within a budget", eight, eight, eight, "gptq", rotate=rotate)


def options_of(
    spec: ModelSpec, limits: Limits, fixed: Mapping[str, str | None], *, onnx: bool, awq: bool
) -> dict[str, tuple[Rounding, ...]]:
    """What each matrix may be, smallest first. Raises RecipeError when not even the smallest model fits.

    fixed: the one precision that a matrix gets, if the user wants it. awq: whether channels may be scaled; behind a
    rotation that gains nothing (docs/findings.md), and measuring it takes as long as all else.
    """
    found = {}
    for name, shape in canonical_shapes(spec).items():
        if len(shape) == 1:
            continue
        text = fixed.get(name)
        wanted = (Precision.parse(text),) if text else NPU if limits.device == "NPU" else USUAL
        fitting = dict.fromkeys(fit(precision, shape)[0] for precision in wanted)
        if limits.device == "NPU" and not text:  # a smaller group is none that it has
            fitting = dict.fromkeys(precision for precision in fitting if precision in NPU)
        if onnx:
            fitting = dict.fromkeys(precision for precision in fitting if _onnx_holds(precision, shape))
        choices = [Rounding(precision) for precision in fitting]
        if awq and name not in (EMBEDDING, HEAD):
            choices += [Rounding(precision, awq=True) for precision in fitting if precision.bits == 4]
        found[name] = tuple(sorted(choices, key=lambda choice: stored_bytes(choice.precision, shape)))
    shapes = canonical_shapes(spec)
    least = _vectors(spec) + sum(stored_bytes(found[name][0].precision, shapes[name]) for name in found)
    if limits.max_bytes is not None and least > limits.max_bytes:
        raise RecipeError(
            f"the budget is {limits.max_bytes:,.0f} bytes, the smallest that this model can be is {least:,} bytes of "
            "weights; allow that many, or take a smaller model"
        )
    return found


def _onnx_holds(precision: Precision, shape: tuple[int, ...]) -> bool:
    try:
        block_size("", precision.group_size or shape[1])
    except RecipeError:
        return False
    return True


def decide(
    spec: ModelSpec, options: Candidates, sensitivity: Sensitivity, limits: Limits
) -> tuple[dict[str, Rounding], tuple[str, ...]]:
    """A choice for every matrix, and what was decided. Raises RecipeError where nothing is within the limits."""
    shapes, vectors = canonical_shapes(spec), _vectors(spec)
    names = list(options)
    by_bytes = [
        [Option(stored_bytes(c.precision, shapes[name]), sensitivity.cost(name, c)) for c in options[name]]
        for name in names
    ]
    best = None if limits.max_bytes is None else choose(by_bytes, limits.max_bytes - vectors)
    if limits.max_kld is None:
        assert best is not None, "checked before measuring"
        size, kld, choice = best.weight, best.value, best
    else:
        by_kld = [[Option(option.value, option.weight) for option in of_item] for of_item in by_bytes]
        least = choose(by_kld, limits.max_kld)
        if least is None:
            lowest = sum(min(option.weight for option in of_item) for of_item in by_kld)
            raise RecipeError(
                f"a KLD of {limits.max_kld:g} is asked for, the lowest that 8 bits give this model is about "
                f"{lowest:.2g}; allow that much, or use --recipe fp16"
            )
        if best is not None and least.value + vectors > (limits.max_bytes or 0):
            raise RecipeError(
                f"a KLD of {limits.max_kld:g} takes {int(least.value) + vectors:,} bytes of weights, the budget is "
                f"{limits.max_bytes:,.0f}, which give about {best.value:.3g}; allow more of one of them"
            )
        size, kld, choice = least.value, least.weight, least
    chosen = {name: options[name][i] for name, i in zip(names, choice.indices, strict=True)}
    return chosen, (_asked(limits), _found(int(size) + vectors, kld, choice, sensitivity, len(names)))


def _asked(limits: Limits) -> str:
    parts = [] if limits.max_bytes is None else [f"at most {limits.max_bytes:,.0f} bytes of weights"]
    parts += [] if limits.max_kld is None else [f"a predicted KLD of at most {limits.max_kld:g}"]
    return f"precisions for {limits.device} within {' and '.join(parts)}"


def _found(size: int, kld: float, choice: Choice, sensitivity: Sensitivity, matrices: int) -> str:
    text = f"{size:,} bytes of weights, predicted KLD {kld:.4g} nats/token without what an engine rounds"
    if choice.unit:
        text += f"; the best choice for sizes in units of {choice.unit:.3g}"
    if (measured := len(sensitivity.measured)) < matrices:
        text += f"; effect of {measured} of {matrices} matrices measured, of the others interpolated"
    return text


def _vectors(spec: ModelSpec) -> int:
    """Bytes of norms and biases, which stay float32."""
    return sum(stored_bytes(Precision(32), shape) for shape in canonical_shapes(spec).values() if len(shape) == 1)
