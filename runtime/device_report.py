"""A report that somebody with a device can attach to an issue: `edge verify BUNDLE --device GPU --report FILE`.

In: a bundle and a device. Out: one JSON file with versions, drivers, properties of the device, what the rules say,
caches as they were compiled, golden figures of each engine and rough times. It has no paths, no names of users,
machines or models. Knows nothing about what is right: that is for whoever reads it.

A device may end the process when a model is compiled for it. So the file is written before each step, and says which;
whatever a step raises is in it, and the next one is tried.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.runtime.atomic import write_atomically
from edge.runtime.bundle import Bundle
from edge.runtime.device_facts import device_facts, machine_facts, said
from edge.runtime.device_runs import measure
from edge.runtime.engines.choice import engines_for, open_engine
from edge.runtime.engines.engine import Engine
from edge.runtime.errors import OutputError, in_words
from edge.runtime.exact import exact_settings
from edge.runtime.files import shown_path
from edge.runtime.lint import Finding, check, target_here
from edge.runtime.machine import family_of
from edge.runtime.private_words import Scrubber
from edge.runtime.settings import EngineSettings

if TYPE_CHECKING:  # openvino may be missing
    from edge.runtime.engines.openvino_memory import MemoryKind

FORMAT = "edgeglm device report"
VERSION = 1
FINISHED = "finished"
CONTEXT = 1024  # tokens, and a cache of twice as many in float32, so that memory is no reason to fail
_MAGIC = json.dumps({"format": FORMAT})[:-1].encode()


@dataclass(frozen=True, slots=True)
class Report:
    """What was written."""

    path: Path
    content: dict[str, Any]  # JSON
    failures: tuple[str, ...]  # what steps raised; () if all of them went through


class _Run:
    """One way to open the engine."""

    def __init__(self, engine: str, setting: str, settings: EngineSettings, open_it: Callable[[], Engine]) -> None:
        self.name = f"{engine}, {setting}"
        self.settings = settings
        self.open = open_it


def write_report(bundle: Bundle, device: str, path: Path, findings: Iterable[Finding] | None = None) -> Report:
    """Run what the report tells of, and write it. Raises OutputError, also for a file that is not such a report.

    findings: what the rules found; None: they are asked. Where one refuses the device, nothing is compiled.
    """
    _check_replaceable(path)
    scrubber = Scrubber({str(bundle.path): "BUNDLE", str(path.parent): "FOLDER", str(Path.cwd()): "."})
    content: dict[str, Any] = {"format": FORMAT, "version": VERSION, "state": ""}

    def write(state: str) -> None:
        content["state"] = state
        written = json.dumps(scrubber.json(_finite(content)), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        write_atomically(path, [written.encode()], private=False)

    write("began to look at the machine")
    content["machine"] = machine_facts()
    content["bundle"] = _bundle_facts(bundle)
    write(f"began to ask the driver of {device}")
    content["device"] = device_facts(device)
    content["rules"] = _rules(bundle, device, findings)
    refused = [finding["rule"] for finding in content["rules"]["findings"] if finding["refused"]]
    runs: list[dict[str, Any]] = []
    content["runs"] = runs
    if refused:
        write(f"{FINISHED}; nothing was compiled, as rules refuse it: {', '.join(refused)}")
    else:
        for run in _planned(bundle, device, runs):
            write(f"began to run {run.name}; if nothing follows, this ended the process")
            found: dict[str, Any] = {"run": run.name, "settings": _settings(run.settings)}
            try:
                found |= measure(bundle, run.open)
            except Exception as error:  # whatever a device raises is what the report is for
                found["error"] = said(error)
            runs.append(found)
        write(FINISHED)
    steps = [content["device"], content["rules"], *runs]
    failures = tuple(scrubber.text(step["error"]) for step in steps if "error" in step)
    return Report(path, json.loads(path.read_text(encoding="utf-8")), failures)


def _planned(bundle: Bundle, device: str, runs: list[dict[str, Any]]) -> Iterator[_Run]:
    """Yield the runs of every engine: as exactly as it can, and as it usually does; on a GPU, in both memories."""
    try:
        engines = engines_for(bundle, device)
    except Exception as error:  # no engine, or no device
        runs.append({"run": f"which engines run on {device}", "error": said(error)})
        return
    spec = bundle.manifest.spec
    context = min(CONTEXT, spec.max_position_embeddings)
    for engine in engines:
        usual = EngineSettings(
            engine, device, max_context=context, kv_cache_bytes=2 * spec.kv_values_per_token * 4 * context
        )
        exact = exact_settings(usual).settings
        for setting, settings in (("exact", exact), ("usual", usual)):
            if engine == "openvino" and family_of(device) == "GPU":
                yield _Run(engine, f"{setting}, device memory", settings, _paged(bundle, settings, "device"))
                yield _Run(engine, f"{setting}, host memory", settings, _paged(bundle, settings, "host"))
            else:
                yield _Run(engine, setting, settings, partial(open_engine, bundle, settings))


def _paged(bundle: Bundle, settings: EngineSettings, kind: MemoryKind) -> Callable[[], Engine]:
    def opened() -> Engine:
        from edge.runtime.engines.openvino_paged import open_paged

        return open_paged(bundle, settings, kind)

    return opened


def _rules(bundle: Bundle, device: str, findings: Iterable[Finding] | None) -> dict[str, Any]:
    try:
        target = target_here(device)
        found = check(bundle, target) if findings is None else tuple(findings)
    except Exception as error:  # a graph that does not read
        return {"findings": [], "error": said(error)}
    return {"target": dataclasses.asdict(target), "findings": [dataclasses.asdict(finding) for finding in found]}


def _bundle_facts(bundle: Bundle) -> dict[str, Any]:
    """What the model is, without the names that its maker gave to files."""
    manifest = bundle.manifest
    return {
        "spec": dataclasses.asdict(manifest.spec),
        "recipe": manifest.recipe,
        "weight_group_size": manifest.weight_group_size,
        "bits_per_weight": round(manifest.bits_per_weight, 3),
        "weight_bytes": manifest.weight_bytes,
        "golden_kld": manifest.golden_kld,
        "schema_version": manifest.schema_version,
        "versions": dict(manifest.versions),
    }


def _settings(settings: EngineSettings) -> dict[str, Any]:
    """What is not the default."""
    usual = EngineSettings()
    names = (field.name for field in dataclasses.fields(settings))
    return {name: value for name in names if (value := getattr(settings, name)) != getattr(usual, name)}


def _check_replaceable(path: Path) -> None:
    """Raises OutputError for a file that is not such a report."""
    try:
        there = path.is_symlink() or path.exists()
        other = there and not path.is_file()  # what is no file may have no end
        found = b""
        if there and not other:
            with path.open("rb") as file:
                found = file.read(2 * len(_MAGIC))
    except (OSError, ValueError) as error:
        raise OutputError(f"{shown_path(path)} cannot be read ({in_words(error)}); name another file") from error
    if other or (found and FORMAT.encode() not in found):
        raise OutputError(f"{path} exists and is not a device report; move it away, or name another file")


def _finite(value: Any) -> Any:
    """Return JSON: numbers that are not finite, which it does not have, as words."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(name): _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
