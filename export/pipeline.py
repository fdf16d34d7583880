"""Export: from a checkpoint to a finished bundle.

In: a source, an output folder, a recipe. Out: the bundle, and its manifest; or an error, and nothing left behind.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import openvino as ov

from edge.export import recipes
from edge.export.architectures import describe, doubts
from edge.export.checkpoint import Checkpoint, Float32Array, open_checkpoint
from edge.export.checkpoint.gguf import source_files
from edge.export.golden import GOLDEN_TEXT, Golden, GoldenRun
from edge.export.graph.openvino import stateful_decoder
from edge.export.names import Weights, canonical_shapes
from edge.export.output import check_space, finished_folder
from edge.export.recipes import Precision, Recipe
from edge.export.sidecars import write_sidecars
from edge.export.tensors import Weight
from edge.runtime import bundle
from edge.runtime.bundle import FileRecord, Manifest, TensorRecord
from edge.runtime.errors import BundleError, OutputError, TensorError
from edge.runtime.spec import ModelSpec

VERSIONED = ("edgeglm", "openvino", "nncf", "numpy")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an export is."""

    stage: str  # "embedding", "block 3", "head", "writing"
    done: int  # weights done, in parameters
    total: int


def export(
    source: str | Path,
    out: str | Path,
    recipe: str = recipes.DEFAULT,
    *,
    rope_theta: float | None = None,
    force: bool = False,
    progress: Callable[[Progress], None] = lambda _progress: None,
) -> Manifest:
    """Export a checkpoint to a bundle at `out`.

    source: a folder with config.json and *.safetensors, or a .gguf file. recipe: a name in recipes.toml. rope_theta:
    replaces the checkpoint's rotary base. force: replace an existing `out`. progress is called after every step.

    Raises CheckpointError, RecipeError, OutputError, TokenizerError and VerificationError; `out` is then as before.
    """
    chosen = recipes.find_recipe(recipe)
    checkpoint = open_checkpoint(source)
    spec, weights = describe(checkpoint)
    if rope_theta is None:
        warnings = doubts(spec)
    else:
        spec, warnings = replace(spec, rope_theta=rope_theta), ()
        weights = replace(weights, spec=spec)
    with finished_folder(Path(out), force) as folder:
        check_space(folder, sum(chosen.bytes_of(name, shape) for name, shape in canonical_shapes(spec).items()))
        tokenizer, stop_ids = write_sidecars(checkpoint, spec, folder)
        packed, golden = compress(weights, chosen, tokenizer.encode(GOLDEN_TEXT), progress)
        progress(Progress("writing", spec.num_parameters, spec.num_parameters))
        _write_model(packed, spec, folder)
        golden.write(folder / bundle.GOLDEN)
        manifest = _manifest(checkpoint, spec, chosen, packed, golden, stop_ids, warnings, folder)
        (folder / bundle.MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def is_export_of(out: Path, source: Path, recipe: str) -> bool:
    """Whether `out` is a bundle that exporting the GGUF file `source` with these versions would make again."""
    try:
        manifest = bundle.open_bundle(out).manifest
    except BundleError:
        return False
    same = manifest.recipe == recipe and manifest.versions == _versions()
    return same and manifest.source_sha256 == source_sha256(source_files(source))


def compress(
    weights: Weights, recipe: Recipe, golden_ids: list[int], progress: Callable[[Progress], None]
) -> tuple[dict[str, Weight], Golden]:
    """Compress all weights, one decoder block in float memory at a time, and run the golden tokens alongside."""
    spec, run = weights.spec, GoldenRun(golden_ids, weights.spec)
    packed: dict[str, Weight] = {}
    done = 0

    def step(stage: str, floats: dict[str, Float32Array], layer: int | None) -> dict[str, Weight]:
        nonlocal done
        fresh = _pack(floats, layer, spec, recipe)
        packed.update(fresh)
        done += sum(weight.size for weight in floats.values())
        progress(Progress(stage, done, spec.num_parameters))
        return fresh

    embedding = {"embed.weight": weights.read("embed.weight")}
    run.embed(embedding, step("embedding", embedding, None))
    if not spec.tied_embeddings:
        del embedding
    for layer in range(spec.num_layers):
        block = weights.block(layer)
        run.block(layer, block, step(f"block {layer}", block, layer))
    head = {"norm.weight": weights.read("norm.weight")}
    if not spec.tied_embeddings:
        head["lm_head.weight"] = weights.read("lm_head.weight")
    step("head", head, None)
    return packed, run.head(head | embedding if spec.tied_embeddings else head, packed)


def _pack(floats: dict[str, Float32Array], layer: int | None, spec: ModelSpec, recipe: Recipe) -> dict[str, Weight]:
    """Each weight in the precision that the recipe gives it."""
    from edge.export.compress import compress_block, compress_matrix  # nncf takes seconds to import

    plan = {name: recipe.precision_of(name, weight.shape)[0] for name, weight in floats.items()}
    integers = {name: precision for name, precision in plan.items() if not precision.is_float}
    packed: dict[str, Weight] = {
        name: _to_float(floats[name], name, precision) for name, precision in plan.items() if precision.is_float
    }
    if layer is not None and integers:
        packed |= compress_block(floats, layer, spec, integers)
    else:
        packed |= {name: compress_matrix(name, floats[name], precision) for name, precision in integers.items()}
    return packed


def _to_float(weight: Float32Array, name: str, precision: Precision) -> Weight:
    if precision.bits == 32:
        return weight
    if np.abs(weight).max(initial=0) > np.finfo(np.float16).max:
        raise TensorError(f"{name} reaches {np.abs(weight).max():.3g}, beyond float16; use recipe fp32 or an int8 one")
    return weight.astype(np.float16)


def _write_model(packed: dict[str, Weight], spec: ModelSpec, folder: Path) -> None:
    xml, binary = folder / bundle.MODEL_XML, folder / bundle.MODEL_BIN
    try:
        ov.serialize(stateful_decoder(packed, spec), xml, binary)
    except RuntimeError as error:
        raise OutputError(
            f"{folder.parent}: the model could not be written ({error}); the disk is full or refuses, free some space"
        ) from error


def _manifest(
    checkpoint: Checkpoint,
    spec: ModelSpec,
    recipe: Recipe,
    packed: dict[str, Weight],
    golden: Golden,
    stop_ids: tuple[int, ...],
    warnings: tuple[str, ...],
    folder: Path,
) -> Manifest:
    tensors, groups = {}, set()
    for name, weight in packed.items():
        precision, note = recipe.precision_of(name, weight.shape)
        tensors[name] = TensorRecord(tuple(weight.shape), str(precision), weight.nbytes, note)
        groups.add(precision.group_size)
    weight_bytes = sum(tensor.nbytes for tensor in tensors.values())
    files: dict[str, FileRecord] = {path.name: bundle.record_of(path) for path in sorted(folder.iterdir())}
    return Manifest(
        schema_version=bundle.SCHEMA_VERSION,
        source=checkpoint.path.resolve().name,
        source_sha256=source_sha256(checkpoint.files()),
        spec=spec,
        recipe=recipe.name,
        weight_group_size=min(groups - {0}, default=0),
        stop_token_ids=stop_ids,
        bits_per_weight=round(8 * weight_bytes / spec.num_parameters, 4),
        weight_bytes=weight_bytes,
        golden_kld=golden.kld,
        warnings=warnings,
        tensors=tensors,
        files=files,
        versions=_versions(),
    )


def _versions() -> dict[str, str]:
    return {name: version(name) for name in VERSIONED}


def source_sha256(files: list[Path]) -> str:
    """One hash over names and contents of the files that decide the result."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0{bundle.sha256_of(file)}\n".encode())
    return digest.hexdigest()
