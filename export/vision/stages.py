"""The stages of a picture tower - patches, layers, adapter - compressed, stored and checked, one after the other.

In: a plan, a weight file, a walk. Out: the weight file filled, what is known of every stage, and the golden picture. A
stage is compressed while the one before it is checked in a second thread, as in `export/stages.py`, and an export that
was ended resumes in the same way. Knows nothing about the other files of a bundle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge.export.assignment import Assignment
from edge.export.parallel import one_blas_thread
from edge.export.plan import Plan, tensor_sha256
from edge.export.stages import RESUMED, DoneStage, Progress, to_float
from edge.export.tensors import FloatArray, Weight, as_unsigned
from edge.export.vision.golden import GoldenPicture
from edge.export.vision.names import TowerStage
from edge.export.vision.plan import TowerPlan
from edge.export.vision.proof import TowerVerifier
from edge.export.vision.ranges import larger
from edge.export.walk import Walk
from edge.export.weights.source import ReadWhenNeeded
from edge.export.weights.store import WeightStore
from edge.runtime.errors import TensorError, VerificationError

HIDDEN, LARGEST = "picture", "largest"  # a state of the walk, and an entry of a stage's record


@dataclass(frozen=True)
class CompressedTower:
    """All stages, done."""

    stages: tuple[DoneStage, ...]
    largest: Mapping[str, float]  # magnitudes, by kind
    golden: GoldenPicture


def compress_tower(
    plan: Plan,
    tower: TowerPlan,
    store: WeightStore,
    walk: Walk[TowerStage],
    verifier: TowerVerifier,
    text_bytes: int,
    progress: Callable[[Progress], None],
) -> CompressedTower:
    """Compress all weights of a tower into the store, stage by stage, and check each beside the next one's compression.

    store, walk: from `open_store`. text_bytes: what is written already. The walk never finishes the adapter, whose
    check gives the golden rows.
    """
    from edge.export.compress.nncf import Compressor  # nncf takes seconds to import

    spec, text = tower.spec, plan.assignments.parameters
    stages = [DoneStage.from_json(record) for record in walk.records]
    largest: dict[str, float] = {}
    for record in walk.records:
        largest = larger(largest, record[LARGEST])
    done = np.cumsum([tower.assignments.of_stage(stage).parameters for stage in walk.stages]).tolist()
    resumed = done[len(stages) - 1] if stages else 0
    golden: GoldenPicture | None = None
    compressor = Compressor(plan.weights_at_once)

    def tell(name: str, stage: TowerStage, last: DoneStage, check: bool) -> None:
        layers, total = min(stage.index, spec.num_layers), plan.parameters
        written = text_bytes + last.end
        progress(
            Progress(
                name, layers, spec.num_layers, text + done[stage.index], total, written, text + resumed, last.check
            )
            if check
            else Progress(name, layers, spec.num_layers, text + resumed, total, written, text + resumed, None)
        )

    def keep_and_check(stage: TowerStage, packed: Mapping[str, Weight]) -> DoneStage:
        """Store one stage, check what was stored, and record it. Runs in the second thread."""
        nonlocal golden, largest
        for name, weight in packed.items():
            store.put(name, weight)
        own = stage.own(spec)
        floats = ReadWhenNeeded(tower.weights.read, own)
        try:
            check, golden = verifier.run(stage, floats, {name: store[name] for name in own})
        except VerificationError:
            for name in own:
                tower.weights.check_finite(name)  # or is it the checkpoint?
            raise
        largest = larger(largest, verifier.largest)
        hashes = tensor_sha256(plan.checkpoint, {part for name in own for part in tower.weights.sources[name]})
        record = DoneStage(store.end, {name: store.records[name] for name in own}, check, hashes, store.hash_written())
        if golden is None:
            store.sync()
            known: dict[str, Any] = {**record.to_json(), LARGEST: dict(verifier.largest)}
            walk.finish(stage, known, **{HIDDEN: verifier.hidden})
        return record

    def finish(pending: Future[DoneStage]) -> None:
        stages.append(pending.result())
        stage = walk.stages[len(stages) - 1]
        tell(stage.name, stage, stages[-1], check=True)

    if stages:
        verifier.hidden = np.array(walk.states(HIDDEN))
        tell(RESUMED, walk.stages[len(stages) - 1], stages[-1], check=False)
    with one_blas_thread(), ThreadPoolExecutor(1) as second:
        pending: Future[DoneStage] | None = None
        for stage in walk.remaining:
            own = tower.assignments.of_stage(stage)
            plan.checkpoint.prefetch(part for name in own for part in tower.weights.sources[name])

            def packed_one(name: str, assigned: Assignment) -> Weight:
                weight: FloatArray = tower.weights.read(name)
                if assigned.precision.is_float:
                    return to_float(weight, assigned)
                packed = compressor.compress(name, weight, assigned.precision)
                assert packed.nbytes == assigned.nbytes, f"{name}: {packed.nbytes} bytes, {assigned.nbytes} planned"
                return packed if plan.openvino else as_unsigned(packed)  # ONNX has no signed operators

            packed = {name: packed_one(name, assigned) for name, assigned in own.items()}
            if pending is not None:
                finish(pending)
                plan.checkpoint.release()
            pending = second.submit(keep_and_check, stage, packed)
            del packed
        assert pending is not None, "the adapter is always done"
        finish(pending)
    assert golden is not None
    return CompressedTower(tuple(stages), largest, golden)
