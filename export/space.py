"""What an export takes: bytes on the disk, and memory.

In: a plan. Out: numbers of bytes. Measures nothing; figures of memory are a rule that measured exports keep to.
"""

from __future__ import annotations

from edge.export.compress.calibration import WINDOW, WINDOWS
from edge.export.plan import Plan
from edge.export.proof import GOLDEN_TOKENS, STREAMS

SIDECAR_BYTES = 64_000_000  # at most, of a bundle's files that are no weights; a tokenizer for 151,552 tokens has 35 MB
# Of memory that the system cannot drop: what packages take, and what a weight takes that is worked on, by where it is.
# Peaks of exports without text: 2.26 GB at GLM-4-9B's widths, 0.52 GB of the demo model; with text 5.5 and 0.74.
PACKAGES, OF_BLOCK, OF_VOCABULARY = 430_000_000, 16, 3


def bundle_bytes(plan: Plan, weights: int) -> int:
    """About what a bundle with this many bytes of weights takes, at most."""
    return _weight_files(plan, weights) + SIDECAR_BYTES


def least_bytes(plan: Plan) -> int:
    """What is certain to be written before a bundle is complete, of the precisions that the plan has."""
    return _weight_files(plan, plan.assignments.nbytes) + work_bytes(plan)


def _weight_files(plan: Plan, weights: int) -> int:
    signed = plan.assignments.signed_bytes  # for a budget, that of all matrices in 8 bits
    return weights + (min(signed, weights) if plan.format == "both" else 0)


def work_bytes(plan: Plan) -> int:
    """What hidden states take, at most, while the bundle is made: those of a stage, and of the stage before it."""
    calibrated = 0 if plan.calibration is None else WINDOWS * WINDOW * (2 if plan.recipe.method == "gptq" else 1)
    return 2 * 4 * plan.spec.hidden_size * (STREAMS * GOLDEN_TOKENS + calibrated)


def memory_bytes(plan: Plan) -> int:
    """About the peak of anonymous memory."""
    matrices = [assigned for assigned in plan.assignments.values() if assigned.is_matrix]
    block = max(matrix.parameters for matrix in matrices if matrix.in_block)
    vocabulary = max(matrix.parameters for matrix in matrices if not matrix.in_block)
    size = PACKAGES + max(OF_BLOCK * block, OF_VOCABULARY * vocabulary)
    if plan.calibration is not None:  # the text beside the widest matrices, and the moments of the widest inputs
        spec = plan.spec
        size += 4 * WINDOWS * WINDOW * 2 * (spec.intermediate_size + spec.hidden_size) + 4 * spec.intermediate_size**2
    return size
