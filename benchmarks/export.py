"""Compare `edge export` with `optimum-cli export openvino`: one checkpoint folder, one precision, one run.

    python benchmarks/export.py CHECKPOINT [--recipe int4-asym-g128] [--rounds 1] [--work FOLDER] [--json]

Each export is a fresh offline process whose output is deleted after it has been measured; the side that goes first
alternates by round. The figures are medians over the rounds, and the ratios, ours to theirs, are medians of the rounds'
own ratios: below 1, ours takes less.

peak_anonymous_gb is memory that a process allocated and the kernel cannot drop; peak_rss_gb counts mapped files as
well, which it can. Both are the largest sum over the process and its children among samples 20 ms apart. written_gb is
what was written to a disk, including temporary files (a tmpfs counts as nothing: choose --work accordingly); weights_gb
is openvino_model.bin. Memory and written bytes come from /proc and are measured on Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from report import about_machine

from edge.runtime.bundle import MODEL_BIN

OURS, THEIRS = "edge", "optimum"
VERSIONED = ("edgeglm", "openvino", "nncf", "numpy", "optimum-intel", "transformers", "torch")
ON_LINUX = sys.platform == "linux"
SAMPLE_S = 0.02
MAPS_EVERY = 10  # samples: the list of mapped files is long, and a library stays once it is loaded

# optimum-cli, kept from reporting to a server just as `import edge` does for ours: both fall back to a stub.
START_THEIRS = """
import sys
sys.modules["openvino_telemetry"] = None
from optimum.commands.optimum_cli import main
main()
"""

# Our recipes in optimum's terms. Embedding and head get 8 bits a row on both sides if linear layers have fewer.
WEIGHT_OPTIONS = {
    "fp32": "--weight-format fp32",
    "fp16": "--weight-format fp16",
    "int8-asym": "--weight-format int8",
    "int8-sym": "--weight-format int8 --sym",
    "int4-asym-g128": "--weight-format int4 --ratio 1.0 --group-size 128",
    "int4-asym-g64": "--weight-format int4 --ratio 1.0 --group-size 64",
    "int4-sym-g128": "--weight-format int4 --ratio 1.0 --group-size 128 --sym",
    "int4-sym-channel": "--weight-format int4 --ratio 1.0 --group-size -1 --sym",
}


@dataclass(frozen=True)
class Cost:
    """What one export took; None: not measured here."""

    wall_s: float
    cpu_s: float
    peak_anonymous_gb: float | None
    peak_rss_gb: float | None
    written_gb: float | None
    weights_gb: float
    torch_loaded: bool | None


class ExportFailedError(Exception):
    """Its message is what the process reported."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--recipe", default="int4-asym-g128")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument(
        "--work", type=Path, help="folder for outputs, which are deleted; default: the system's temporary folder"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.recipe not in WEIGHT_OPTIONS:
        print(
            f"optimum has no counterpart of {args.recipe}; choose one of {', '.join(WEIGHT_OPTIONS)}", file=sys.stderr
        )
        return 1
    if not (args.checkpoint / "config.json").is_file():
        print(f"{args.checkpoint} has no config.json; expected a folder with it and *.safetensors", file=sys.stderr)
        return 1
    about = about_machine(VERSIONED)
    sides = [OURS, THEIRS]
    if "optimum-intel" not in about["versions"]:
        print("optimum skipped: optimum-intel is not installed", file=sys.stderr)
        sides.remove(THEIRS)
    if not ON_LINUX:
        print("memory and written bytes are not measured: that takes Linux's /proc", file=sys.stderr)
    costs, errors = measure_sides(sides, args.checkpoint, args.recipe, args.rounds, args.work)
    report: dict[str, Any] = {
        **about,
        "checkpoint": describe(args.checkpoint),
        "recipe": args.recipe,
        "rounds": args.rounds,
        **{side: {"error": errors[side]} if side in errors else medians(costs[side]) for side in sides},
    }
    if THEIRS in sides and not errors:
        report["ratios"] = ratios(costs[OURS], costs[THEIRS])
    print(json.dumps(report, indent=None if args.json else 1))
    return 1 if OURS in errors else 0


def describe(checkpoint: Path) -> dict[str, Any]:
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    return {
        "name": checkpoint.resolve().name,
        "model_type": config["model_type"],
        "num_layers": config.get("num_hidden_layers", config.get("num_layers")),
        "weights_gb": sum(path.stat().st_size for path in checkpoint.glob("*.safetensors")) / 1e9,
    }


def measure_sides(
    sides: list[str], checkpoint: Path, recipe: str, rounds: int, work: Path | None
) -> tuple[dict[str, list[Cost]], dict[str, str]]:
    """The costs of each side by round, and why a side failed; one that failed is not run again."""
    commands = {OURS: our_command, THEIRS: their_command}
    costs: dict[str, list[Cost]] = {side: [] for side in sides}
    errors: dict[str, str] = {}
    for number in range(rounds):
        for side in sides if number % 2 == 0 else reversed(sides):
            if side not in errors:
                try:
                    costs[side].append(measure_export(commands[side], checkpoint, recipe, work))
                except ExportFailedError as error:
                    errors[side] = str(error)
    return costs, errors


def our_command(checkpoint: Path, out: Path, recipe: str) -> list[str]:
    return [sys.executable, "-m", "edge", "export", str(checkpoint), str(out), "--recipe", recipe]


def their_command(checkpoint: Path, out: Path, recipe: str) -> list[str]:
    start = [sys.executable, "-c", START_THEIRS, "export", "openvino", "--model", str(checkpoint)]
    return [*start, "--task", "text-generation-with-past", *WEIGHT_OPTIONS[recipe].split(), str(out)]


def measure_export(
    command: Callable[[Path, Path, str], list[str]], checkpoint: Path, recipe: str, work: Path | None
) -> Cost:
    """Run one export in a folder of its own, temporary files included. Raises ExportFailedError."""
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="export-", dir=work) as folder:
        out, log, temporary = (Path(folder) / name for name in ("out", "log", "tmp"))
        temporary.mkdir()
        environment = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TMPDIR": str(temporary)}
        with log.open("wb") as file:
            cpu_before, started = children_cpu_s(), time.perf_counter()
            process = subprocess.Popen(
                command(checkpoint, out, recipe),
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
            try:
                tree = ProcessTree(process.pid) if ON_LINUX else None
                if tree is not None:
                    tree.watch()
                process.wait()
                wall_s, cpu_s = time.perf_counter() - started, children_cpu_s() - cpu_before
            finally:
                process.kill()  # does nothing if it has ended
                process.wait()
        if process.returncode:
            raise ExportFailedError(f"exit {process.returncode}: {complaint(log)}")
        return Cost(
            wall_s=wall_s,
            cpu_s=cpu_s,
            peak_anonymous_gb=tree.peak_anonymous_kb * 1024 / 1e9 if tree else None,
            peak_rss_gb=tree.peak_rss_kb * 1024 / 1e9 if tree else None,
            written_gb=tree.written_bytes / 1e9 if tree else None,
            weights_gb=(out / MODEL_BIN).stat().st_size / 1e9,
            torch_loaded=tree.torch_loaded if tree else None,
        )


def complaint(log: Path) -> str:
    """The last line that names an exception, or else the last line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Interrupt)\b", line)]
    return (named or lines or ["nothing printed"])[-1]


def children_cpu_s() -> float:
    """CPU time of all children that have been waited for, and of their children."""
    times = os.times()
    return times.children_user + times.children_system


class ProcessTree:
    """Peaks over a process and its children, from /proc."""

    def __init__(self, root: int) -> None:
        self.root = root
        self.peak_anonymous_kb = self.peak_rss_kb = 0
        self.written_bytes = 0
        self.torch_loaded = False
        self._members = {root}
        self._known: set[int] = set()  # all processes of the last sample; a new one's parent is looked up once

    def watch(self) -> None:
        """Sample until the root has ended, but do not wait for it: its counters vanish when it is waited for."""
        samples = 0
        while os.waitid(os.P_PID, self.root, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            self._sample_memory()
            if samples % MAPS_EVERY == 0 and not self.torch_loaded:
                self.torch_loaded = any("/libtorch" in read_proc(pid, "maps") for pid in self._members)
            samples += 1
            time.sleep(SAMPLE_S)
        # The kernel adds the bytes of every child that was waited for to its parent's.
        self.written_bytes = proc_numbers(self.root, "io").get("write_bytes", 0)

    def _sample_memory(self) -> None:
        statuses = [proc_numbers(pid, "status") for pid in self._members]
        anonymous, rss = (sum(status.get(key, 0) for status in statuses) for key in ("RssAnon", "VmRSS"))
        self.peak_anonymous_kb = max(self.peak_anonymous_kb, anonymous)
        self.peak_rss_kb = max(self.peak_rss_kb, rss)
        self._find_children()

    def _find_children(self) -> None:
        """Called after a sample, so a child counts from the next one: before its exec it shows its parent's memory."""
        pids = {int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()}
        for pid in sorted(pids - self._known):  # parents come before their children
            if proc_numbers(pid, "status").get("PPid") in self._members:
                self._members.add(pid)
        self._members &= pids
        self._known = pids


def proc_numbers(pid: int, name: str) -> dict[str, int]:
    """The lines `key: number [kB]` of /proc/PID/name; empty for a process that has ended."""
    pairs = (line.split(":", 1) for line in read_proc(pid, name).splitlines() if ":" in line)
    words = ((key, value.split()) for key, value in pairs)
    return {key: int(value[0]) for key, value in words if value and value[0].isdigit()}


def read_proc(pid: int, name: str) -> str:
    try:
        return Path("/proc", str(pid), name).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def medians(costs: list[Cost]) -> dict[str, Any]:
    """The median of each figure over the rounds."""
    return {key: summary(values) for key, values in by_figure(costs).items()}


def ratios(ours: list[Cost], theirs: list[Cost]) -> dict[str, float]:
    """For each figure, the median of the rounds' own ratios; none for a figure that is 0."""
    found = {}
    for key, our_values in by_figure(ours).items():
        their_values = by_figure(theirs)[key]
        if key != "torch_loaded" and all(their_values):
            found[key] = summary([a / b for a, b in zip(our_values, their_values, strict=True)])
    return found


def by_figure(costs: list[Cost]) -> dict[str, list[Any]]:
    rows = [asdict(cost) for cost in costs]
    return {key: [row[key] for row in rows] for key in rows[0] if rows[0][key] is not None}


def summary(values: list[Any]) -> Any:
    return any(values) if isinstance(values[0], bool) else round(statistics.median(values), 3)


if __name__ == "__main__":
    sys.exit(main())
