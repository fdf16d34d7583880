"""Show what a bundle or a checkpoint holds.

For a bundle: its recipe, the precision of its weights, how much of them a token reads, and its files. For a checkpoint:
its shape, and how large each recipe would make it. Of models that see pictures, the picture tower as well, with what
float16 has left above its values.

examples:
  edge inspect glm4-int4
  edge inspect glm-4-9b-chat-hf --json
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.commands import options

if TYPE_CHECKING:
    from edge.runtime.float16_record import Float16Record


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path",
        metavar="PATH",
        help="a bundle or its name, a checkpoint folder, a .gguf file, or the hub id of a model downloaded before; no "
        "hub is asked",
    )
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    from edge.models.find import find_named
    from edge.runtime.bundle import is_bundle

    path = Path(args.path)
    if not os.path.lexists(path):
        path = find_named(args.path) or path
    return _bundle(path, args.json) if is_bundle(path) else _checkpoint(args.path, args.json)


def _bundle(path: Path, as_json: bool) -> int:
    import json

    from edge.commands.console import human_bytes, print_json, print_table
    from edge.commands.inspect_tower import print_headroom, print_tower
    from edge.commands.weight_rows import AS_SAID, alike, shape_text
    from edge.runtime.bundle import open_bundle
    from edge.runtime.engines.registry import ENGINES
    from edge.runtime.footprint import read_bytes

    bundle = open_bundle(path)
    manifest = bundle.manifest
    read = {
        record.name: read_bytes(manifest.tensors, record.name)
        for record in ENGINES.values()
        if record.runs_on("CPU") and record.holds(bundle)
    }
    if as_json:
        print_json({"kind": "bundle", **json.loads(manifest.to_json()), "read_bytes_per_token": read})
        return 0
    parameters = sum(math.prod(tensor.shape) for tensor in manifest.tensors.values())
    print(f"{path}: bundle of {manifest.source}, recipe {manifest.recipe}")
    print(
        f"{parameters:,} parameters, {human_bytes(manifest.weight_bytes)} of weights, "
        f"{manifest.bits_per_weight:.2f} bits per weight, golden KLD {manifest.golden_kld:.4f}"
    )
    if read:
        each = ", ".join(f"{human_bytes(size)} with {engine}" for engine, size in read.items())
        print(f"weights that a CPU reads for each token: {each}")
    _print_spec(manifest.spec.to_json())
    for warning in manifest.warnings:
        print(f"warning: {warning}")
    for decision in manifest.decisions:
        print(f"decided: {decision}")
    if manifest.adapter:
        print(f"with the LoRA {manifest.adapter}")
    if manifest.checks:
        worst = max(manifest.checks, key=lambda check: check.error)
        print(f"stages checked at export: {len(manifest.checks)}, the worst {worst.stage}, off by {worst.error:.2g}")
    vision = manifest.vision
    if vision is not None:
        print_tower(vision)
    if manifest.float16 is not None:
        _print_float16(manifest.float16)
    if vision is not None:
        print()
        print_headroom(vision)
    rows = []
    tensors = {**manifest.tensors, **({} if vision is None else vision.tensors)}
    said = {name: (t.shape, t.precision, t.note) for name, t in tensors.items()}
    for name, names, (shape, precision, note) in alike(said):
        size = sum(tensors[one].nbytes for one in names)
        rows.append([name, len(names), shape_text(shape), precision, human_bytes(size), note or AS_SAID])
    print()
    columns = ["weight", "count", "shape", "precision", "bytes", "why"]
    print_table(columns, rows, spare=["why", "count", "shape"], prose=["why"])
    print()
    print_table(["file", "bytes"], ([name, human_bytes(file.size)] for name, file in manifest.files.items()))
    return 0


def _checkpoint(source: str, as_json: bool) -> int:
    from edge.commands.console import human_bytes, print_json, print_table
    from edge.commands.inspect_tower import print_source, tower_json
    from edge.commands.recipes import weight_bytes
    from edge.export.architectures.doubts import doubts
    from edge.export.architectures.registry import describe, describe_tower
    from edge.export.checkpoint.checkpoint import open_checkpoint
    from edge.export.compress.recipes import recipes

    checkpoint = open_checkpoint(source, download=False)
    spec, _ = describe(checkpoint)
    tower = describe_tower(checkpoint, spec)
    warnings = doubts(checkpoint, spec)
    sizes = {  # without those that a model of this kind cannot have
        name: size for name, recipe in recipes().items() if (size := weight_bytes(recipe, spec)) is not None
    }
    tensors = len(checkpoint.shapes)
    if as_json:
        print_json(
            {
                "kind": "checkpoint",
                "format": checkpoint.format,
                "tensors": tensors,
                "spec": spec.to_json(),
                "warnings": warnings,
                "weight_bytes": sizes,
                "pictures": None if tower is None else tower_json(tower),
            }
        )
        return 0
    print(f"{source}: {checkpoint.format} checkpoint, {tensors} tensors, {spec.num_parameters:,} parameters")
    _print_spec(spec.to_json())
    if tower is not None:
        print_source(tower)
    for warning in warnings:
        print(f"warning: {warning}")
    print()
    print_table(
        ["recipe", "weights", "what"],
        ([name, human_bytes(size), recipes()[name].description] for name, size in sizes.items()),
    )
    return 0


def _print_float16(record: Float16Record) -> None:
    """What was done for a device that computes in float16, and how much of its range is left."""
    from edge.commands.console import print_table

    single = {"residual": record.residual, "output": record.output, "head": record.head}
    blocks = {"up": record.up, "values": record.values, "qkv": record.qkv, "gate_up": record.gate_up}
    folds = [f"{name} / {2**exponent}" for name, exponent in single.items() if exponent]
    folds += [
        f"{name} / {2 ** max(exponents)} at most, in {len([e for e in exponents if e])} blocks"
        for name, exponents in blocks.items()
        if any(exponents)
    ]
    judged = "not finite" if record.kld is None else f"KLD {record.kld:.2g} nats/token from float32"
    print(f"for {record.device}s, which compute in float16: norms {record.norms}, folds: {', '.join(folds) or 'none'}")
    print(f"emulated ({record.numerics}): {judged}, {record.bound:g} at most expected")
    print()
    rows = ([kind, f"{bits:.1f}"] for kind, bits in sorted(record.headroom.items(), key=lambda item: item[1]))
    print_table(["value", "bits of headroom"], rows)


def _print_spec(spec: dict[str, Any]) -> None:
    width = max(map(len, spec))
    for name, value in spec.items():
        print(f"  {name:<{width}}  {value}")
