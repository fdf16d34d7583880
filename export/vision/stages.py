"""The stages of a picture tower - patches, layers, adapter - compressed, stored and checked, one after the other.

In: a plan, a weight file, a walk. Out: the weight file filled, what is known of every stage, and the golden picture. A
stage is compressed while the one before it is checked in a second thread, as in `export/stages.py`, and an export that
was ended resumes in the same way. Knows nothing about the other files of a bundle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge.export.parallel import one_blas_thread
from edge.export.plan import Plan, tensor_sha256
from edge.export.stages import RESUMED_PICTURES, DoneStage, Progress, to_float
from edge.export.tensors import Weight, as_unsigned
from edge.export.vision.golden import GoldenPicture
from edge.export.vision.names import TowerStage
from edge.export.vision.plan import TowerPlan
from edge.export.vision.proof import TowerVerifier
from edge.export.vision.ranges import larger
from edge.export.walk import Walk
from edge.export.weights.source import ReadWhenNeeded
from edge.export.weights.store import WeightStore
from edge.runtime.errors import VerificationError

if TYPE_CHECKING:
    from edge.export.compress.nncf import Compressor

HIDDEN, LARGEST = "picture", "largest"  # a state of the walk, and an entry of a stage's record


@dataclass(frozen=True)
class CompressedTower:
    """All stages, done."""

    stages: tuple[DoneStage, ...]
    largest: Mapping[str, float]  # magnitudes, by kind
    golden: GoldenPicture


class TowerStages:
    """Compresses a tower into a store, stage by stage, and checks each beside the next one's compression.

    store, walk: from `open_store`. text_bytes: what is written already. The walk never finishes the adapter, whose
    check gives the golden rows.
    """

    def __init__(
        self,
        plan: Plan,
        tower: TowerPlan,
        store: WeightStore,
        walk: Walk[TowerStage],
        verifier: TowerVerifier,
        text_bytes: int,
        progress: Callable[[Progress], None],
    ) -> None:
        self._plan, self._tower, self._store, self._walk, self._verifier = plan, tower, store, walk, verifier
        self._text_bytes, self._progress = text_bytes, progress
        self._stages = [DoneStage.from_json(record) for record in walk.records]
        self._largest: dict[str, float] = {}
        for record in walk.records:
            self._largest = larger(self._largest, record[LARGEST])
        text = plan.assignments.parameters
        own = [tower.assignments.of_stage(stage).parameters for stage in walk.stages]
        self._done = [text, *(text + np.cumsum(own)).tolist()]  # parameters, by the number of stages
        self._resumed = self._done[len(self._stages)]
        self._golden: GoldenPicture | None = None

    def run(self) -> CompressedTower:
        """Do what is left. Raises TensorError, VerificationError and OSError."""
        from edge.export.compress.nncf import Compressor  # nncf takes seconds to import

        compressor = Compressor(self._plan.weights_at_once)
        if self._stages:
            self._verifier.hidden = np.array(self._walk.states(HIDDEN))
            self._tell(RESUMED_PICTURES)
        with one_blas_thread(), ThreadPoolExecutor(1) as second:
            pending: Future[DoneStage] | None = None
            for stage in self._walk.remaining:
                packed = self._pack(stage, compressor)
                if pending is not None:
                    self._finish(pending)
                pending = second.submit(self._keep_and_check, stage, packed)
                del packed
            assert pending is not None, "the adapter is always done"
            self._finish(pending)
        assert self._golden is not None
        return CompressedTower(tuple(self._stages), self._largest, self._golden)

    def _pack(self, stage: TowerStage, compressor: Compressor) -> dict[str, Weight]:
        """The weights of a stage, each as the plan assigns it."""
        own, source = self._tower.assignments.of_stage(stage), self._tower.weights
        self._plan.checkpoint.prefetch(part for name in own for part in source.sources[name])
        packed: dict[str, Weight] = {}
        for name, assigned in own.items():
            weight = source.read(name)
            if assigned.precision.is_float:
                packed[name] = to_float(weight, assigned)
                continue
            found = compressor.compress(name, weight, assigned.precision)
            assert found.nbytes == assigned.nbytes, f"{name}: {found.nbytes} bytes, {assigned.nbytes} planned"
            packed[name] = found if self._plan.openvino else as_unsigned(found)  # ONNX has no signed operators
        return packed

    def _keep_and_check(self, stage: TowerStage, packed: Mapping[str, Weight]) -> DoneStage:
        """Store one stage, check what was stored, and record it. Runs in the second thread."""
        store, source, verifier = self._store, self._tower.weights, self._verifier
        for name, weight in packed.items():
            store.put(name, weight)
        own = stage.own(self._tower.spec)
        try:
            check, self._golden = verifier.run(
                stage, ReadWhenNeeded(source.read, own), {name: store[name] for name in own}
            )
        except VerificationError:
            for name in own:
                source.check_finite(name)  # or is it the checkpoint?
            raise
        self._largest = larger(self._largest, verifier.largest)
        hashes = tensor_sha256(self._plan.checkpoint, {part for name in own for part in source.sources[name]})
        record = DoneStage(store.end, {name: store.records[name] for name in own}, check, hashes, store.hash_written())
        if self._golden is None:
            store.sync()
            known = {**record.to_json(), LARGEST: dict(verifier.largest)}
            self._walk.finish(stage, known, **{HIDDEN: verifier.hidden})
        return record

    def _finish(self, pending: Future[DoneStage]) -> None:
        self._stages.append(pending.result())
        self._plan.checkpoint.release()
        self._tell(self._walk.stages[len(self._stages) - 1].name)

    def _tell(self, name: str) -> None:
        """How far the tower is; name: of the stage that is done, or RESUMED_PICTURES."""
        last, layers = self._stages[-1], self._tower.spec.num_layers
        self._progress(
            Progress(
                stage=name,
                blocks=min(len(self._stages) - 1, layers),
                num_blocks=layers,
                done=self._done[len(self._stages)],
                total=self._plan.parameters,
                written=self._text_bytes + last.end,
                resumed=self._resumed,
                check=None if name == RESUMED_PICTURES else last.check,
            )
        )
