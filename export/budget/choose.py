"""Mixed precision: the best model within a budget of bytes, or the smallest one within a budget of KLD.

In: limits, what the base recipe gives every weight, and what every choice would cost (`sensitivity`). Out: for every
matrix its precision and whether its channels are scaled, and the decisions in words. The choice is exact (`knapsack`);
the predicted KLD that it is based on is a sum over matrices of what each costs alone, without what an engine rounds.
Knows nothing about files, or about how costs were measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from edge.export.assignment import Assignment, Assignments
from edge.export.budget.knapsack import Choice, Option, choose
from edge.export.budget.sensitivity import Candidates, Sensitivity
from edge.export.compress.precision import Precision, Rounding, fit, stored_bytes
from edge.export.compress.recipes import Recipe
from edge.export.graph.onnx.blocks import block_size
from edge.export.settings import Format, Limits
from edge.export.weights.rotation import is_rotatable
from edge.runtime.errors import RecipeError
from edge.runtime.lint import Finding, suits
from edge.runtime.spec import ModelSpec

# Symmetric ones beside these make models no better (docs/findings.md), and bundles of two formats hold them twice.
USUAL = tuple(
    Precision.parse(text)
    for text in (
        "int4-asym-channel",
        "int4-asym-g256",
        "int4-asym-g128",
        "int4-asym-g64",
        "int4-asym-g32",
        "int8-asym",
    )
)
# In blocks, of bundles for ONNX Runtime alone. Zero points take bytes and gain nothing here, larger groups have no
# kernel, and smaller ones take as long as 4 bits (docs/findings.md).
FEWEST = (Precision.parse("int2-sym-g128"),)
# Of these, the rules of `edge verify --device NPU` say which suit a matrix: 4 bits alone in blocks, for example.
NPU = tuple(Precision.parse(text) for text in ("int4-sym-channel", "int4-sym-g128", "int8-sym"))


def base_recipe(limits: Limits, spec: ModelSpec) -> Recipe:
    """What is fixed before anything is measured: how matrices are rounded, and 8 bits where nothing is chosen.

    Rotated, where the model can be. A tied head would become a matrix of its own, for whose bytes all other matrices
    can have more bits.
    """
    eight = Precision(8, symmetric=limits.device == "NPU")
    rotate = is_rotatable(spec) and not spec.tied_embeddings
    name = "mixed-rot-gptq" if rotate else "mixed-gptq"
    return Recipe(name, "chosen within a budget", eight, eight, eight, "gptq", rotate=rotate)


def options_of(
    assignments: Assignments,
    limits: Limits,
    fixed: Mapping[str, str | None],
    *,
    spec: ModelSpec,
    formats: Format,
    awq: bool,
) -> dict[str, tuple[Rounding, ...]]:
    """What each matrix may be, smallest first.

    Raises RecipeError when not even the smallest model fits, and when a matrix has no form that suits the device.

    assignments: by the base recipe. fixed: the one precision that a matrix gets, if the user wants it. awq: whether
    channels may be scaled; after a rotation that gains nothing (docs/findings.md), and measuring it takes as long
    as everything else.
    """
    found = {
        name: _options(a, limits, fixed.get(name), spec, formats, awq=awq)
        for name, a in assignments.items()
        if a.is_matrix
    }
    least, _ = bounds(assignments, found)
    if limits.max_bytes is not None and least > limits.max_bytes:
        smaller = "" if formats == "onnx" or limits.device != "CPU" else "give --format onnx, which allows 2 bits, "
        raise RecipeError(
            f"the budget is {limits.max_bytes:,.0f} bytes, the smallest that this model can be is {least:,} bytes of "
            f"weights; {smaller}allow that many, or take a smaller model"
        )
    return found


def bounds(assignments: Assignments, options: Candidates) -> tuple[int, int]:
    """Bytes of the smallest and of the largest model that can be made of the options."""
    least, most = (
        sum(_bytes(options[name][end], a) if name in options else a.nbytes for name, a in assignments.items())
        for end in (0, -1)
    )
    return least, most


def _options(
    matrix: Assignment, limits: Limits, fixed: str | None, spec: ModelSpec, formats: Format, *, awq: bool
) -> tuple[Rounding, ...]:
    wanted = (Precision.parse(fixed),) if fixed else NPU if limits.device == "NPU" else USUAL
    if formats == "onnx" and limits.device == "CPU" and matrix.in_block:
        wanted = FEWEST + wanted
    fitting = dict.fromkeys(fit(precision, matrix.shape)[0] for precision in wanted)
    if limits.device != "CPU" and not fixed:
        fitting = _suited(matrix, fitting, limits.device, spec)
    if formats != "openvino":
        fitting = dict.fromkeys(precision for precision in fitting if _onnx_holds(precision, matrix.shape))
    choices = [Rounding(precision) for precision in fitting]
    if awq and matrix.in_block:
        choices += [Rounding(precision, awq=True) for precision in fitting if precision.is_narrow]
    return tuple(sorted(choices, key=lambda choice: _bytes(choice, matrix)))


def _suited(matrix: Assignment, fitting: Iterable[Precision], device: str, spec: ModelSpec) -> dict[Precision, None]:
    """Those that a device takes for this matrix. Raises RecipeError if there is none."""
    wrong: dict[Precision, tuple[Finding, ...]] = {}
    for precision in fitting:
        record = replace(matrix, precision=precision).record()
        wrong[precision] = suits(spec, {matrix.name: record}, device)
    if all(wrong.values()):
        reasons = "; ".join(f"as {precision}, {found[0].message}" for precision, found in wrong.items())
        raise RecipeError(
            f"{matrix.name} has no form for {'a' if device == 'GPU' else 'an'} {device}: {reasons}; leave out --device"
        )
    return dict.fromkeys(precision for precision, found in wrong.items() if not found)


def _bytes(choice: Rounding, matrix: Assignment) -> int:
    """Bytes that a matrix would take."""
    return stored_bytes(choice.precision, matrix.shape)


def _onnx_holds(precision: Precision, shape: tuple[int, ...]) -> bool:
    try:
        block_size("", precision.group_size or shape[1])
    except RecipeError:
        return False
    return True


def decide(
    assignments: Assignments, options: Candidates, sensitivity: Sensitivity, limits: Limits
) -> tuple[dict[str, Rounding], tuple[str, ...]]:
    """A choice for every matrix, and what was decided. Raises RecipeError where nothing is within the limits.

    assignments: by the base recipe, which decide on everything that has no options.
    """
    names = list(options)
    others = sum(found.nbytes for name, found in assignments.items() if name not in options)  # norms and biases
    by_bytes = [
        [Option(_bytes(c, assignments[name]), sensitivity.cost(name, c)) for c in options[name]] for name in names
    ]
    best = None if limits.max_bytes is None else choose(by_bytes, limits.max_bytes - others)
    if limits.max_kld is None:
        assert best is not None, "checked before measuring"
        size, kld, choice = best.weight, best.value, best
    else:
        by_kld = [[Option(option.value, option.weight) for option in of_item] for of_item in by_bytes]
        least = choose(by_kld, limits.max_kld)
        if least is None:
            lowest = sum(min(option.weight for option in of_item) for of_item in by_kld)
            bits = "4 bits, which an NPU needs," if limits.device == "NPU" else "8 bits"
            raise RecipeError(
                f"a KLD of {limits.max_kld:g} is asked for, the lowest that {bits} give this model is about "
                f"{lowest:.2g}; allow that much, or use --recipe fp16"
            )
        if best is not None and least.value + others > (limits.max_bytes or 0):
            raise RecipeError(
                f"a KLD of {limits.max_kld:g} takes {int(least.value) + others:,} bytes of weights, the budget is "
                f"{limits.max_bytes:,.0f}, which give about {best.value:.3g}; allow more of one of them"
            )
        size, kld, choice = least.value, least.weight, least
    chosen = {name: options[name][i] for name, i in zip(names, choice.indices, strict=True)}
    return chosen, (_asked(limits), _found(int(size) + others, kld, choice, sensitivity, len(names)))


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
