"""What `edge inspect` prints of a picture tower.

In: a tower's record in a manifest, or its weights in a checkpoint. Out: lines and a table on stdout, or JSON.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge.export.vision.source import TowerWeights
    from edge.runtime.vision.record import VisionRecord

FLOAT16_MAX = 65504.0


def print_tower(record: VisionRecord) -> None:
    """Its size, its precision, and how well the export's checks went."""
    from edge.commands.console import human_bytes

    parameters = sum(math.prod(tensor.shape) for tensor in record.tensors.values())
    print(
        f"pictures: a tower of {record.spec.num_layers} layers ({record.spec.kind}), {parameters:,} parameters, "
        f"{record.recipe}, {human_bytes(record.weight_bytes)} of weights, {record.bits_per_weight:.2f} bits per "
        f"weight, in {record.segments} segment{'s' if record.segments > 1 else ''}"
    )
    if record.checks:
        worst = max(record.checks, key=lambda check: check.error)
        print(
            f"stages of it checked at export: {len(record.checks)}, the worst {worst.stage}, off by {worst.error:.2g}"
        )


def print_headroom(record: VisionRecord) -> None:
    """How large its values got at export, and what float16 has left above them."""
    from edge.commands.console import print_table

    rows = [
        [kind, f"{largest:.4g}", f"{math.log2(FLOAT16_MAX / largest):.1f}" if largest else ""]
        for kind, largest in sorted(record.largest.items(), key=lambda item: -item[1])
    ]
    print_table(["value of the tower, for the export's own picture", "largest", "bits of float16 headroom"], rows)


def print_source(tower: TowerWeights) -> None:
    """A tower of a checkpoint."""
    from edge.commands.console import human_bytes
    from edge.export.compress.recipes import FOR_TOWERS, NO_TOWER

    found = tower_json(tower)
    print(
        f"pictures: a tower of {tower.spec.num_layers} layers ({tower.spec.kind}), {found['parameters']:,} parameters; "
        f"{human_bytes(found['weight_bytes'])} more at {FOR_TOWERS}, or nothing with --pictures {NO_TOWER}"
    )


def tower_json(tower: TowerWeights) -> dict[str, Any]:  # Any: JSON
    """The same for programs."""
    from edge.export.compress.recipes import tower_recipe
    from edge.export.vision.assign import assign_tower

    assignments = assign_tower(tower_recipe(None), tower.spec, onnx=False)
    return {
        "spec": tower.spec.to_json(),
        "tensors": sum(len(parts) for parts in tower.parts.values()),
        "parameters": assignments.parameters,
        "weight_bytes": assignments.nbytes,
    }
