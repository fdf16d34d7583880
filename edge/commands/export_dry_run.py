"""What `edge export --dry-run` prints.

In: a `DryRun`. Out: lines on stdout, warnings on stderr.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from edge.commands.console import human_bytes, print_json, print_table
from edge.commands.weight_rows import AS_SAID, alike, shape_text

if TYPE_CHECKING:
    from edge.export.assignment import Assignment, Assignments
    from edge.export.forecast.dry_run import DryRun


def show_dry_run(run: DryRun, out: str) -> None:
    """Print all of it."""
    (_print_options if run.options else _print_assignments)(run)
    print()
    for decision in run.decisions:
        print(f"  {decision}")
    for warning in run.warnings:
        print(f"edge: warning: {warning}", file=sys.stderr)
    parameters = run.assignments.parameters
    if run.tower is not None:
        print(
            f"pictures: {run.tower_recipe}, {run.tower.nbytes:,} bytes of weights, {run.tower.bits_per_weight:.2f} "
            "bits per weight"
        )
    if run.options:
        least, most = (f"{8 * size / parameters:.2f}" for size in (run.least_bytes, run.most_bytes))
        print(
            f"{run.recipe}: {run.least_bytes:,} to {run.most_bytes:,} bytes of weights, {least} to {most} bits per "
            "weight; what each matrix gets is chosen after measuring"
        )
    else:
        print(
            f"{run.recipe}: {run.least_bytes:,} bytes of weights, {run.assignments.bits_per_weight:.2f} bits per weight"
        )
    fewer = "" if run.weights_at_once is None else ", with fewer weights at once than usual"
    print(f"memory: about {human_bytes(run.memory_bytes)} that the system cannot drop, at the peak{fewer}")
    print(
        f"disk: at most {human_bytes(run.bundle_bytes)} for the bundle, {human_bytes(run.peak_bytes)} while it is "
        f"made; {human_bytes(run.free_bytes)} free"
    )
    if not run.fits:
        print("edge: warning: the disk has too little room for this export; free some space", file=sys.stderr)
    measuring = f"about {duration(run.measuring_s)} to measure matrices, then " if run.options else ""
    print(f"time: {measuring}about {duration(run.seconds)}, on this machine as busy as it is now")
    print(f"{out}: nothing was written")


def print_dry_run(run: DryRun, out: str) -> None:
    """The same as one JSON object."""
    print_json(
        {
            "bundle": out,
            "recipe": run.recipe,
            "least_bytes": run.least_bytes,
            "most_bytes": run.most_bytes,
            "bundle_bytes": run.bundle_bytes,
            "peak_bytes": run.peak_bytes,
            "free_bytes": run.free_bytes,
            "memory_bytes": run.memory_bytes,
            "weights_at_once": run.weights_at_once,
            "seconds": round(run.seconds, 1),
            "measuring_seconds": round(run.measuring_s, 1),
            "warnings": list(run.warnings),
            "decisions": list(run.decisions),
            "weights": _weights(run, run.assignments),
            "pictures": None
            if run.tower is None
            else {
                "recipe": run.tower_recipe,
                "weight_bytes": run.tower.nbytes,
                "weights": _weights(run, run.tower),
            },
        }
    )


def _weights(run: DryRun, assignments: Assignments) -> dict[str, dict[str, Any]]:  # Any: JSON
    return {
        name: {
            "shape": list(found.shape),
            "may_become": [str(option) for option in run.options.get(name, (found.precision,))],
            "why": found.note,
        }
        for name, found in assignments.items()
    }


def _print_assignments(run: DryRun) -> None:
    rows = []
    weights = {**run.assignments, **(run.tower or {})}
    for name, names, (shape, precision, scaled, note, _) in alike({n: _said(a) for n, a in weights.items()}):
        size = sum(weights[one].nbytes for one in names)
        rows.append([name, len(names), shape, precision, scaled, human_bytes(size), note])
    print_table(["weight", "count", "shape", "precision", "channels scaled by", "bytes", "why"], rows)


def _said(assigned: Assignment) -> tuple[str, str, str, str, int]:
    scaled = "" if assigned.scaled == "off" else assigned.scaled
    return shape_text(assigned.shape), str(assigned.precision), scaled, assigned.note or AS_SAID, assigned.nbytes


def _print_options(run: DryRun) -> None:
    said = {
        name: (
            shape_text(assigned.shape),
            ", ".join(map(str, run.options.get(name, (assigned.precision,)))),
        )
        for name, assigned in {**run.assignments, **(run.tower or {})}.items()
    }
    rows = [[name, len(names), shape, candidates] for name, names, (shape, candidates) in alike(said)]
    print_table(["weight", "count", "shape", "may become"], rows)


def duration(seconds: float) -> str:
    """About how long, in the unit that a reader would use."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
