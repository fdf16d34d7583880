"""What an export takes: bytes on the disk, and memory.

In: a plan. Out: numbers of bytes. Measures nothing; figures of memory are a rule that measured exports keep to.
"""

from __future__ import annotations

from dataclasses import replace

from edge.export.compress.calibration import WINDOW, WINDOWS
from edge.export.compress.precision import CHUNK, WHOLE
from edge.export.plan import Plan
from edge.export.proof import GOLDEN_TOKENS, STREAMS
from edge.export.vision.golden import SIDE
from edge.runtime.errors import MemoryLimitError
from edge.runtime.machine import anonymous_bytes, memory_limits
from edge.runtime.notices import notice
from edge.runtime.sizes import human_bytes

SIDECAR_BYTES = 64_000_000  # at most, of a bundle's files that are no weights; a tokenizer for 151,552 tokens has 35 MB
# Of memory that the system cannot drop: what packages take, and what a weight takes that is worked on, by where it is.
# Peaks of exports without text: 2.33 GB at GLM-4-9B's widths, 1.16 at half of them, 0.43 of the demo model; with 2^22
# weights at once 1.51, 0.68 GB; with text 5.5 and 0.74.
PACKAGES, OF_BLOCK, OF_VOCABULARY = 430_000_000, 16, 3
CONVERTER = 95_000_000  # of the process beside this one that converts the tokenizer; 90 MB for the demo model's
OF_PART, OF_PART_OF_BLOCK, OF_ROUNDED = 2, 12, 9  # of a matrix that is rounded in parts, and of a part
AT_ONCE = (None, 1 << 24, 1 << 22)  # weights that are rounded together; None: as many as is fastest
CERTAIN = 0.6  # share of a forecast that an export takes for sure
STARTED = 70_000_000  # bytes that a process has taken when it has done nothing but start


def bundle_bytes(plan: Plan, weights: int) -> int:
    """About what a bundle with this many bytes of weights of the text model takes, at most."""
    return _weight_files(plan, weights) + SIDECAR_BYTES


def least_bytes(plan: Plan) -> int:
    """What is certain to be written before a bundle is complete, of the precisions that the plan has."""
    return _weight_files(plan, plan.assignments.nbytes) + work_bytes(plan)


def _weight_files(plan: Plan, weights: int) -> int:
    signed = plan.assignments.signed_bytes  # for a budget, that of all matrices in 8 bits
    twice = min(signed, weights) if plan.format == "both" else 0
    return weights + twice + tower_bytes(plan)


def tower_bytes(plan: Plan) -> int:
    """Of the picture tower's weights on the disk."""
    if plan.tower is None:
        return 0
    own = plan.tower.assignments
    return own.nbytes + (own.signed_bytes if plan.format == "both" else 0)


def work_bytes(plan: Plan) -> int:
    """What hidden states take, at most, while the bundle is made: those of a stage, and of the stage before it."""
    calibrated = 0 if plan.calibration is None else WINDOWS * WINDOW * (2 if plan.recipe.method == "gptq" else 1)
    pictures = 0 if plan.tower is None else 2 * (SIDE**2 + 1) * plan.tower.spec.hidden_size
    return 2 * 4 * (plan.spec.hidden_size * (STREAMS * GOLDEN_TOKENS + calibrated) + pictures)


def memory_bytes(plan: Plan) -> int:
    """About the peak of anonymous memory, of all processes of an export."""
    tables = [plan.assignments, *([] if plan.tower is None else [plan.tower.assignments])]
    matrices = [assigned for table in tables for assigned in table.values() if assigned.is_matrix]
    block = max(matrix.parameters for matrix in matrices if matrix.in_block)
    vocabulary = max(matrix.parameters for matrix in matrices if not matrix.in_block)
    part, whole = plan.weights_at_once or CHUNK, plan.weights_at_once or WHOLE
    in_parts = OF_PART * vocabulary + OF_ROUNDED * part
    of_vocabulary = min(OF_VOCABULARY * vocabulary, in_parts) if vocabulary <= WHOLE else in_parts
    of_block = OF_BLOCK * block if block <= whole else OF_PART_OF_BLOCK * block + OF_ROUNDED * part
    size = max(of_block, of_vocabulary)
    if plan.calibration is not None:  # the text beside the widest matrices, and the moments of the widest inputs
        spec = plan.spec
        size += 4 * WINDOWS * WINDOW * 2 * (spec.intermediate_size + spec.hidden_size) + 4 * spec.intermediate_size**2
    return PACKAGES + CONVERTER * plan.openvino + size


def within_memory(plan: Plan, given: int | None) -> Plan:
    """The plan, with as many weights at once as fit into the memory given, or else into what is free.

    Raises MemoryLimitError if even the fewest do not; where no limit was given, only if no export could do with less.
    """
    limits = [limit for limit in memory_limits() if not limit.addresses]
    tightest = min(limits, key=lambda limit: limit.left_bytes, default=None)
    taken = max((anonymous_bytes() or 0) - STARTED, 0)  # by whatever else this process does
    if given is None and tightest is None:
        return plan
    room = (tightest.left_bytes if given is None and tightest is not None else given or 0) - taken * (given is not None)
    choices = [replace(plan, weights_at_once=at_once) for at_once in AT_ONCE]
    fitting = next((choice for choice in choices if memory_bytes(choice) <= room), None)
    if fitting is not None:
        return fitting
    smallest = choices[-1]
    needed = f"this export takes about {human_bytes(memory_bytes(smallest))} of memory with the fewest weights at once"
    if given is not None:
        used = f", beside {human_bytes(taken)} that this process has taken" if taken else ""
        raise MemoryLimitError(
            f"{needed}{used}, and max_memory_bytes is {human_bytes(given)}; raise it, or export on a "
            "machine with more; nothing was written"
        )
    assert tightest is not None
    free = (
        f"{human_bytes(tightest.left_bytes)} are free (limit of {tightest.name}: {human_bytes(tightest.total_bytes)})"
    )
    if any(memory_bytes(smallest) * CERTAIN > limit.most_bytes for limit in limits):
        raise MemoryLimitError(
            f"{needed}, and {free}; end other programs, raise that limit, or export on another machine; to try it "
            f"all the same, give max_memory_bytes, like {human_bytes(memory_bytes(smallest)).replace(' ', '')}; "
            "nothing was written"
        )
    notice(f"{needed}, and {free}; it may become very slow, or be ended by the system")
    return smallest
