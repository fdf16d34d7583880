"""The two steps that make an export safe for float16: folds before compression, and a judgement of what was written.

In: a plan for a device that computes in float16, tokens of text, and later the weight file. Out: the plan with its
weights folded; a `Float16Record` for the manifest, and warnings. The measured ranges are kept beside an interrupted
export's work; the journal has a digest of the folds, so that stages which were made with others are never continued.
Knows nothing about how a matrix is compressed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge.export.float16.choose import choose, folded, headroom, left
from edge.export.float16.folds import Folds
from edge.export.float16.ranges import SMALLEST, RangeBuilder, Ranges, measure
from edge.export.float16.targets import KLD_BOUND, TARGETS
from edge.export.graph import decoder
from edge.export.graph.emulated import EmulatedBuilder
from edge.export.journal import Journal, keep, read_kept
from edge.export.plan import Plan
from edge.export.stages import Progress
from edge.export.tensors import PackedTensor, Weight
from edge.export.weights.source import ReadWhenNeeded
from edge.runtime.differences import kl_divergence
from edge.runtime.errors import RecipeError
from edge.runtime.float16_record import MOST_BITS, Float16Record
from edge.runtime.spec import ModelSpec

WINDOW, WINDOWS = 128, 2  # tokens that ranges are measured on
JUDGED = 32  # of them, that the emulated run computes
KEPT = "ranges.json"
FOLDS = "folds"  # a fact of the journal
LITTLE = 1.0  # bits of headroom, below which an export warns


Ids = npt.NDArray[np.int64]


def fold(plan: Plan, ids: Ids, kept: Path, journal: Journal, progress: Callable[[Progress], None]) -> Folded:
    """The plan with folds that its device needs, by what its weights give on tokens (n, T).

    kept: the folder of files that outlast an interrupted export. Raises RecipeError.
    """
    path, key = kept / KEPT, plan.key
    ranges = read_kept(path, key, Ranges.from_json)
    if ranges is None:
        total, layers = plan.spec.num_parameters, plan.spec.num_layers

        def show(blocks: int) -> None:
            plan.checkpoint.release()
            progress(Progress("measuring ranges", blocks, layers, total * blocks // (layers + 1), total, 0, 0, None))

        precisions = {name: assigned.precision for name, assigned in plan.assignments.items()}
        ranges = measure(ReadWhenNeeded(plan.weights.read, plan.assignments), ids, plan.spec, precisions, show)
        if not all(map(math.isfinite, ranges.kinds.values())):
            raise RecipeError("text gives activations that are NaN or infinite in float32; is the checkpoint damaged?")
        keep(path, key, ranges.to_json())
    recipe = plan.recipe
    moved = recipe.awq != "off" or recipe.calibrated or bool(recipe.choices)
    folds = choose(ranges, plan.spec, safe_norms=TARGETS[plan.device].safe_norms, moved=moved)
    digest = hashlib.sha256(json.dumps(folds.to_json()).encode()).hexdigest()
    if journal.facts.get(FOLDS, digest) != digest:
        journal.forget_steps()
    journal.note(FOLDS, digest)
    return Folded(plan.folded(folds), folds, folded(ranges, folds), ids)


@dataclass(frozen=True)
class Folded:
    """A plan with folded weights, and what is known of it."""

    plan: Plan
    folds: Folds
    ranges: Ranges  # of the folded weights before they are compressed
    ids: Ids

    def judge(
        self, store: Mapping[str, Weight], progress: Callable[[Progress], None]
    ) -> tuple[Float16Record, tuple[str, ...]]:
        """What was written, computed as the device would and in float32; and warnings about it."""
        spec, numerics = self.plan.spec, TARGETS[self.plan.device].numerics
        precisions = {name: assigned.precision for name, assigned in self.plan.assignments.items()}
        exact, device = RangeBuilder(store, spec, precisions), EmulatedBuilder(store, spec, numerics)
        tokens = self.ids.reshape(1, -1)[:, :JUDGED]
        expected, found = exact.embedding(tokens, "embed"), device.embedding(tokens, "embed")
        total, layers = spec.num_parameters, spec.num_layers
        for layer in range(layers):
            expected = decoder.block(exact, expected, layer, spec)
            found = decoder.block(device, found, layer, spec)
            progress(Progress("checking float16", layer + 1, layers, total, total, 0, total, None))
        expected, found = decoder.head(exact, expected, spec), decoder.head(device, found, spec)
        largest = self.ranges.kinds
        for kind, value in exact.taken()[0].items():
            largest[kind] = max(largest.get(kind, 0.0), value)
        kld = kl_divergence(expected[0], found[0]) if np.isfinite(found).all() else None
        record = self._record(largest, kld)
        near = [text for kind, text in left(largest).items() if record.headroom[kind] < LITTLE]
        return record, (*_lost(self.folds, store, spec), *_warnings(record, device.not_finite, near))

    def _record(self, largest: Mapping[str, float], kld: float | None) -> Float16Record:
        folds, text = self.folds, self.plan.range_text
        assert text is not None, "folds are chosen by text"
        return Float16Record(
            device=self.plan.device,
            norms="safe" if folds.safe_norms else "plain",
            residual=folds.residual,
            output=folds.output,
            head=folds.head,
            up=folds.up,
            values=folds.values,
            qkv=folds.qkv,
            gate_up=folds.gate_up,
            headroom={
                kind: round(max(min(headroom(value), MOST_BITS), -MOST_BITS), 2) for kind, value in largest.items()
            },
            left=tuple(left(largest).values()),
            numerics=TARGETS[self.plan.device].numerics.name,
            kld=kld,
            bound=KLD_BOUND,
            text=f"{text.name}, sha256 {text.sha256}",
        )


def _warnings(record: Float16Record, not_finite: list[str], near: list[str]) -> tuple[str, ...]:
    advice = f"measure it on the {record.device} before you rely on it, or use the CPU"
    if record.kld is None:
        return (f"emulated float16 is not finite, first in {not_finite[0]}: answers may be garbage; {advice}",)
    if record.kld > record.bound:
        return (
            f"emulated float16 is off by a KLD of {record.kld:.2g} nats/token, expected {record.bound:g} or less; "
            f"{advice}",
        )
    return tuple(f"near the end of float16: {text}" for text in near)


def _lost(folds: Folds, store: Mapping[str, Weight], spec: ModelSpec) -> tuple[str, ...]:
    """A warning where folds cost scales some of their bits, which they are chosen not to."""
    lost = 0
    for name, weight in store.items():
        if isinstance(weight, PackedTensor):
            for rows, exponent in folds.rows(name, spec):
                scales = np.abs(weight.scale[rows].astype(np.float32))
                before = scales * np.float32(2.0**-exponent)
                lost += int(((scales < SMALLEST) & (before >= SMALLEST)).sum())
    return (f"{lost:,} scales of groups are so small after folds that float16 rounds them",) if lost else ()
