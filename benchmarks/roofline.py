"""What a decode step costs against model size, context and sequences, beside what reading memory allows.

    python benchmarks/roofline.py OUT BUNDLE [BUNDLE...] [--engines onnx,openvino] [--contexts 1024,4096,16384,100000]
                                  [--sequences 1,2,4,8,16] [--steps 12] [--quick] [--seconds 100]

OUT is a folder for roofline.json and roofline.svg. A step computes one new token of each sequence: one sequence behind
each context, and each number of sequences behind the shortest. Contexts that a model or the memory has no room for are
left out. Caches are filled, not computed, so that no prompt has to be read; the engine alone is timed, without the
choice of tokens.

What a step reads: all weights, once, as the engine keeps them, and the keys and values of every sequence. Beside each
point the bandwidth of memory is measured, right before and after it, and the share of it that the step reached is told.
The picture's dashed lines are what steps would take if they did nothing but read, at the median of the bandwidths
measured beside the points.

Each bundle and engine has a process of its own, which --seconds ends; points that are in roofline.json already are not
measured again, so the same command continues until none is left, and --quick's few points are some of the others'. The
picture is drawn from whatever points there are.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from report import about_machine, show_table
from roofline_picture import picture
from roofline_worker import SPARE_TOKENS, Job

from edge.profiles.plot import svg_bytes
from edge.runtime.atomic import write_atomically
from edge.runtime.bundle import Bundle, open_bundle
from edge.runtime.errors import EdgeError
from edge.runtime.machine import available_bytes

ENGINES = ("onnx", "openvino")
CONTEXTS, SEQUENCES, STEPS = (1024, 4096, 16384, 100_000), (1, 2, 4, 8, 16), 12
QUICK_CONTEXTS, QUICK_SEQUENCES = CONTEXTS[:2], (1, 4)
CACHE_SHARE = 0.4  # of the available memory, that keys and values may fill beside weights and what loading takes
VALUE_BYTES = 4  # of a key or value, at most
JSON, SVG = "roofline.json", "roofline.svg"

Point = dict[str, Any]  # JSON


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--engines", type=names, default=ENGINES)
    parser.add_argument("--contexts", type=counts, default=CONTEXTS)
    parser.add_argument("--sequences", type=counts, default=SEQUENCES)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--quick", action="store_true", help="two contexts, and 1 and 4 sequences")
    parser.add_argument("--seconds", type=float, help="of a process, after which it is ended")
    args = parser.parse_args()
    contexts, sequences = (QUICK_CONTEXTS, QUICK_SEQUENCES) if args.quick else (args.contexts, args.sequences)
    args.out.mkdir(parents=True, exist_ok=True)
    report = stored(args.out / JSON)
    try:
        for path in args.bundles:
            bundle = open_bundle(path)
            for engine in args.engines:
                points = wanted(bundle, contexts, sequences)
                missing = tuple(point for point in points if point not in measured(report, path.name, engine))
                if missing:
                    for found in run(bundle, engine, missing, args.steps, args.seconds):
                        report["points"].append({**model(bundle), "engine": engine, **found})
                        store(args.out, report)
    except EdgeError as error:
        print(error, file=sys.stderr)
        return 1
    store(args.out, report)
    show(report)
    return 0


def names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def counts(text: str) -> tuple[int, ...]:
    return tuple(sorted({int(part) for part in text.split(",")}))


def wanted(bundle: Bundle, contexts: Sequence[int], sequences: Sequence[int]) -> list[tuple[int, int]]:
    """Contexts and numbers of sequences that there is room for."""
    spec, room = bundle.manifest.spec, CACHE_SHARE * (available_bytes() or float("inf"))
    points = [(context, 1) for context in contexts] + [(min(contexts), count) for count in sequences if count > 1]
    return [
        (context, count)
        for context, count in points
        if context + SPARE_TOKENS <= spec.max_position_embeddings and cache_bytes(bundle, [(context, count)]) <= room
    ]


def cache_bytes(bundle: Bundle, points: Sequence[tuple[int, int]]) -> int:
    """Of the largest point, at most."""
    tokens = max(count * (context + SPARE_TOKENS) for context, count in points)
    return tokens * bundle.manifest.spec.kv_values_per_token * VALUE_BYTES


def run(
    bundle: Bundle, engine: str, points: tuple[tuple[int, int], ...], steps: int, seconds: float | None
) -> Iterator[Point]:
    """Points as a process measures them, until it has them all or its time is over."""
    job = Job(str(bundle.path), engine, points, steps, cache_bytes(bundle, points))
    worker = Path(__file__).with_name("roofline_worker.py")
    command = [sys.executable, str(worker), json.dumps(asdict(job))]
    limited = command if seconds is None else ["timeout", str(seconds), *command]
    with subprocess.Popen(limited, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield from (json.loads(line) for line in process.stdout)
    if process.returncode:
        print(f"{bundle.path.name} on {engine}: not all of its points were measured", file=sys.stderr)


def model(bundle: Bundle) -> Point:
    manifest = bundle.manifest
    return {
        "bundle": bundle.path.name,
        "recipe": manifest.recipe,
        "layers": manifest.spec.num_layers,
        "hidden_size": manifest.spec.hidden_size,
    }


# --- What was measured ------------------------------------------------------------------------------------------------


def stored(path: Path) -> dict[str, Any]:
    """The report so far, or a new one."""
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    return {**about_machine(("edgeglm", "openvino", "onnxruntime")), "points": []}


def measured(report: dict[str, Any], bundle: str, engine: str) -> set[tuple[int, int]]:
    return {
        (point["context"], point["sequences"])
        for point in report["points"]
        if (point["bundle"], point["engine"]) == (bundle, engine)
    }


def store(folder: Path, report: dict[str, Any]) -> None:
    report["points"].sort(key=lambda p: (p["weight_bytes"], p["bundle"], p["engine"], p["sequences"], p["context"]))
    write_atomically(folder / JSON, [(json.dumps(report, indent=1) + "\n").encode()], private=False)
    if report["points"]:
        write_atomically(folder / SVG, [svg_bytes(picture(report["points"]))], private=False)


def show(report: dict[str, Any]) -> None:
    show_table(
        [
            {
                "bundle": point["bundle"],
                "engine": point["engine"],
                "context": point["context"],
                "sequences": point["sequences"],
                "step ms": f"{point['step_ms']:.1f} ± {point['step_ms_spread']:.1f}",
                "tok/s": point["tokens_per_second"],
                "read GB": f"{(point['weight_bytes'] + point['cache_bytes']) / 1e9:.2f}",
                "GB/s": point["read_gbs"],
                "memory GB/s": point["machine_gbs"],
                "share": f"{point['share']:.0%}",
            }
            for point in report["points"]
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
