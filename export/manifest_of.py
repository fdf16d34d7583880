"""The manifest of a finished bundle, whatever made its graphs.

In: what every weight was assigned, what the export found out, and the bundle's folder. Out: the `Manifest`. Writes
nothing, and knows nothing about checkpoints or recipes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edge.export.assignment import Assignments
from edge.export.text.corpus import Corpus
from edge.runtime import bundle
from edge.runtime.files import real_path
from edge.runtime.float16_record import Float16Record
from edge.runtime.manifest import SCHEMA_VERSION, FileRecord, Manifest
from edge.runtime.spec import ModelSpec
from edge.runtime.tensor_records import StageCheck
from edge.runtime.vision.record import VisionRecord


def make_manifest(
    *,
    source: str,
    source_sha256: str,
    spec: ModelSpec,
    recipe: str,
    assignments: Assignments,
    stop_ids: tuple[int, ...],
    golden_kld: float,
    warnings: tuple[str, ...],
    checks: tuple[StageCheck, ...],
    folder: Path,
    versions: Mapping[str, str],
    decisions: tuple[str, ...] = (),
    adapter: Path | None = None,
    calibration: Corpus | None = None,
    hashed: Mapping[str, FileRecord] | None = None,
    float16: Float16Record | None = None,
    vision: VisionRecord | None = None,
) -> Manifest:
    """Everything that `manifest.json` says. hashed: files of the folder whose digests are known already."""
    files = dict(hashed or {})
    for path in folder.iterdir():
        if path.is_file() and path.name not in (*files, bundle.MANIFEST):
            files[path.name] = bundle.record_of(path)
    return Manifest(
        schema_version=SCHEMA_VERSION,
        source=source,
        source_sha256=source_sha256,
        spec=spec,
        recipe=recipe,
        weight_group_size=assignments.group_size,
        stop_token_ids=tuple(i for i in stop_ids if i < spec.vocab_size),  # no model can give any other
        bits_per_weight=assignments.bits_per_weight,
        weight_bytes=assignments.nbytes,
        golden_kld=golden_kld,
        warnings=warnings,
        decisions=decisions,
        adapter="" if adapter is None else real_path(adapter).name,
        calibration="" if calibration is None else f"{calibration.name}, sha256 {calibration.sha256}",
        checks=checks,
        tensors={name: assigned.record() for name, assigned in assignments.items()},
        files=dict(sorted(files.items())),
        versions=versions,
        float16=float16,
        vision=vision,
    )
