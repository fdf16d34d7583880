"""An export told before it happens: what every weight gets, how much disk it takes and about how long.

In: a source, settings, the place of the bundle. Out: a `DryRun`. Everything that an export would refuse at its start is
refused here as well. Writes nothing, downloads nothing, and measures no model.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edge.export.assignment import Assignments
from edge.export.budget.choose import bounds
from edge.export.compress.precision import Rounding
from edge.export.destination import find_destination
from edge.export.forecast.rehearsal import expected_seconds
from edge.export.pipeline import check_arguments
from edge.export.plan import Plan, make_plan
from edge.export.settings import ExportSettings, Limits
from edge.export.space import bundle_bytes, memory_bytes, within_memory, work_bytes
from edge.runtime.extras import missing_packages_named


@dataclass(frozen=True)
class DryRun:
    """What an export would do."""

    recipe: str
    assignments: Assignments  # for a budget: of everything that it does not choose, and 8 bits elsewhere
    limits: Limits | None
    options: Mapping[str, tuple[Rounding, ...]]  # what a budget chooses from, by matrix; empty for a recipe
    least_bytes: int  # of the text model's weights
    most_bytes: int  # of these; the same as least_bytes but for a budget
    bundle_bytes: int  # at most, of the whole bundle
    peak_bytes: int  # at most, while it is made
    tower: Assignments | None  # of the picture tower, of models that see
    tower_recipe: str  # "" without one
    free_bytes: int  # on the disk of the bundle
    memory_bytes: int  # about, at its peak, that the system cannot drop
    weights_at_once: int | None  # fewer than usual where memory is scarce; None: as many as is fastest
    seconds: float  # about, without those of measuring
    measuring_s: float  # about; 0 but for a budget
    warnings: tuple[str, ...]
    decisions: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether the disk has room for it."""
        return self.peak_bytes <= self.free_bytes


@missing_packages_named("export")
def dry_run(settings: ExportSettings, source: str | Path, out: str | Path) -> DryRun:
    """What exporting `source` to `out` with these settings would do. Raises what the export would at its start.

    A model of a hub has to be on the disk already.
    """
    check_arguments(source, out, None)
    find_destination(Path(out)).check(settings.force)
    plan = within_memory(make_plan(source, settings, download=False), settings.max_memory_bytes)
    return forecast(plan, Path(out))


def forecast(plan: Plan, out: Path) -> DryRun:
    """What exporting this plan to `out` would do. Takes about a second, with text two."""
    least = most = plan.assignments.nbytes
    if plan.options:
        least, most = bounds(plan.assignments, plan.options)
        if plan.limits is not None and plan.limits.max_bytes is not None:
            most = min(most, int(plan.limits.max_bytes))
    whole = bundle_bytes(plan, most)
    seconds, measuring_s = expected_seconds(plan)
    return DryRun(
        recipe=plan.recipe.name,
        assignments=plan.assignments,
        limits=plan.limits,
        options=plan.options,
        least_bytes=least,
        most_bytes=most,
        bundle_bytes=whole,
        peak_bytes=whole + work_bytes(plan),
        tower=None if plan.tower is None else plan.tower.assignments,
        tower_recipe="" if plan.tower is None else plan.tower.recipe.name,
        free_bytes=shutil.disk_usage(_there(out)).free,
        memory_bytes=memory_bytes(plan),
        weights_at_once=plan.weights_at_once,
        seconds=seconds,
        measuring_s=measuring_s,
        warnings=plan.warnings,
        decisions=plan.decisions,
    )


def _there(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    path = Path(os.path.realpath(path))
    return next(place for place in (path, *path.parents) if place.exists())
