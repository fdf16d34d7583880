"""A bundle's picture tower, from the plan to its files and its record in the manifest.

In: a plan, the work folder of its export. Out: vision.bin, the graphs over it, the golden picture; and a `MadeTower`.
Its journal is beside that of the text, so that each of the two resumes where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edge.export.graph.tower_runners import OnnxTowerRunner, OpenVINOTowerRunner, TowerRunner
from edge.export.journal import Journal
from edge.export.output import Work, graphs_written
from edge.export.plan import Plan
from edge.export.stages import Progress, done_bytes, open_store
from edge.export.vision.names import stages_of
from edge.export.vision.proof import TowerVerifier
from edge.export.vision.segments import write_segments
from edge.export.vision.stages import TowerStages
from edge.runtime.bundle import VISION_BIN
from edge.runtime.manifest import FileRecord
from edge.runtime.vision.record import VisionRecord


@dataclass(frozen=True)
class MadeTower:
    """What the manifest says of a tower, and what is known of its files."""

    record: VisionRecord | None  # None: the bundle has no tower
    files: Mapping[str, FileRecord]  # as they were written
    sha256: Mapping[str, str]  # of the checkpoint's tensors


def export_tower(plan: Plan, work: Work, text_bytes: int, progress: Callable[[Progress], None]) -> MadeTower:
    """Make the tower's files, if the plan has one. text_bytes: of the text's weights, which are written already.

    Raises TensorError, VerificationError, OutputError and OSError.
    """
    tower = plan.tower
    if tower is None:
        return MadeTower(None, {}, {})
    spec, folder = tower.spec, work.folder
    with open_store(folder / VISION_BIN, _journal(plan, work), stages_of(spec), plan.checkpoint) as (store, walk):
        verifier = TowerVerifier(spec, _runners(plan))
        done = TowerStages(plan, tower, store, walk, verifier, text_bytes, progress).run()
        total, written = plan.parameters, text_bytes + store.end
        progress(Progress("writing pictures", spec.num_layers, spec.num_layers, total, total, written, 0, None))
        with graphs_written(folder):
            segments = write_segments(store, spec, folder, openvino=plan.openvino, onnx=plan.onnx)
        file = FileRecord(store.end, store.hash_written())
    done.golden.write(folder)
    record = VisionRecord(
        spec=spec,
        recipe=tower.recipe.name,
        bits_per_weight=tower.assignments.bits_per_weight,
        weight_bytes=tower.assignments.nbytes,
        segments=segments,
        checks=tuple(stage.check for stage in done.stages),
        largest={kind: float(f"{value:.4g}") for kind, value in sorted(done.largest.items())},
        tensors={name: assigned.record() for name, assigned in tower.assignments.items()},
    )
    hashes = {name: sha256 for stage in done.stages for name, sha256 in stage.sha256.items()}
    return MadeTower(record, {VISION_BIN: file}, hashes)


def tower_done_bytes(plan: Plan, work: Work) -> int:
    """Bytes of vision.bin that are written already."""
    return 0 if plan.tower is None else done_bytes(_journal(plan, work))


def _journal(plan: Plan, work: Work) -> Journal:
    assert plan.tower is not None
    return Journal(work.pictures, plan.key)


def _runners(plan: Plan) -> list[TowerRunner]:
    return [*([OpenVINOTowerRunner()] if plan.openvino else []), *([OnnxTowerRunner()] if plan.onnx else [])]
