"""What `edge export` says: before it starts, when it resumes, and when it is done.

In: what an export would take, how far it is, the manifest of its bundle. Out: lines on stderr while it works, and on
stdout what was made; or one JSON object.
"""

from __future__ import annotations

import re
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.commands.console import export_progress, human_bytes, print_json
from edge.commands.export_dry_run import duration

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edge.export.forecast.dry_run import DryRun
    from edge.export.plan import Plan
    from edge.export.stages import Progress
    from edge.runtime.manifest import Manifest
    from edge.runtime.tensor_records import StageCheck


class Telling:
    """What is said while an export works: lines, and below them a bar if stderr is a terminal."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._bar = ExitStack()
        self._show: Callable[[Progress], None] = lambda _: None

    def __enter__(self) -> Telling:
        self._show = self._bar.enter_context(export_progress())
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def begin(self, plan: Plan) -> None:
        """Sizes, disk, memory and time in one line, before the first work."""
        from edge.export.forecast.dry_run import forecast

        self._say(_start(forecast(plan, self._out)))

    def progress(self, step: Progress) -> None:
        """Move the bar; what of an earlier export is used is a line."""
        from edge.export.stages import MEASURED, RESUMED, RESUMED_PICTURES

        if step.stage == RESUMED:
            done = f"block {step.blocks} of {step.num_blocks}" if step.blocks else "the embedding"
            self._say(f"resuming after {done}: {human_bytes(step.written)} of weights are there; --fresh starts anew")
        elif step.stage == RESUMED_PICTURES:
            done = f"picture layer {step.blocks} of {step.num_blocks}" if step.blocks else "the picture patches"
            self._say(f"resuming after {done}: {human_bytes(step.written)} of weights are there; --fresh starts anew")
        elif step.stage == MEASURED:
            self._say("resuming: what each matrix costs was measured before; --fresh starts anew")
        else:
            self._show(step)

    def _say(self, line: str) -> None:
        self._bar.close()  # or the line would stand beside it
        print(f"edge: {line}", file=sys.stderr, flush=True)
        self._show = self._bar.enter_context(export_progress())


def _start(run: DryRun) -> str:
    from edge.runtime.machine import available_bytes

    tower = (0, 0) if run.tower is None else (run.tower.parameters, run.tower.nbytes)
    parameters, free = run.assignments.parameters + tower[0], available_bytes()
    counted = f"{parameters / 1e9:.1f} billion" if parameters >= 1e9 else f"{parameters / 1e6:.3g} million"
    fewer = "" if run.weights_at_once is None else ", with fewer weights at once than usual"
    memory = f"{human_bytes(run.memory_bytes)} of memory{'' if free is None else f' ({human_bytes(free)} free)'}"
    return (
        f"{counted} parameters to {'at most ' if run.options else ''}{human_bytes(run.most_bytes + tower[1])} of "
        f"weights; takes about {duration(run.seconds + run.measuring_s)}, {memory} and {human_bytes(run.peak_bytes)} "
        f"of disk ({human_bytes(run.free_bytes)} free){fewer}"
    )


def tell_done(manifest: Manifest, out: Path, called: str, seconds: float, *, verbose: bool) -> None:
    """What was made, whether it was checked, and what to do next."""
    for decision in manifest.decisions:
        print(f"  {decision}")
    if verbose:
        _print_details(manifest)
    for warning in manifest.warnings:
        print(f"edge: warning: {warning}", file=sys.stderr)
    checks = _checks(manifest)
    if checks:
        print(f"  {_checked(checks)}")
    print(
        f"{out}: {manifest.recipe}, {human_bytes(manifest.weight_bytes)} of weights, "
        f"{manifest.bits_per_weight:.2f} bits per weight{_pictures(manifest)}, made in {duration(seconds)}"
    )
    print(f"next: {next_command(out, called)}")


def print_done(manifest: Manifest, out: Path, called: str, seconds: float) -> None:
    """All of it as one JSON object."""
    told: dict[str, Any] = {  # Any: JSON
        "bundle": str(out),
        "name": called,
        "source": manifest.source,
        "recipe": manifest.recipe,
        "parameters": manifest.spec.num_parameters,
        "weight_bytes": manifest.weight_bytes,
        "bits_per_weight": manifest.bits_per_weight,
        "golden_kld": manifest.golden_kld,
        "seconds": round(seconds, 3),
        "checks": [{"stage": c.stage, "error": c.error, "expected": c.expected} for c in _checks(manifest)],
        "warnings": list(manifest.warnings),
        "decisions": list(manifest.decisions),
        "pictures": None
        if manifest.vision is None
        else {
            "recipe": manifest.vision.recipe,
            "weight_bytes": manifest.vision.weight_bytes,
            "bits_per_weight": manifest.vision.bits_per_weight,
        },
        "next": next_command(out, called),
    }
    print_json(told)


def next_command(out: Path, called: str) -> str:
    """The command that a user may want after this; a model without a chat template continues texts."""
    from edge.runtime.bundle import CHAT_TEMPLATE

    name = called if re.fullmatch(r"[\w./\\:~+-]+", called) else f'"{called}"'
    if name.startswith("-"):
        name = f"./{name}"
    return f"edge chat {name}" if (out / CHAT_TEMPLATE).exists() else f'edge run {name} "Once upon a time" --raw'


def _pictures(manifest: Manifest) -> str:
    vision = manifest.vision
    if vision is None:
        return ""
    return f"; for pictures {vision.recipe}, {human_bytes(vision.weight_bytes)}, {vision.bits_per_weight:.2f} bits"


def _checks(manifest: Manifest) -> tuple[StageCheck, ...]:
    """Of all stages of the text model and the picture tower."""
    return (*manifest.checks, *(() if manifest.vision is None else manifest.vision.checks))


def _checked(checks: Sequence[StageCheck]) -> str:
    """The checks in one line. An error as large as rounding explains is what is expected, and not a fault."""
    count = f"{len(checks)} check{'s' if len(checks) > 1 else ''} passed"
    rounded = [check for check in checks if check.expected > 0]
    if not rounded:
        return f"{count}: what was written computes what the checkpoint does"
    from edge.export.proof import TOLERATED

    worst = max(rounded, key=lambda check: check.error / check.expected)
    return (
        f"{count}: the model is as exact as its rounded weights allow; {worst.stage} least so, with "
        f"{worst.error / worst.expected:.1f} times the usual effect of rounding ({TOLERATED:g} would fail)"
    )


def _print_details(manifest: Manifest) -> None:
    for check in _checks(manifest):
        explained = f", rounding explains {check.expected:.1e}" if check.expected else ""
        print(f"  {check.stage:<10} off by {check.error:.2e} of its output{explained}")
    notes: dict[str, int] = {}
    for tensor in manifest.tensors.values():
        if tensor.note and len(tensor.shape) == 2:
            key = f"{tensor.precision}: {tensor.note}"
            notes[key] = notes.get(key, 0) + 1
    for note, count in notes.items():
        print(f"  {count} weight{'s' if count > 1 else ''} at {note}")
    print(f"  golden KLD {manifest.golden_kld:.4f} nats/token from the float model, on a few tokens")
