"""A sweep: what each recipe costs in accuracy and gains in size and speed, on each engine.

In: a checkpoint, a folder, settings. Out: a `Profile`, and the folder filled. A cell is a recipe on an engine with a
setting; cells are measured one at a time, so that none slows another down. Each export, the float reference and each
cell run in a process of their own. What is finished stays in the folder and is not measured again as long as everything
that decides it is the same: a sweep that was killed, or that gets one more recipe, measures what is missing. Knows
nothing about how results are shown.

    profile.json     rows so far, after each cell      cells/NAME-KEY.json      a row each, as soon as it is measured
    reference.npz    the float checkpoint's rows       exports/NAME-KEY.json    what an export took
    windows.npz      the text as token ids             bundles/NAME-KEY         deleted after use, unless kept
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge.export.destination import LOCK, PARTIAL, PARTS, remove_bundle, remove_work
from edge.profiles.accuracy import Accuracy
from edge.profiles.divergence import Divergence
from edge.profiles.machine_record import machine_record, versions_record
from edge.profiles.processes import Outcome, run_step
from edge.profiles.record import PROFILE, Failure, Profile, Row, read_record
from edge.profiles.settings import SweepSettings
from edge.profiles.sweep_plan import (
    BUNDLES,
    CELLS,
    EXPORTS,
    KEY_DIGITS,
    REFERENCE,
    WINDOWS,
    Cell,
    SweepPlan,
    plan_sweep,
)
from edge.profiles.sweep_progress import Steps, SweepProgress
from edge.profiles.typed_json import read_value
from edge.profiles.worker import write_windows
from edge.runtime.atomic import write_atomically
from edge.runtime.bundle import open_bundle
from edge.runtime.errors import BundleError, OutputError, ProfileError
from edge.runtime.extras import check_installed, missing_packages_named
from edge.runtime.locks import hold_now


@missing_packages_named("profile")
def sweep(
    source: str | Path,
    out: str | Path,
    settings: SweepSettings | None = None,
    progress: Callable[[SweepProgress], None] = lambda _progress: None,
) -> Profile:
    """Measure every cell that is not in `out` yet; returns and writes the profile.

    A cell that fails is among the profile's failures, and the others are measured. Raises what `plan_sweep` does before
    any work, OutputError when another sweep is running in `out`, MissingPackageError, and ProfileError when the float
    reference cannot be computed.
    """
    check_installed("nncf", "scipy", needed="profile")  # or the last steps of hours of work would end with it
    plan = plan_sweep(source, Path(out), settings or SweepSettings())
    with _own_folder(plan.out):
        return _Sweep(plan, progress).run()


@dataclass
class _Sweep:
    """One sweep in progress."""

    plan: SweepPlan
    progress: Callable[[SweepProgress], None]
    rows: dict[str, Row] = field(default_factory=dict)  # by cell
    failures: list[Failure] = field(default_factory=list)

    def run(self) -> Profile:
        plan, settings = self.plan, self.plan.settings
        self.rows = {cell.name: row for cell in plan.cells if (row := _finished(cell, plan.out, settings)) is not None}
        missing = [cell for cell in plan.cells if cell.name not in self.rows]
        recipes = list(dict.fromkeys(cell.recipe for cell in missing))
        exports = [recipe for recipe in recipes if self._exported(recipe) is None]
        self._steps = Steps(["reference"] * bool(missing) + ["export"] * len(exports) + ["measure"] * len(missing))
        if not (plan.out / PROFILE).exists():
            self._write_profile()  # so that a report can be asked for at any time
        if missing:
            write_windows(plan.windows, plan.out / WINDOWS)
            task = {"task": "reference", "source": plan.source, "windows": str(plan.out / WINDOWS)}
            self._step("reference", {**task, "out": str(plan.out / REFERENCE)})
        for recipe in recipes:
            self._run_recipe(recipe, [cell for cell in missing if cell.recipe == recipe])
        profile = self._write_profile()
        if not settings.keep_bundles:
            _remove_bundles(plan.out, unfinished=not self.failures)
        return profile

    def _run_recipe(self, recipe: str, cells: Sequence[Cell]) -> None:
        settings, bundle = self.plan.settings, self._bundle(recipe)
        try:
            cost = self._exported(recipe) or self._export(recipe)
        except ProfileError as error:
            for cell in cells:
                self._steps.skip("measure")
                self._fail(cell, f"export failed: {error}")
            return
        for cell in cells:
            task = {
                "task": "measure",
                "source": self.plan.source,
                "bundle": str(bundle),
                "engine": cell.engine,
                "device": settings.device,
                "kv_precision": cell.kv_precision,
                "reference": str(self.plan.out / REFERENCE),
                "chunk": settings.chunk_tokens,
                "speed": settings.speed,
                "greedy_tokens": settings.greedy_tokens,
                "max_memory_bytes": settings.max_memory_bytes,
            }
            try:
                outcome = self._step(cell.name, task)
            except ProfileError as error:
                self._fail(cell, str(error))
                continue
            row = _row(cell, cost, outcome)
            write_atomically(cell.file(self.plan.out), [_json({"key": cell.key, "row": row.to_json()})])
            self.rows[cell.name] = row
            self._write_profile()
            self.progress(self._steps.progress(cell.name, "done", 0.0, row=row))
        if not settings.keep_bundles:
            remove_bundle(bundle)

    def _bundle(self, recipe: str) -> Path:
        return self.plan.out / BUNDLES / f"{recipe}-{self.plan.export_keys[recipe][:KEY_DIGITS]}"

    def _record(self, recipe: str) -> Path:
        """The file that says what the export of a recipe took."""
        return self.plan.out / EXPORTS / f"{self._bundle(recipe).name}.json"

    def _exported(self, recipe: str) -> dict[str, Any] | None:
        """What the export took, if its bundle still exists; None if it has to be made."""
        known = _read_keyed(self._record(recipe), self.plan.export_keys[recipe])
        return known if known is not None and _is_cost(known) and _opens(self._bundle(recipe)) else None

    def _export(self, recipe: str) -> dict[str, Any]:
        """Make a bundle, and record what it took. Raises ProfileError."""
        plan, bundle = self.plan, self._bundle(recipe)
        given = plan.settings.calibration if plan.plans[recipe].calibration is not None else None
        calibration = None if given is None else str(given)
        task = {"task": "export", "source": plan.source, "out": str(bundle), "recipe": recipe, "format": plan.format}
        outcome = self._step(
            f"export {recipe}", {**task, "calibration": calibration, "max_memory_bytes": plan.settings.max_memory_bytes}
        )
        whole, peak = not outcome.result.pop("resumed"), outcome.peak_up_to("export")
        cost = {
            **outcome.result,
            "export_s": outcome.seconds if whole else None,
            "export_peak_bytes": peak.anonymous_bytes if whole and peak else None,
        }
        write_atomically(self._record(recipe), [_json({"key": plan.export_keys[recipe], **cost})])
        return cost

    def _step(self, name: str, task: Mapping[str, Any]) -> Outcome:
        def tell(phase: str, done: int, total: int) -> None:
            share = done / total
            if task["task"] == "measure" and phase != "accuracy":
                share = 0.0  # accuracy takes by far the most time
            self.progress(self._steps.progress(name, phase, share))

        self.progress(self._steps.progress(name, "start", 0.0))
        with self._steps.timed(task["task"]):
            return run_step(task, tell)

    def _fail(self, cell: Cell, error: str) -> None:
        self.failures.append(Failure(cell.name, error))
        self._write_profile()
        self.progress(self._steps.progress(cell.name, "failed", 0.0, failure=self.failures[-1]))

    def _write_profile(self) -> Profile:
        """Write what is known so far; the last one is whole."""
        plan = self.plan
        profile = Profile(
            source=plan.plans[plan.settings.recipes[0]].source,
            text=plan.text,
            windows_sha256=plan.windows.sha256,
            num_windows=plan.windows.count,
            window_tokens=plan.windows.length,
            num_cells=len(plan.cells),
            machine=machine_record(),
            versions=versions_record(),
            rows=tuple(self.rows[cell.name] for cell in plan.cells if cell.name in self.rows),
            failures=tuple(self.failures),
            notes=plan.notes,
        )
        write_atomically(plan.out / PROFILE, [profile.to_json().encode()], private=False)
        return profile


def _row(cell: Cell, cost: Mapping[str, Any], outcome: Outcome) -> Row:
    found = outcome.result
    speed = found.get("speed")
    peak = outcome.peak_up_to("speed") if speed is not None else None
    return Row(
        recipe=cell.recipe,
        engine=cell.engine,
        setting=cell.setting,
        bits_per_weight=cost["bits_per_weight"],
        weight_bytes=cost["weight_bytes"],
        export_s=cost["export_s"],
        export_peak_bytes=cost["export_peak_bytes"],
        load_s=None if speed is None else found["load_s"],
        peak_anonymous_bytes=None if peak is None else peak.anonymous_bytes,
        peak_rss_bytes=None if peak is None else peak.rss_bytes,
        prompt_tokens=None if speed is None else speed["prompt_tokens"],
        ttft_ms=None if speed is None else speed["ttft_ms"],
        decode_tokens_per_second=None if speed is None else speed["decode_tokens_per_second"],
        ttft_ms_samples=() if speed is None else tuple(speed["ttft_ms_samples"]),
        decode_samples=() if speed is None else tuple(speed["decode_samples"]),
        kv_cache=found["kv_cache"],
        accuracy=Accuracy.from_json(found["accuracy"]),
        divergence=None if found["divergence"] is None else Divergence.from_json(found["divergence"]),
    )


def _finished(cell: Cell, out: Path, settings: SweepSettings) -> Row | None:
    """A cell's row from an earlier sweep; None if it has none, or not everything that is asked for now."""
    known = _read_keyed(cell.file(out), cell.key)
    if known is None:
        return None
    try:
        row = Row.from_json(known["row"])
    except (ProfileError, KeyError, TypeError):
        return None
    return None if settings.speed and row.ttft_ms is None else row


def _read_keyed(path: Path, key: str) -> dict[str, Any] | None:
    """A JSON object that we wrote with this key, without the key; None for anything else."""
    try:
        data = read_record(path)
    except ProfileError:
        return None
    return data if isinstance(data, dict) and data.pop("key", None) == key else None


def _is_cost(known: Mapping[str, Any]) -> bool:
    """Whether a record has all figures of an export."""
    kinds = {"bits_per_weight": "float", "weight_bytes": "int", "export_s": "float | None"}
    try:
        for name, kind in {**kinds, "export_peak_bytes": "int | None"}.items():
            read_value(known.get(name, "missing"), kind, name, ProfileError, "export again")
    except ProfileError:
        return False
    return True


def _remove_bundles(out: Path, *, unfinished: bool) -> None:
    """Remove the bundles that sweeps made here, then the folder if it is empty.

    unfinished: also those of interrupted exports; otherwise the next sweep resumes them.
    """
    for bundle in (out / BUNDLES).iterdir():
        if (out / EXPORTS / f"{bundle.name}.json").is_file():
            remove_bundle(bundle)
        elif unfinished and bundle.name.startswith(".") and bundle.suffix == PARTIAL:
            remove_work(bundle, PARTS)
    if not any((out / BUNDLES).iterdir()):
        (out / BUNDLES).rmdir()


def _opens(bundle: Path) -> bool:
    try:
        open_bundle(bundle)
    except BundleError:
        return False
    return True


@contextmanager
def _own_folder(out: Path) -> Iterator[None]:
    """The folder with its parts, for this process alone. Raises OutputError."""
    with ExitStack() as stack:
        try:
            for name in (CELLS, EXPORTS, BUNDLES):
                (out / name).mkdir(parents=True, exist_ok=True)
            held = stack.enter_context(hold_now(out / LOCK))
        except OSError as error:
            raise OutputError(f"{out} cannot be written ({error.strerror}); choose another folder") from error
        if not held:
            raise OutputError(f"{out} is being written by another sweep; wait for it, or choose another folder")
        yield


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
