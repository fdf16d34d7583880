"""A sweep: what each recipe costs in accuracy and gains in size and speed, on each engine.

In: a checkpoint, a folder, settings. Out: a `Profile`, and the folder filled. A cell is a recipe on an engine with a
setting. Each export, the float reference and each cell run in a process of their own, one after the other here, or side
by side on a cluster, where only speeds are measured alone. What is finished stays in the folder and is not measured
again as long as everything that decides it is the same: a sweep that was killed, or that gets one more recipe, measures
what is missing. Knows nothing about how results are shown, and where steps run.

    profile.json     rows so far, after each cell      cells/NAME-KEY.json      a row each, as soon as it is measured
    reference.npz    the float checkpoint's rows       exports/NAME-KEY.json    what an export took
    windows.npz      the text as token ids             bundles/NAME-KEY         deleted after use, unless kept
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from edge.export.destination import remove_bundle
from edge.profiles import sweep_results
from edge.profiles.machine_record import machine_record, versions_record
from edge.profiles.record import PROFILE, Failure, Profile, Row
from edge.profiles.settings import SweepSettings
from edge.profiles.sweep_plan import BUNDLES, KEY_DIGITS, REFERENCE, WINDOWS, Cell, SweepPlan, plan_sweep
from edge.profiles.sweep_progress import Steps, SweepProgress
from edge.profiles.sweep_steps import Done, Executor, OneProcess, Step, StepKind
from edge.profiles.worker import write_windows
from edge.runtime.atomic import write_atomically
from edge.runtime.errors import ProfileError
from edge.runtime.extras import check_installed, missing_packages_named


@missing_packages_named("profile")
def sweep(
    source: str | Path,
    out: str | Path,
    settings: SweepSettings | None = None,
    progress: Callable[[SweepProgress], None] = lambda _progress: None,
    *,
    ray: str | None = None,
) -> Profile:
    """Measure every cell that is not in `out` yet; returns and writes the profile.

    A cell that fails is among the profile's failures, and the others are measured. ray: the address of a Ray cluster to
    measure on, whose nodes see the checkpoint and `out` under the same paths. Raises what `plan_sweep` does before any
    work, OutputError when another sweep is running in `out`, MissingPackageError, ClusterError, and ProfileError when
    the float reference cannot be computed.
    """
    check_installed("nncf", "scipy", needed="profile")  # or the last steps of hours of work would end with it
    settings = settings or SweepSettings()
    if ray is not None:
        check_installed("ray", needed="ray")
    plan = plan_sweep(source, Path(out), settings)
    with sweep_results.own_folder(plan.out), _executor(plan, ray) as executor:
        return _Sweep(plan, executor, progress).run()


def _executor(plan: SweepPlan, ray: str | None) -> AbstractContextManager[Executor]:
    if ray is None:
        return OneProcess(plan.settings.threads)
    from edge.profiles.cluster.nodes import cluster_executor

    return cluster_executor(plan, ray)


@dataclass
class _Sweep:
    """One sweep in progress."""

    plan: SweepPlan
    executor: Executor
    progress: Callable[[SweepProgress], None]
    rows: dict[str, Row] = field(default_factory=dict)  # by cell; without speed while that is still to be measured
    failures: list[Failure] = field(default_factory=list)
    _costs: dict[str, sweep_results.Cost] = field(default_factory=dict)  # of exports that are done, by recipe
    _startable: list[tuple[int, int, Step]] = field(default_factory=list)  # a heap: by recipe, then by cell
    _added: set[str] = field(default_factory=set)  # names of steps that were startable once
    _has_reference: bool = False

    def run(self) -> Profile:
        plan, settings = self.plan, self.plan.settings
        known = {cell.name: row for cell in plan.cells if (row := self._known(cell)) is not None}
        self.rows = {name: row for name, row in known.items() if self._is_whole(row) or self.executor.apart}
        self._missing = [
            cell for cell in plan.cells if (row := known.get(cell.name)) is None or not self._is_whole(row)
        ]
        self._left = Counter(cell.recipe for cell in self._missing)
        for recipe in self._left:
            if (cost := sweep_results.exported(self._bundle(recipe), plan.out, plan.export_keys[recipe])) is not None:
                self._costs[recipe] = cost
        exports = [recipe for recipe in self._left if recipe not in self._costs]
        accuracies = [cell for cell in self._missing if cell.name not in self.rows]
        speeds = self._missing if self.executor.apart and settings.speed else []
        kinds = ["reference"] * bool(accuracies) + ["export"] * len(exports)
        kinds += [self._first_kind] * len(accuracies) + ["speed"] * len(speeds)
        self._steps = Steps(kinds)
        if not (plan.out / PROFILE).exists():
            self._write_profile()  # so that a report can be asked for at any time
        if accuracies:
            write_windows(plan.windows, plan.out / WINDOWS)
            task = {"task": "reference", "source": plan.source, "windows": self._path(WINDOWS)}
            self._add(Step("reference", "reference", {**task, "out": self._path(REFERENCE)}))
        for recipe in exports:
            self._add(self._export_step(recipe))
        self._release(self._missing)
        self._run_steps()
        profile = self._write_profile()
        if not settings.keep_bundles:
            sweep_results.remove_bundles(plan.out, unfinished=not self.failures)
        return profile

    @property
    def _first_kind(self) -> StepKind:
        """Of the steps that measure a cell, the first."""
        return "accuracy" if self.executor.apart else "measure"

    def _known(self, cell: Cell) -> Row | None:
        """A row from an earlier sweep; what another kind of machine measured counts on a cluster alone."""
        row = sweep_results.finished(cell, self.plan.out)
        if row is None or self.executor.apart:
            return row
        return row if all(place.machine is None for place in row.places.values()) else None

    def _is_whole(self, row: Row) -> bool:
        return row.ttft_ms is not None or not self.plan.settings.speed

    def _run_steps(self) -> None:
        """Run what can be started, and what that makes possible, until nothing is left."""
        running = 0
        while self._startable or running:
            while self._startable and self.executor.has_room:
                step = heapq.heappop(self._startable)[-1]
                self._steps.begin(step.name, step.kind)
                self.progress(self._steps.progress(step.name, "start"))
                self.executor.start(step)
                running += 1
            done = self.executor.next(self._tell)
            running -= 1
            self._steps.end(done.step.name, None if done.outcome is None else done.outcome.seconds)
            self._take(done)

    def _take(self, done: Done) -> None:
        match done.step.kind:
            case "reference":
                if done.outcome is None:
                    raise ProfileError(done.error)
                self._has_reference = True
                self._release(self._missing)
            case "export":
                self._take_export(done)
            case _:
                self._take_cell(done)

    def _take_export(self, done: Done) -> None:
        recipe, cells = done.step.recipe, [cell for cell in self._missing if cell.recipe == done.step.recipe]
        if done.outcome is None:
            for cell in cells:
                if cell.name not in self.rows:
                    self._steps.skip(self._first_kind)
                if self.executor.apart and self.plan.settings.speed:
                    self._steps.skip("speed")
                self._fail(cell, f"export failed: {done.error}")
            return
        found = dict(done.outcome.result)
        whole, peak = not found.pop("resumed"), done.outcome.peak_up_to("export")
        found |= {
            "export_s": done.outcome.seconds if whole else None,
            "export_peak_bytes": peak.anonymous_bytes if whole and peak else None,
        }
        if done.place is not None:
            found[sweep_results.PLACE] = done.place.to_json()
        sweep_results.write_exported(self._bundle(recipe), self.plan.out, self.plan.export_keys[recipe], found)
        self._costs[recipe] = found
        self._release(cells)

    def _take_cell(self, done: Done) -> None:
        cell, kind = done.step.cell, done.step.kind
        assert cell is not None
        if done.outcome is None:
            if kind == "accuracy" and self.plan.settings.speed:
                self._steps.skip("speed")
            self._fail(cell, done.error)
            self._leave(cell)
            return
        if kind == "speed":
            row = sweep_results.with_speed(self.rows[cell.name], done.outcome, done.place)
        else:
            row = sweep_results.row_of(cell, self._costs[cell.recipe], done.outcome, done.place)
        sweep_results.write_row(cell, self.plan.out, row)
        self.rows[cell.name] = row
        if self._is_whole(row):
            self._leave(cell)
        else:
            self._release([cell])
        self._write_profile()
        self.progress(self._steps.progress(cell.name, "done", row=row, is_timing=self.executor.is_timing_here))

    def _leave(self, cell: Cell) -> None:
        """Nothing more is measured of a cell; its bundle goes with the last one."""
        self._left[cell.recipe] -= 1
        if not self._left[cell.recipe] and not self.plan.settings.keep_bundles:
            remove_bundle(self._bundle(cell.recipe))

    def _release(self, cells: list[Cell]) -> None:
        """Make those steps startable that have all they need."""
        for cell in cells:
            if cell.recipe not in self._costs:
                continue
            if cell.name in self.rows:
                self._add(self._cell_step(cell, "speed"))
            elif self._has_reference:
                self._add(self._cell_step(cell, self._first_kind))

    def _add(self, step: Step) -> None:
        if step.name in self._added:
            return
        self._added.add(step.name)
        recipe = self.plan.settings.recipes.index(step.recipe) if step.recipe else -1
        heapq.heappush(self._startable, (recipe, -1 if step.cell is None else self.plan.cells.index(step.cell), step))

    def _export_step(self, recipe: str) -> Step:
        plan, settings = self.plan, self.plan.settings
        given = settings.calibration if plan.plans[recipe].calibration is not None else None
        task = {
            "task": "export",
            "source": plan.source,
            "out": str(self._bundle(recipe).absolute()),
            "recipe": recipe,
            "format": plan.format,
            "calibration": None if given is None else str(given.absolute()),
            "max_memory_bytes": settings.max_memory_bytes,
        }
        return Step("export", f"export {recipe}", task, recipe)

    def _cell_step(self, cell: Cell, kind: StepKind) -> Step:
        settings = self.plan.settings
        task = {
            "task": "measure",
            "source": self.plan.source,
            "bundle": str(self._bundle(cell.recipe).absolute()),
            "engine": cell.engine,
            "device": settings.device,
            "kv_precision": cell.kv_precision,
            "reference": self._path(REFERENCE),
            "chunk": settings.chunk_tokens,
            "speed": settings.speed and kind != "accuracy",
            "accuracy": kind != "speed",
            "greedy_tokens": settings.greedy_tokens,
            "max_memory_bytes": settings.max_memory_bytes,
        }
        return Step(kind, f"{cell.name}: speed" if kind == "speed" else cell.name, task, cell.recipe, cell)

    def _bundle(self, recipe: str) -> Path:
        return self.plan.out / BUNDLES / f"{recipe}-{self.plan.export_keys[recipe][:KEY_DIGITS]}"

    def _path(self, name: str) -> str:
        return str((self.plan.out / name).absolute())

    def _tell(self, step: Step, phase: str, done: int, total: int) -> None:
        # Accuracy takes by far the most time of a cell.
        self._steps.share(step.name, done / total if step.kind in ("reference", "export") or phase == "accuracy" else 0)
        self.progress(self._steps.progress(step.name, phase))

    def _fail(self, cell: Cell, error: str) -> None:
        self.failures.append(Failure(cell.name, error))
        self._write_profile()
        is_timing = self.executor.is_timing_here
        self.progress(self._steps.progress(cell.name, "failed", failure=self.failures[-1], is_timing=is_timing))

    def _write_profile(self) -> Profile:
        """Write what is known so far; the last one is whole."""
        plan = self.plan
        rows = tuple(self.rows[cell.name] for cell in plan.cells if cell.name in self.rows)
        failed = {failure.name for failure in self.failures}
        waiting = sum(not self._is_whole(row) for row in rows if row.name not in failed)
        profile = Profile(
            source=plan.plans[plan.settings.recipes[0]].source,
            text=plan.text,
            windows_sha256=plan.windows.sha256,
            num_windows=plan.windows.count,
            window_tokens=plan.windows.length,
            num_cells=len(plan.cells),
            machine=machine_record(),
            versions=versions_record(),
            rows=rows,
            failures=tuple(self.failures),
            notes=(*plan.notes, *([f"Speeds of {waiting} settings are still to be measured"] if waiting else [])),
        )
        write_atomically(plan.out / PROFILE, [profile.to_json().encode()], private=False)
        return profile
