"""Export through optimum-intel, for architectures that we do not map: its graph in our bundle.

In: a checkpoint folder (or hub id), an output folder, a recipe. Out: the bundle, laid out like the pipeline's, and its
manifest; or an error, and nothing left over. optimum-intel loads the model with torch and traces it, NNCF compresses
the traced graph, and both hold the whole model in float32; nothing is resumed. Pickles and remote code are refused.

Knows nothing about architectures: weights come from the graph, and the numbers of the ModelSpec from config.json; 0 and
False also mean that config.json does not say. It does not know how much of an error rounding explains either, so the
manifest's check expects 0.0; what is checked is that the runtime computes what the stateful graph computes.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import openvino as ov

from edge.export.assignment import Assignments
from edge.export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from edge.export.compress import recipes
from edge.export.compress.recipes import Recipe
from edge.export.frontend_optimum.matrices import became, check_float16_range, read_matrices, wanted
from edge.export.frontend_optimum.trace import reason, require_packages, trace
from edge.export.interop import openvino_tokenizer
from edge.export.interop.sidecars import write_server_graph, write_sidecars
from edge.export.manifest_of import make_manifest
from edge.export.output import check_space, work_folder
from edge.export.pipeline import check_arguments
from edge.export.plan import source_name, source_sha256, tensor_sha256, versions
from edge.export.proof import GOLDEN_ROWS, GOLDEN_TEXT, GOLDEN_TOKENS, Golden
from edge.export.settings import ExportSettings
from edge.export.source_files import SourceFiles
from edge.export.space import SIDECAR_BYTES
from edge.export.stages import Progress
from edge.runtime import bundle
from edge.runtime.arrays import Logits
from edge.runtime.differences import FLOAT32_BOUND, distance
from edge.runtime.engines.openvino_core import make_core
from edge.runtime.engines.openvino_paged import OpenVINOPagedEngine
from edge.runtime.errors import (
    CheckpointError,
    DeviceError,
    OutputError,
    RecipeError,
    VerificationError,
)
from edge.runtime.extras import missing_packages_named
from edge.runtime.kv.pool import CacheSequence
from edge.runtime.manifest import Manifest
from edge.runtime.settings import EngineSettings
from edge.runtime.spec import ModelSpec
from edge.runtime.tensor_records import StageCheck

VERSIONED = ("optimum-intel", "optimum", "transformers", "torch")
# Where rows of a bias say that q, k and v have one, in a config that does not.
_QKV_BIASES = ("q_proj.bias", "qkv_proj.bias", "query_key_value.bias", "c_attn.bias", "Wqkv.bias")


@missing_packages_named("optimum")
def export_with_optimum(
    source: str | Path,
    out: str | Path,
    recipe: str | None = None,
    *,
    force: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Manifest:
    """Export a checkpoint to a bundle at `out`, with the graph that optimum-intel makes of it.

    source: a folder with config.json and *.safetensors, or a hub id. recipe: a name in recipes.toml that rounds to
    nearest. force: replace an existing `out`. progress is called before the weights are written and when the bundle is
    checked.

    Raises CheckpointError, also for what optimum-intel refuses, SettingsError, RecipeError, OutputError, TokenizerError
    and VerificationError, and MissingPackageError where optimum-intel is not installed; `out` is then as before.
    """
    settings = ExportSettings(recipe, format="openvino", force=force)
    check_arguments(source, out, progress)
    progress = progress or (lambda _progress: None)
    chosen = recipes.find_recipe(settings.recipe or recipes.PLAIN)
    _check_plain(chosen)
    require_packages()
    checkpoint = open_checkpoint(source)
    if checkpoint.format != "safetensors":
        raise CheckpointError(
            f"{checkpoint.path}: a {checkpoint.format} file; optimum-intel needs a folder with config.json and "
            "*.safetensors, or leave --frontend optimum out"
        )
    spec = read_spec(checkpoint)
    parameters = sum(math.prod(shape) for shape in checkpoint.shapes.values())
    sources = SourceFiles(checkpoint.weight_files() + checkpoint.small_files())
    with work_folder(Path(out), settings.force, f"optimum {uuid4()}") as work:
        folder = work.folder
        bits = 32 + max(chosen.linear.bits, chosen.embedding.bits, chosen.head.bits)  # of the float graph and ours
        check_space(folder, parameters * bits // 8 + SIDECAR_BYTES)
        sidecars = write_sidecars(checkpoint, spec, folder, checkpoint.chat_template(), own_config=True)
        tokenizer, stop_ids = sidecars.tokenizer, sidecars.stop_ids
        write_server_graph(folder)
        ids = np.array(tokenizer.encode(GOLDEN_TEXT)[:GOLDEN_TOKENS], np.int64)
        with (
            openvino_tokenizer.start(folder, stop_ids[0] if stop_ids else None) as conversion,
            tempfile.TemporaryDirectory(prefix=".float.", dir=folder) as scratch,
        ):
            xml, said = trace(checkpoint, Path(scratch))
            float_logits, asked = _compress(xml, chosen, ids, folder / bundle.MODEL_XML, spec, parameters, progress)
        model = ov.Core().read_model(folder / bundle.MODEL_XML)  # as it is on the disk
        matrices = read_matrices(model)
        spec = replace(spec, tied_embeddings=any({"MatMul", "Gather"} <= m.kinds for m in matrices.values()))
        assignments = became(matrices, asked)
        golden = Golden(ids, float_logits, _logits(model, ids))
        check = _check(golden, chosen)
        _check_runtime(checkpoint, folder / bundle.MODEL_XML, spec, golden)
        layers = spec.num_layers
        progress(Progress("model", layers, layers, parameters, parameters, assignments.nbytes, 0, check))
        golden.write(folder)
        if (problem := conversion.finish()) is not None:
            said = (*said, f"openvino_genai will find no tokenizer: {problem}")
        hashes = tensor_sha256(checkpoint, checkpoint.shapes)
        sources.check_unchanged(checkpoint, hashes)
        manifest = make_manifest(
            source=source_name(source),
            source_sha256=source_sha256(checkpoint, hashes, checkpoint.small_files()),
            spec=spec,
            recipe=chosen.name,
            assignments=assignments,
            stop_ids=stop_ids,
            golden_kld=golden.kld,
            warnings=(*_doubts(checkpoint), *sidecars.warnings, *said),
            checks=(check,),
            folder=folder,
            versions=versions("openvino") | {name: version(name) for name in VERSIONED},
        )
        (folder / bundle.MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def _check_plain(recipe: Recipe) -> None:
    """Raises RecipeError for a recipe that does more than rounding: nobody knows what feeds what in a traced graph."""
    if recipe.calibrated or recipe.rotate or recipe.awq != "off":
        plain = [r.name for r in recipes.recipes().values() if not (r.calibrated or r.rotate or r.awq != "off")]
        raise RecipeError(
            f"recipe {recipe.name} does more than rounding to nearest, which is all that a graph of optimum-intel can "
            f"get; use one of {', '.join(plain)}, or leave --frontend optimum out"
        )


def read_spec(checkpoint: Checkpoint) -> ModelSpec:
    """The ModelSpec, as far as config.json gives it. Raises ConfigError if something is missing that the runtime needs.

    rotary_dim, rope_theta, rms_norm_eps and intermediate_size are 0 if config.json does not give them, because it uses
    another word or the model has none. output_norms is False, and so is tied_embeddings until the graph is read.
    """
    config = checkpoint.config
    hidden_size = config.positive("hidden_size", "n_embd", "d_model")
    num_heads = config.positive("num_attention_heads", "n_head", "n_heads")
    head_dim = config.positive("head_dim", default=max(hidden_size // num_heads, 1))
    rope_theta = config.read(float, "rope_parameters.rope_theta", "rope_theta", "rotary_emb_base", default=0.0)
    rotary_part = config.part(
        "rope_parameters.partial_rotary_factor", "partial_rotary_factor", "rotary_pct", default=1.0
    )
    return ModelSpec(
        architecture=checkpoint.architecture,
        num_layers=config.positive("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
        hidden_size=hidden_size,
        intermediate_size=config.read(int, "intermediate_size", "n_inner", "ffn_dim", default=0),
        num_heads=num_heads,
        num_kv_heads=config.positive("num_key_value_heads", default=num_heads),
        head_dim=head_dim,
        rotary_dim=int(head_dim * rotary_part) if rope_theta else 0,
        rope_theta=rope_theta,
        rms_norm_eps=config.read(float, "rms_norm_eps", default=0.0),
        vocab_size=config.positive("vocab_size"),
        max_position_embeddings=config.positive("max_position_embeddings", "n_positions", "max_seq_len"),
        qkv_bias=config.read(bool, "attention_bias", default=False)
        or any(name.endswith(_QKV_BIASES) for name in checkpoint.shapes),
        tied_embeddings=False,
        output_norms=False,
    )


def _doubts(checkpoint: Checkpoint) -> list[str]:
    """Warnings about what the traced graph is known to leave out."""
    if checkpoint.config.find("attn_logit_softcapping") is None:
        return []
    # Gemma2's own code has it only outside of scaled_dot_product_attention, which optimum-intel's exports need.
    return ["the soft cap on attention scores (attn_logit_softcapping) is left out, as optimum-intel does"]


def _compress(
    xml: Path,
    recipe: Recipe,
    ids: npt.NDArray[np.int64],
    out: Path,
    spec: ModelSpec,
    parameters: int,
    progress: Callable[[Progress], None],
) -> tuple[Logits, Assignments]:
    """Write the graph with its weights as the recipe says; returns what it computed in float32, and what was asked."""
    model = ov.Core().read_model(xml)
    float_logits = _logits(model, ids)
    _require_finite(float_logits, "float")
    matrices = read_matrices(model)
    asked = wanted(matrices, recipe)
    if recipe.linear.bits == 16:
        check_float16_range(matrices)
    plan = {
        reader: asked[name].precision
        for name, matrix in matrices.items()
        for reader in matrix.readers
        if not asked[name].precision.is_float
    }
    if plan:
        from edge.export.compress.nncf import compress_model  # nncf takes seconds to import

        compress_model(model, plan)
    layers = spec.num_layers
    progress(Progress("writing", layers, layers, parameters, parameters, 0, 0, None))
    try:
        if recipe.linear.bits == 16:
            ov.save_model(model, out, compress_to_fp16=True)
        else:
            ov.serialize(model, out, out.with_suffix(".bin"))
    except RuntimeError as error:
        raise OutputError(
            f"{out.parents[2]}: the model could not be written ({reason(error)}); the disk is full or refuses, "
            "free some space"
        ) from error
    return float_logits, asked


def _logits(model: ov.Model, ids: npt.NDArray[np.int64]) -> Logits:
    """Logits of the last golden rows from the stateful graph, activations in float32."""
    config = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    values = {
        "input_ids": ids[None],
        "attention_mask": np.ones((1, ids.size), np.int64),
        "position_ids": np.arange(ids.size, dtype=np.int64)[None],
        "beam_idx": np.zeros(1, np.int32),
    }
    names = {port.any_name for port in model.inputs}
    if unknown := names - values.keys():
        raise CheckpointError(f"optimum-intel's graph has an input {min(unknown)}, which our runtime does not know")
    found = make_core().compile_model(model, "CPU", config)({name: values[name] for name in names})["logits"]
    return np.array(found[0, -GOLDEN_ROWS:], np.float32)


def _check(golden: Golden, recipe: Recipe) -> StageCheck:
    """Compressed against float logits. Raises VerificationError."""
    _require_finite(golden.logits, "compressed")
    difference = golden.logits - golden.float_logits
    error = float(np.linalg.norm(difference) / max(float(np.linalg.norm(golden.float_logits)), 1e-30))
    if recipe.linear.bits == 32 and not distance(golden.logits, golden.float_logits) <= FLOAT32_BOUND:
        raise VerificationError(
            f"the model is off by {error:.2g} where nothing was compressed, expected {FLOAT32_BOUND:g} or less; "
            "please report this with the checkpoint's name"
        )
    return StageCheck("model", error, 0.0)


def _require_finite(logits: Logits, whose: str) -> None:
    if not np.isfinite(logits).all():
        advice = "try another recipe" if whose == "compressed" else "is the checkpoint complete?"
        raise VerificationError(f"the {whose} model gives NaN or infinity; {advice}")


def _check_runtime(checkpoint: Checkpoint, xml: Path, spec: ModelSpec, golden: Golden) -> None:
    """Whether our engine runs the graph and computes what it does. Raises CheckpointError and VerificationError."""
    exact = EngineSettings(
        max_context=golden.ids.size, inference_precision="f32", kv_precision="f32", dynamic_quantization_group=0
    )
    rows = np.arange(golden.ids.size)[-GOLDEN_ROWS:]
    try:
        engine = OpenVINOPagedEngine(xml, spec, 32, exact)
        found = engine.forward(golden.ids, CacheSequence(engine.pool), rows)
    except DeviceError as error:
        raise CheckpointError(f"{checkpoint.path}: optimum-intel's graph of it does not run: {error}") from error
    off = distance(found, golden.logits)
    if not off <= FLOAT32_BOUND:
        raise VerificationError(
            f"with paged attention the model is off by {off:.2g} of its logits' scale, expected "
            f"{FLOAT32_BOUND:g} or less; our runtime does not run {spec.architecture} correctly"
        )
