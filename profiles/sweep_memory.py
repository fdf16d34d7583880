"""About how much memory a step of a sweep takes, which a cluster's scheduler is told.

In: a plan and a step of it. Out: bytes that the system cannot drop, of all processes of the step. Measures nothing.
"""

from __future__ import annotations

from edge.export.plan import Plan
from edge.export.space import OF_BLOCK, PACKAGES, memory_bytes
from edge.profiles.kept_rows import ReferenceSettings
from edge.profiles.sweep_plan import SweepPlan
from edge.profiles.sweep_steps import Step
from edge.profiles.worker import SPEED_NEW_TOKENS, SPEED_PROMPT_TOKENS
from edge.runtime.bundle import open_bundle
from edge.runtime.footprint import footprint

# Peaks of the demo model, in MB: the reference 362 of 656 forecast; int8-asym on openvino 664 of 1,009 for accuracy and
# 273 of 779 for speed, on onnx 1,019 of 1,034 for accuracy.
OF_ENGINE = 1.1
OF_HEAD = 8  # bytes for each weight of the vocabulary's matrix in float32: as it is read, and as an engine keeps it
OF_ROW = 16  # bytes for each log-probability that a reference keeps


def step_bytes(plan: SweepPlan, step: Step) -> int:
    """The limit that was given for every step, or else a forecast."""
    if (given := plan.settings.max_memory_bytes) is not None:
        return given
    if step.kind == "reference":
        return PACKAGES + _float_bytes(next(iter(plan.plans.values())))
    if step.kind == "export":
        return memory_bytes(plan.plans[step.recipe])
    engine = _engine_bytes(plan, step)
    settings = ReferenceSettings()
    rows = plan.windows.count * plan.windows.length * (settings.top + settings.samples) * OF_ROW
    if step.kind == "speed":
        return engine
    # The float model is read when the engine has been closed, but what that frees is not all taken again.
    float_model = _float_bytes(plan.plans[step.recipe]) if plan.settings.greedy_tokens else 0
    return engine + rows + float_model


def _engine_bytes(plan: SweepPlan, step: Step) -> int:
    manifest = open_bundle(step.task["bundle"]).manifest
    engine, context = step.task["engine"], plan.windows.length
    if plan.settings.speed:
        context = max(context, SPEED_PROMPT_TOKENS + SPEED_NEW_TOKENS)
    taken = footprint(
        manifest.spec,
        manifest.weight_bytes,
        engine=engine,
        context_tokens=context,
        kv_precision=step.task["kv_precision"] or "f32",
        prefill_chunk=context,
        tensors=manifest.tensors,
    )
    return int(OF_ENGINE * taken.peak) + PACKAGES


def _float_bytes(plan: Plan) -> int:
    """Of the float model, which runs a block at a time."""
    matrices = [assigned for assigned in plan.assignments.values() if assigned.is_matrix]
    block = max(matrix.parameters for matrix in matrices if matrix.in_block)
    vocabulary = max(matrix.parameters for matrix in matrices if not matrix.in_block)
    return max(OF_BLOCK * block, OF_HEAD * vocabulary)
