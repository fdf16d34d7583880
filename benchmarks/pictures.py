"""What a picture costs: time and memory in the tower, and until the first token of an answer.

    python benchmarks/pictures.py BUNDLE [--engine onnx] [--no-ask]      # of a bundle with a tower
    python benchmarks/pictures.py --layer [GLM-4V-9B]                    # one layer of published width, random weights

Of a bundle: the tower without the text model, part by part; then questions about a fresh picture, the same one again,
the same one in a new process, and another one, to a model that is loaded as `reproducible`. Of a layer: each engine and
precision, and how far what the layer adds is from float32 weights in float32 (root mean square, relative). Every run
has a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pictures_worker import Job, job_text
from report import (
    VERSIONED,
    about,
    about_machine,
    put_out,
    show_about,
    show_machine,
    show_table,
    work_folder,
)

WORKER = Path(__file__).with_name("pictures_worker.py")
PRECISIONS = ("fp32", "int8-asym", "int4-asym-g128")
RUNS = (("openvino", "f32"), ("openvino", None), ("onnx", None))  # engine, inference_precision
SIDES = {"GLM-4V-9B": 80, "GLM-4.1V-9B": 48}  # patches: of every picture; of one of 672 pixels
MB = 1e6


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--layer", nargs="?", const="GLM-4V-9B", choices=SIDES)
    parser.add_argument("--side", type=int, help="patches of a side, for --layer")
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, help="of weights, for --layer")
    parser.add_argument("--engine", default="openvino", choices=("openvino", "onnx"))
    parser.add_argument("--inference-precision", choices=("f32", "bf16"))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--no-ask", action="store_true", help="measure the tower alone")
    parser.add_argument("--new-tokens", type=int, default=8)
    parser.add_argument("--max-context", type=int)
    parser.add_argument("--pixels", type=int, default=1120, help="of a side of the pictures, of noise")
    parser.add_argument("--work", type=Path, help="folder for graphs, which stay there")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(given)
    if (args.bundle is None) == (args.layer is None):
        parser.error("give a bundle, or --layer")
    with work_folder(args.work) as work:
        if args.layer is not None:
            put_out(layer_report(args, work), show_layer, as_json=args.json)
        else:
            put_out(bundle_report(args, work), show_bundle, as_json=args.json)
    return 0


def run(job: Job) -> dict[str, Any]:
    done = subprocess.run([sys.executable, WORKER, job_text(job)], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def layer_report(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    from pictures_layer import SPECS, write_input, write_layer

    spec, side = SPECS[args.layer], args.side or SIDES[args.layer]
    arrays, rows, exact = work / "input.npz", [], None
    count = write_input(arrays, spec, side, side)
    hidden = np.load(arrays)["hidden"]
    for precision in args.precisions:
        folder = work / precision
        if not folder.exists():
            write_layer(folder, spec, precision)
        for engine, inference in RUNS:
            suffix = "xml" if engine == "openvino" else "onnx"
            out = work / f"{precision}.{engine}.{inference}.npy"
            path = folder / engine / f"vision.0.{suffix}"
            found = run(Job("graph", str(path), engine, inference, args.threads, str(arrays), str(out)))
            added = np.load(out).astype(np.float64) - hidden
            exact = added if exact is None else exact  # the first is float32 in float32
            error = float(np.sqrt(np.mean((added - exact) ** 2) / np.mean(exact**2)))
            print(f"{precision} on {engine} in {found['inference precision']}", file=sys.stderr)
            rows.append({"weights": precision, **found, "error": error})
    return {**about_machine(VERSIONED), "layer": args.layer, "patches": count, "runs": rows}


def show_layer(report: dict[str, Any]) -> None:
    show_machine(report)
    print(f"layer     of {report['layer']}, {report['patches']:,} patches\n")
    show_table([
        {
            "weights": row["weights"],
            "engine": row["engine"],
            "computes in": row["inference precision"],
            "opened, s": f"{row['open_s']:.2f}",
            "first, s": f"{row['first_s']:.2f}",
            "again, s": f"{row['second_s']:.2f}",
            "loaded, MB": f"{row['loaded_bytes'] / MB:.0f}",
            "at peak, MB": f"{row['run_peak_bytes'] / MB:.0f}",
            "afterwards, MB": f"{row['left_bytes'] / MB:.0f}",
            "error": f"{row['error']:.1e}",
        }
        for row in report["runs"]
    ])  # fmt: skip


def bundle_report(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    one, other = (str(path) for path in write_pictures(work, args.pixels))
    limit: dict[str, Any] = {"reproducible": True}  # without it, a prompt that is read in other pieces rounds otherwise
    limit |= {} if args.max_context is None else {"max_context": args.max_context}
    usual: dict[str, Any] = {"path": str(args.bundle), "engine": args.engine, "precision": args.inference_precision}
    usual |= {"threads": args.threads, "new_tokens": args.new_tokens}
    report = about(args.bundle) | {"engine": args.engine}
    report["tower"] = run(Job("tower", **usual, pictures=(one,)))
    if args.no_ask:
        return report
    kept: dict[str, Any] = {"kept": str(work / "kept"), "options": limit}
    report["asked"] = run(Job("ask", **usual, **kept, pictures=(one, one, other)))
    report["asked_later"] = run(Job("ask", **usual, **kept, pictures=(one,)))
    fresh: dict[str, Any] = {"kept": str(work / "other"), "options": limit}
    report["other_alone"] = run(Job("ask", **usual, **fresh, pictures=(other,)))
    # Another picture's answer is that of a fresh run, and the same picture's stays the same.
    report["equal"] = {
        "again": report["asked"]["answers"][0] == report["asked"]["answers"][1],
        "later": report["asked"]["answers"][0] == report["asked_later"]["answers"][0],
        "other": report["asked"]["answers"][2] == report["other_alone"]["answers"][0],
    }
    return report


def write_pictures(work: Path, side: int) -> Iterator[Path]:
    """Write two pictures of noise."""
    from PIL import Image

    for seed in range(2):
        path = work / f"noise{seed}.png"
        pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
        Image.fromarray(pixels).save(path)
        yield path


def show_bundle(report: dict[str, Any]) -> None:
    show_about(report)
    tower = report["tower"]
    print(
        f"tower on {report['engine']}: {tower['tower_s']:.1f} s for {tower['rows']:,} rows, {tower['layer_s']:.2f} s a "
        f"layer; {len(tower['parts_s'])} parts: {', '.join(f'{seconds:.1f}' for seconds in tower['parts_s'])} s\n"
        f"memory: {tower['before_bytes'] / MB:.0f} MB before, {tower['peak_bytes'] / MB:.0f} at the peak, "
        f"{tower['left_bytes'] / MB:.0f} afterwards, {tower['resident_peak_bytes'] / MB:.0f} resident at most\n"
    )
    if "asked" not in report:
        return
    asked, later = report["asked"], report["asked_later"]
    firsts, peaks = asked["first_token_s"], asked["peaks_bytes"]
    runs = [
        ("a fresh picture", firsts[0], peaks[0], None),
        ("the same again", firsts[1], peaks[1], report["equal"]["again"]),
        ("the same in a new process", later["first_token_s"][0], later["peaks_bytes"][0], report["equal"]["later"]),
        ("another picture", firsts[2], peaks[2], report["equal"]["other"]),
    ]
    show_table([
        {
            "question about": name,
            "first token, s": f"{first:.2f}",
            "at peak, MB": f"{peak / MB:.0f}",
            "answer as it should be": "" if equal is None else "yes" if equal else "NO",
        }
        for name, first, peak, equal in runs
    ])  # fmt: skip
    print(f"resident at most: {asked['resident_peak_bytes'] / MB:.0f} MB; loaded in {asked['load_s']:.1f} s")


if __name__ == "__main__":
    sys.exit(main())
