"""Turn a checkpoint into a bundle.

examples:
  edge export glm-4-9b-chat-hf glm4-int4
  edge export model.gguf out --recipe int4-asym-g64 --force
  edge export glm-4-9b-chat-hf glm4-5gb --max-bytes 5.2GB
  edge export glm-4-9b-chat-hf glm4-5gb --recipe int4-asym-g128-rot-gptq --dry-run
  edge export Qwen/Qwen2.5-0.5B-Instruct qwen --frontend optimum

OUT is a new or an empty folder, a mount point too. An export that was interrupted, killed, or stopped by a full disk
keeps what is done in a hidden folder, .OUT.partial beside OUT or .export.partial in it: the same command goes on from
there, another one for the same OUT starts anew; delete that folder to give it up.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge.export.settings import ExportSettings
    from edge.export.stages import Progress
    from edge.runtime.manifest import Manifest

SHARED = ("recipe", "format", "force")  # settings that the other frontend has a use for
UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a folder with config.json and *.safetensors, a .gguf file, or a hub id (org/name where no folder org is "
        "here, hf:org/name always), which is downloaded",
    )
    parser.add_argument("out", metavar="OUT", help="the bundle folder to make, or an empty one")
    parser.add_argument(
        "--force",
        action="store_true",
        help="replace the bundle in OUT; files there that its manifest does not name stay",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print what every weight would get, the bytes, the disk and about the time, and write nothing",
    )
    parser.add_argument(
        "--format",
        choices=["openvino", "onnx", "both"],
        help="graphs over the same weights: for OpenVINO, ONNX Runtime or both. default: both",
    )
    parser.add_argument(
        "--frontend",
        choices=["native", "optimum"],
        default="native",
        help="what makes the graph; optimum-intel knows more architectures. default: native",
    )
    parser.add_argument("--adapter", metavar="DIR", help="a PEFT LoRA to merge into the weights")
    parser.add_argument("--rope-theta", type=float, metavar="X", help="replace the checkpoint's rotary base")
    parser.add_argument(
        "--rotary-dim",
        type=int,
        metavar="N",
        help="how many dims of each head rotate, instead of the checkpoint's word",
    )
    precision = parser.add_argument_group("precision")
    precision.add_argument("--recipe", metavar="NAME", help="default: int4-asym-g128")
    precision.add_argument("--embedding", metavar="PRECISION", help="of the embedding, like int4-asym-g128")
    precision.add_argument("--head", metavar="PRECISION", help="of the vocabulary projection, like int4-asym-g128")
    precision.add_argument(
        "--calibration",
        metavar="FILE",
        help="text or .jsonl for recipes that are fitted to text. default: docstrings of Python's standard library",
    )
    budget = parser.add_argument_group("precision within a budget, instead of a recipe")
    budget.add_argument(
        "--max-bytes",
        type=parse_bytes,
        metavar="SIZE",
        help="the most accurate model with at most so many bytes of weights, like 5.2GB",
    )
    budget.add_argument(
        "--max-kld",
        type=float,
        metavar="X",
        help="the smallest model with at most this predicted KLD from the float one, like 0.05",
    )
    budget.add_argument(
        "--device",
        choices=["CPU", "GPU", "NPU"],
        help="target device of the chosen precisions; NPUs want symmetric ones. default: CPU",
    )


def parse_bytes(text: str) -> int:
    """5.2GB, 5200MB, 5.2e9 or 4.8GiB in bytes."""
    match = re.fullmatch(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-z]*)\s*", text.lower())
    try:
        size = float(match[1]) * UNITS[match[2]] if match else math.nan
    except (KeyError, ValueError):
        size = math.nan
    if not 1 <= size < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; give bytes like 5.2GB, 5200MB or 5.2e9")
    return int(size)


def run(args: argparse.Namespace) -> int:
    from edge.commands.console import export_progress, human_bytes
    from edge.commands.ending import telling_what_is_kept

    if args.dry_run:
        return _dry_run(args)
    started = time.perf_counter()
    with telling_what_is_kept(Path(args.out)), export_progress() as progress:
        manifest = _export(args, progress)
    for decision in manifest.decisions:
        print(f"  {decision}")
    for check in manifest.checks:
        explained = f", rounding explains {check.expected:.1e}" if check.expected else ""
        print(f"  {check.stage:<10} off by {check.error:.2e} of its output{explained}")
    for warning in manifest.warnings:
        print(f"edge: warning: {warning}", file=sys.stderr)
    notes: dict[str, int] = {}
    for tensor in manifest.tensors.values():
        if tensor.note and len(tensor.shape) == 2:
            key = f"{tensor.precision}: {tensor.note}"
            notes[key] = notes.get(key, 0) + 1
    for note, count in notes.items():
        print(f"  {count} weight{'s' if count > 1 else ''} at {note}")
    print(
        f"{args.out}: {manifest.recipe}, {human_bytes(manifest.weight_bytes)} of weights, "
        f"{manifest.bits_per_weight:.2f} bits per weight, "
        f"golden KLD {manifest.golden_kld:.4f}, {time.perf_counter() - started:.1f} s"
    )
    return 0


def _export(args: argparse.Namespace, progress: Callable[[Progress], None]) -> Manifest:
    from edge.export.settings import ExportSettings

    if args.frontend == "optimum":
        from edge.export.frontend_optimum.export import export_with_optimum
        from edge.runtime.errors import RecipeError

        names = [field.name for field in fields(ExportSettings)]
        if given := [name for name in names if name not in SHARED and getattr(args, name) is not None]:
            option = given[0].replace("_", "-")
            raise RecipeError(f"--{option} works on graphs of our own; leave it out, or --frontend optimum")
        if args.format not in (None, "openvino"):
            raise RecipeError(f"--frontend optimum makes OpenVINO graphs only, not {args.format}; leave --format out")
        return export_with_optimum(args.source, args.out, args.recipe, force=args.force, progress=progress)
    from edge.export.pipeline import export_with

    return export_with(_settings(args), args.source, args.out, progress)


def _dry_run(args: argparse.Namespace) -> int:
    from edge.commands.export_dry_run import show_dry_run
    from edge.export.forecast.dry_run import dry_run
    from edge.runtime.errors import RecipeError

    if args.frontend == "optimum":
        raise RecipeError(
            "--dry-run knows no weights of a graph that optimum-intel has yet to make; leave it out, or --frontend "
            "optimum"
        )
    show_dry_run(dry_run(_settings(args), args.source, args.out), args.out)
    return 0


def _settings(args: argparse.Namespace) -> ExportSettings:
    from edge.export.settings import ExportSettings

    return ExportSettings(**{field.name: getattr(args, field.name) for field in fields(ExportSettings)})
