"""Export: from a checkpoint to a finished bundle.

In: a source, an output folder, a recipe. Out: the bundle, and its manifest. Everything is written to a temporary folder
beside the output and renamed at the end, so a failed or interrupted export leaves nothing behind.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import openvino as ov

from edge.export import recipes
from edge.export.architectures import describe
from edge.export.checkpoint import Checkpoint, Float32Array, open_checkpoint
from edge.export.checkpoint.gguf import source_files
from edge.export.golden import GOLDEN_TEXT, Golden, GoldenRun
from edge.export.graph.openvino import stateful_decoder
from edge.export.names import Weights, canonical_shapes
from edge.export.recipes import Precision, Recipe
from edge.export.tensors import Weight
from edge.runtime import bundle
from edge.runtime.bundle import FileRecord, Manifest, TensorRecord
from edge.runtime.errors import BundleError, OutputError, TensorError
from edge.runtime.spec import ModelSpec
from edge.runtime.tokenizer import Tokenizer

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
    if rope_theta is not None:
        spec = replace(spec, rope_theta=rope_theta)
        weights = replace(weights, spec=spec)
    with _finished_folder(Path(out), force) as folder:
        _check_space(folder, spec, chosen)
        tokenizer = _write_texts(checkpoint, folder)
        packed, golden = compress(weights, chosen, tokenizer.encode(GOLDEN_TEXT), progress)
        progress(Progress("writing", spec.num_parameters, spec.num_parameters))
        _write_model(packed, spec, folder)
        golden.write(folder / bundle.GOLDEN)
        manifest = _manifest(checkpoint, spec, chosen, packed, golden, folder)
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


def _write_texts(checkpoint: Checkpoint, folder: Path) -> Tokenizer:
    """Tokenizer, chat template and configs."""
    checkpoint.write_tokenizer(folder / bundle.TOKENIZER)
    if (template := checkpoint.chat_template()) is not None:
        (folder / bundle.CHAT_TEMPLATE).write_text(template, encoding="utf-8")
    return Tokenizer(folder / bundle.TOKENIZER)


def _write_model(packed: dict[str, Weight], spec: ModelSpec, folder: Path) -> None:
    xml, binary = folder / bundle.MODEL_XML, folder / bundle.MODEL_BIN
    try:
        ov.serialize(stateful_decoder(packed, spec), xml, binary)
    except RuntimeError as error:
        raise OutputError(
            f"{folder.parent}: the model could not be written ({error}); the disk is full or refuses, free some space"
        ) from error


def _manifest(
    checkpoint: Checkpoint, spec: ModelSpec, recipe: Recipe, packed: dict[str, Weight], golden: Golden, folder: Path
) -> Manifest:
    stops = _stop_ids(checkpoint)
    _write_configs(checkpoint, spec, stops, folder)
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
        stop_token_ids=stops,
        bits_per_weight=round(8 * weight_bytes / spec.num_parameters, 4),
        weight_bytes=weight_bytes,
        golden_kld=golden.kld,
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


def _stop_ids(checkpoint: Checkpoint) -> tuple[int, ...]:
    """Every id that ends an answer: those of generation_config and of config, in this order."""
    found = checkpoint.generation_config().ids("eos_token_id") + checkpoint.config.ids("eos_token_id")
    return tuple(dict.fromkeys(found))


def _write_configs(checkpoint: Checkpoint, spec: ModelSpec, stops: tuple[int, ...], folder: Path) -> None:
    """config.json and generation_config.json, which openvino_genai and optimum-intel look for."""
    generation = {**checkpoint.generation_config().values, "eos_token_id": list(stops)}
    config = {
        "architectures": ["GlmForCausalLM"],
        "model_type": "glm",
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "head_dim": spec.head_dim,
        "partial_rotary_factor": spec.rotary_dim / spec.head_dim,
        "rope_theta": spec.rope_theta,
        "rms_norm_eps": spec.rms_norm_eps,
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.max_position_embeddings,
        "attention_bias": spec.qkv_bias,
        "tie_word_embeddings": spec.tied_embeddings,
        "hidden_act": "silu",
        "eos_token_id": list(stops),
    }
    for name, values in ((bundle.GENERATION_CONFIG, generation), (bundle.CONFIG, config)):
        text = json.dumps(values, indent=1, sort_keys=True, ensure_ascii=False)
        (folder / name).write_text(text + "\n", encoding="utf-8")


def _check_space(folder: Path, spec: ModelSpec, recipe: Recipe) -> None:
    """Raises OutputError when the bundle cannot fit on the disk."""
    needed = sum(recipe.bytes_of(name, shape) for name, shape in canonical_shapes(spec).items())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(f"{folder.parent}: {free:,} bytes free, the bundle needs about {needed:,}; free some space")


@contextmanager
def _finished_folder(out: Path, force: bool) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its place when the body succeeds, and vanishes when it does not."""
    if out.exists() and not force:
        raise OutputError(f"{out} exists already; choose another folder, or give --force to replace it")
    if out.exists() and not (out.is_dir() and (bundle.is_bundle(out) or not any(out.iterdir()))):
        raise OutputError(f"{out} is not a bundle, so --force does not replace it; choose another folder")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    except OSError as error:
        raise OutputError(f"{out.parent} cannot be written ({error.strerror}); choose another folder") from error
    try:
        yield folder
        folder.chmod(0o755)  # mkdtemp makes it private
        if out.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".old", dir=out.parent))
            out.rename(old / out.name)
            folder.rename(out)
            shutil.rmtree(old)
        else:
            folder.rename(out)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OutputError(f"{out.parent}: the disk is full ({error.strerror}); free some space") from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
