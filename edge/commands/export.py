"""Turn a checkpoint into a bundle.

OUT is a name, or the path of a new or an empty folder; a mount point will do. An export that was interrupted, killed,
or stopped by a full disk keeps its finished work in a hidden folder, .OUT.partial beside OUT or .export.partial inside
it. The same command resumes from there, with --fresh it starts anew, and so does another command for the same OUT.

`edge recipes` lists the recipes.

examples:
  edge export THUDM/glm-4-9b-chat-hf glm4-int4
  edge export model.gguf out --recipe int4-asym-g64 --force
  edge export glm-4-9b-chat-hf glm4-gpu --device GPU
  edge export glm-4-9b-chat-hf glm4-5gb --max-bytes 5.2GB
  edge export glm-4-9b-chat-hf glm4-5gb --recipe int4-asym-g128-rot-gptq --dry-run
  edge export google/gemma-2-2b-it gemma --frontend optimum
"""

from __future__ import annotations

import argparse
import time
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from edge.commands import kinds, options
from edge.commands.export_place import OUT_HELP, settle, tell_what_is_cached
from edge.commands.help import told, usual
from edge.export.compress.recipes import DEFAULT, FOR_NPU, FOR_TOWERS, NO_TOWER
from edge.export.settings import DEVICES, FORMATS, ExportSettings, Limits

if TYPE_CHECKING:
    from edge.commands.export_told import Telling
    from edge.export.settings import ExportSettings
    from edge.runtime.manifest import Manifest

SHARED = ("recipe", "format", "force", "fresh")  # settings that the other frontend has a use for
FRONTENDS = ("native", "optimum")  # the first is the default


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a folder with config.json and *.safetensors, a .gguf file, or a hub id to download (org/name where there "
        "is no folder org, hf:org/name anywhere)",
    )
    out = parser.add_argument("out", metavar="OUT", help=OUT_HELP)
    out.required = False  # nargs="?" would not find it after an option, in Python 3.11
    parser.add_argument(
        "--force",
        action="store_true",
        help="replace the bundle in OUT; files there that its manifest does not name are kept",
    )
    parser.add_argument("--fresh", action="store_true", help="start anew where an export to OUT was stopped")
    said = parser.add_argument_group("what is printed")
    said.add_argument(
        "--dry-run",
        action="store_true",
        help="print what every weight would get, bytes, memory, disk and about the time, and write nothing",
    )
    said.add_argument("--verbose", action="store_true", help="print every check, and why weights are special")
    options.add_json(said)
    options.add_memory(parser.add_argument_group("memory"))
    graphs = parser.add_argument_group("graphs")
    graphs.add_argument(
        "--format",
        choices=FORMATS,
        help=told("which graphs to write over the same weights", usual(ExportSettings, "format")),
    )
    graphs.add_argument(
        "--frontend",
        choices=FRONTENDS,
        default=FRONTENDS[0],
        help=told("what builds the graph; optimum-intel knows more architectures", FRONTENDS[0]),
    )
    model = parser.add_argument_group("model")
    model.add_argument("--adapter", metavar="DIR", help="merge this PEFT LoRA into the weights")
    model.add_argument("--rope-theta", type=float, metavar="X", help="rotary base, instead of the checkpoint's")
    model.add_argument(
        "--rotary-dim", type=int, metavar="N", help="rotated dims of each head, instead of the checkpoint's"
    )
    model.add_argument(
        "--chat-template", metavar="FILE", help="use this Jinja template of messages, instead of the checkpoint's"
    )
    precision = parser.add_argument_group("precision")
    precision.add_argument(
        "--recipe",
        metavar="NAME",
        help=told("a recipe listed by `edge recipes`", f"{DEFAULT}; for an NPU {FOR_NPU}"),
    )
    precision.add_argument(
        "--embedding",
        metavar="PRECISION",
        help="precision of the embedding, like int4-asym-g128, instead of the recipe's",
    )
    precision.add_argument(
        "--head", metavar="PRECISION", help="precision of the vocabulary projection, instead of the recipe's"
    )
    precision.add_argument(
        "--pictures",
        metavar="RECIPE",
        help=told(
            "precision of the picture tower of a model that sees: a recipe that only rounds, like int4-asym-g128, or "
            f"{NO_TOWER} to leave it out",
            f"{FOR_TOWERS}; floats with --recipe fp16 and fp32",
        ),
    )
    precision.add_argument(
        "--calibration",
        metavar="FILE",
        help=told("text or .jsonl for recipes that need calibration text", "docstrings of Python's standard library"),
    )
    precision.add_argument(
        "--device",
        choices=DEVICES,
        help=told(
            "what the bundle is for: NPUs want symmetric integers, NPUs and GPUs weights that float16 can compute with",
            usual(Limits, "device"),
        ),
    )
    budget = parser.add_argument_group("precision within a budget, instead of a recipe")
    budget.add_argument(
        "--max-bytes",
        type=kinds.size,
        metavar="SIZE",
        help="the most accurate model whose weights take at most this much, like 5.2GB",
    )
    budget.add_argument(
        "--max-kld",
        type=float,
        metavar="X",
        help="the smallest model with at most this predicted KLD from the float model, like 0.05",
    )


def run(args: argparse.Namespace) -> int:
    from edge.commands.ending import telling_what_is_kept
    from edge.commands.export_told import Telling, print_done, tell_done
    from edge.models.recent import remember

    settle(args)
    out = Path(args.out)
    if args.dry_run:
        return _dry_run(args)
    started = time.perf_counter()
    with telling_what_is_kept(out), Telling(out) as telling:
        manifest = _export(args, telling)
    remember(out)
    seconds = time.perf_counter() - started
    if args.json:
        print_done(manifest, out, args.called, seconds)
    else:
        tell_done(manifest, out, args.called, seconds, verbose=args.verbose)
        tell_what_is_cached(args.source)
    return 0


def _export(args: argparse.Namespace, telling: Telling) -> Manifest:
    if args.frontend == "optimum":
        from edge.runtime.errors import RecipeError
        from edge.runtime.extras import missing_packages_named

        with missing_packages_named("optimum"):
            from edge.export.frontend_optimum.export import export_with_optimum

        names = [field.name for field in fields(ExportSettings)]
        if given := [name for name in names if name not in SHARED and getattr(args, name) is not None]:
            option = given[0].replace("_", "-")
            raise RecipeError(f"--{option} needs the native frontend; leave it or --frontend optimum out")
        if args.format not in (None, "openvino"):
            raise RecipeError(f"--frontend optimum makes OpenVINO graphs only, not {args.format}; leave --format out")
        return export_with_optimum(args.source, args.out, args.recipe, force=args.force, progress=telling.progress)
    from edge.export.pipeline import export_with

    return export_with(_settings(args), args.source, args.out, telling.progress, telling.begin)


def _dry_run(args: argparse.Namespace) -> int:
    from edge.commands.export_dry_run import print_dry_run, show_dry_run
    from edge.export.forecast.dry_run import dry_run
    from edge.runtime.errors import RecipeError

    if args.frontend == "optimum":
        raise RecipeError(
            "--dry-run cannot tell the weights of a graph that optimum-intel has yet to make; leave it or --frontend "
            "optimum out"
        )
    run = dry_run(_settings(args), args.source, args.out)
    if args.json:
        print_dry_run(run, args.out)
    else:
        show_dry_run(run, args.out)
    return 0


def _settings(args: argparse.Namespace) -> ExportSettings:
    """Every choice but source and destination. Raises SettingsError and RecipeError."""
    return ExportSettings(**{field.name: getattr(args, field.name) for field in fields(ExportSettings)})
