"""What the scripts share: machine and versions, ratios, tables.

In: a bundle's folder, figures. Out: text on stdout, or one JSON object. Knows nothing about what is measured.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edge.commands.console import print_json, print_table
from edge.runtime.bundle import open_bundle
from edge.runtime.machine import processor_name

VERSIONED = ("edgeglm", "openvino", "onnxruntime")


def about(folder: Path) -> dict[str, Any]:
    """Machine, versions and bundle. Raises BundleError."""
    manifest = open_bundle(folder).manifest
    spec = manifest.spec
    return {
        **about_machine(VERSIONED),
        **({"load_before": round(os.getloadavg()[0], 2)} if hasattr(os, "getloadavg") else {}),
        "bundle": {
            "name": folder.resolve().name,
            "recipe": manifest.recipe,
            "layers": spec.num_layers,
            "hidden_size": spec.hidden_size,
        },
    }


def about_machine(packages: Iterable[str], **versions: str) -> dict[str, Any]:
    """The processor, the versions of those packages that are installed, and versions of other things."""
    versions |= {name: found for name in packages if (found := installed(name))}
    return {"machine": f"{processor_name()}, {os.cpu_count()} cores", "versions": versions}


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@contextmanager
def work_folder(kept: Path | None) -> Iterator[Path]:
    """The given folder; without one, a temporary folder."""
    with ExitStack() as stack:
        work = kept or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work.mkdir(parents=True, exist_ok=True)
        yield work


def spread(ratios: Sequence[float]) -> dict[str, float]:
    """The median, the lowest and the highest of paired ratios."""
    if not ratios:
        return dict.fromkeys(("median", "low", "high"), 0.0)
    return {
        "median": round(statistics.median(ratios), 3),
        "low": round(min(ratios), 3),
        "high": round(max(ratios), 3),
    }


def show_machine(report: Mapping[str, Any]) -> None:
    print(f"machine   {report['machine']}")
    print(f"versions  {', '.join(f'{name} {found}' for name, found in report['versions'].items())}")


def show_about(report: Mapping[str, Any]) -> None:
    bundle = report["bundle"]
    show_machine(report)
    print(f"load      {report.get('load_before', 'unknown')} before")
    shape = f"{bundle['layers']} layers x {bundle['hidden_size']}"
    print(f"bundle    {bundle['name']}: {bundle['recipe']}, {shape}\n")


def show_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows with the same keys, as columns."""
    if rows:
        print_table(list(rows[0]), (row.values() for row in rows))
        print()


def ratio_text(ratio: Mapping[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})"


def met_text(met: bool) -> str:
    return "met" if met else "MISSED"


def put_out(report: dict[str, Any], show: Callable[[dict[str, Any]], None], *, as_json: bool) -> None:
    """Print the report as one JSON object, or as `show` does."""
    (print_json if as_json else show)(report)
