"""Export through optimum-intel, for architectures that we do not map: its graph in our bundle.

In: a checkpoint folder (or hub id), an output folder, a recipe. Out: the bundle, laid out as the pipeline's, and its
manifest; or an error, and nothing left behind. optimum-intel loads the model with torch and traces it, NNCF compresses
the traced graph, and both hold the whole model in float32; nothing is resumed. Pickles and remote code are refused.

Knows nothing about architectures: the graph tells its weights, and config.json the numbers of the ModelSpec, in which
0 and False also mean that config.json does not say. Nor does it know what rounding explains of an error, which is why
the manifest's check expects 0.0; what is checked is that the runtime computes what the stateful graph does.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import openvino as ov

from edge.export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from edge.export.compress import recipes
from edge.export.compress.precision import Precision
from edge.export.compress.recipes import Recipe
from edge.export.interop import openvino_tokenizer
from edge.export.interop.sidecars import write_server_graph, write_sidecars
from edge.export.output import check_space, work_folder
from edge.export.pipeline import SIDECAR_BYTES, check_arguments
from edge.export.plan import source_sha256, tensor_sha256, versions
from edge.export.settings import ExportSettings
from edge.export.source_files import SourceFiles
from edge.export.stages import Progress
from edge.export.verify import GOLDEN_ROWS, GOLDEN_TEXT, GOLDEN_TOKENS, Golden, distance
from edge.export.weights.names import EMBEDDING, HEAD
from edge.runtime import bundle
from edge.runtime.arrays import Logits
from edge.runtime.engines.openvino_core import make_core
from edge.runtime.engines.openvino_paged import OpenVINOPagedEngine
from edge.runtime.errors import (
    CheckpointError,
    DeviceError,
    OutputError,
    TensorError,
    VerificationError,
    telling_line,
)
from edge.runtime.extras import missing_packages_named
from edge.runtime.kv.pool import CacheSequence
from edge.runtime.manifest import SCHEMA_VERSION, Manifest, StageCheck, TensorRecord
from edge.runtime.settings import EngineSettings
from edge.runtime.spec import ModelSpec
from edge.runtime.verify import FLOAT32_BOUND

PACKAGES = ("optimum.intel", "transformers", "torch")
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

    source: a folder with config.json and *.safetensors, or a hub id. recipe: a name in recipes.toml. force: replace an
    existing `out`. progress is called before the weights are written and when the bundle is checked.

    Raises CheckpointError, also for what optimum-intel refuses, SettingsError, RecipeError, OutputError, TokenizerError
    and VerificationError, and MissingPackageError where optimum-intel is not installed; `out` is then as before.
    """
    settings = ExportSettings(recipe, format="openvino", force=force)
    check_arguments(source, out, progress)
    progress = progress or (lambda _progress: None)
    chosen = recipes.find_recipe(settings.recipe or recipes.DEFAULT)
    _require_packages()
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
        sidecars = write_sidecars(checkpoint, spec, folder, own_config=True)
        tokenizer, stop_ids = sidecars.tokenizer, sidecars.stop_ids
        write_server_graph(folder)
        ids = np.array(tokenizer.encode(GOLDEN_TEXT)[:GOLDEN_TOKENS], np.int64)
        with (
            openvino_tokenizer.start(folder, stop_ids[0] if stop_ids else None) as conversion,
            tempfile.TemporaryDirectory(prefix=".float.", dir=folder) as scratch,
        ):
            xml, said = _trace(checkpoint, Path(scratch))
            float_logits = _compress(xml, chosen, ids, folder / bundle.MODEL_XML, spec, parameters, progress)
        model = ov.Core().read_model(folder / bundle.MODEL_XML)  # as it is on the disk
        matrices = _matrices(model)
        spec = replace(spec, tied_embeddings=any({"MatMul", "Gather"} <= m.kinds for m in matrices.values()))
        tensors, group_size = _records(matrices, chosen)
        golden = Golden(ids, float_logits, _logits(model, ids))
        check = _check(golden, chosen)
        _check_runtime(checkpoint, folder / bundle.MODEL_XML, spec, golden)
        weight_bytes = sum(tensor.nbytes for tensor in tensors.values())
        layers = spec.num_layers
        progress(Progress("model", layers, layers, parameters, parameters, weight_bytes, 0, check))
        golden.write(folder / bundle.GOLDEN)
        if (problem := conversion.finish()) is not None:
            said = (*said, f"openvino_genai will find no tokenizer: {problem}")
        hashes = tensor_sha256(checkpoint, checkpoint.shapes)
        sources.check_unchanged(checkpoint, hashes)
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            source=Path(source).resolve().name if Path(source).exists() else str(source),
            source_sha256=source_sha256(checkpoint, hashes, checkpoint.small_files()),
            spec=spec,
            recipe=chosen.name,
            weight_group_size=group_size,
            stop_token_ids=tuple(i for i in stop_ids if i < spec.vocab_size),  # others no model can give
            bits_per_weight=round(8 * weight_bytes / sum(math.prod(t.shape) for t in tensors.values()), 4),
            weight_bytes=weight_bytes,
            golden_kld=golden.kld,
            warnings=(*_doubts(checkpoint), *sidecars.warnings, *said),
            decisions=(),
            adapter="",
            calibration="",
            checks=(check,),
            tensors=tensors,
            files={p.name: bundle.record_of(p) for p in sorted(folder.iterdir()) if p.is_file()},
            versions=versions("openvino") | {name: version(name) for name in VERSIONED},
        )
        (folder / bundle.MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def read_spec(checkpoint: Checkpoint) -> ModelSpec:
    """The ModelSpec, as far as config.json tells it. Raises ConfigError where the runtime could not do without.

    rotary_dim, rope_theta, rms_norm_eps and intermediate_size are 0 where it does not say: in another word, or because
    the model has none. output_norms is False, and tied_embeddings for the graph to tell.
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
    """What the traced graph is known to leave out."""
    if checkpoint.config.find("attn_logit_softcapping") is None:
        return []
    # Gemma2's own code has it only outside of scaled_dot_product_attention, which optimum-intel's exports need.
    return ["the soft cap on attention scores (attn_logit_softcapping) is left out, as optimum-intel does"]


def _require_packages() -> None:
    """Raises ModuleNotFoundError; torch takes seconds to import, so this only looks."""
    for name in PACKAGES:
        if find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def _trace(checkpoint: Checkpoint, folder: Path) -> tuple[Path, tuple[str, ...]]:
    """Have optimum-intel write the float32 graph: its .xml, and what it warned of. Raises CheckpointError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from optimum.exporters.openvino import main_export
        from optimum.intel import OVConfig
    with _quiet() as said:
        try:
            main_export(
                str(checkpoint.path.absolute()),
                folder,
                task="text-generation-with-past",
                library_name="transformers",
                ov_config=OVConfig(dtype="fp32"),
                convert_tokenizer=False,
                trust_remote_code=False,
                local_files_only=True,
                model_loading_kwargs={"use_safetensors": True},  # else pickles where they lie beside *.safetensors
            )
        except Exception as error:  # any: transformers and optimum-intel have no base class of their own
            if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
                raise
            raise CheckpointError(f"{checkpoint.path}: optimum-intel cannot export it: {_reason(error)}") from error
    xml = folder / bundle.MODEL_XML
    if not xml.is_file():  # a model of several parts
        raise CheckpointError(f"{checkpoint.path}: optimum-intel made no {xml.name} of it; is it a text model?")
    return xml, tuple(dict.fromkeys(f"optimum-intel: {line}" for line in said))


class _Collector(logging.Handler):
    """Keeps warnings as lines."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(" ".join(record.getMessage().split()))


@contextlib.contextmanager
def _quiet() -> Iterator[list[str]]:
    """Without the chatter of loading and tracing; what optimum-intel warns of is collected. Restores all it changes."""
    theirs, chatter = logging.getLogger("optimum"), logging.getLogger("transformers")
    level, handlers, propagate, collector = chatter.level, theirs.handlers, theirs.propagate, _Collector()
    theirs.handlers, theirs.propagate = [collector], False
    chatter.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),  # progress bars
        ):
            warnings.simplefilter("ignore")
            yield collector.lines
    finally:
        chatter.setLevel(level)
        theirs.handlers, theirs.propagate = handlers, propagate


def _reason(error: Exception) -> str:
    """The telling line of an error, without the advice behind it."""
    return telling_line(error).split(" Please ")[0]


def _compress(
    xml: Path,
    recipe: Recipe,
    ids: npt.NDArray[np.int64],
    out: Path,
    spec: ModelSpec,
    parameters: int,
    progress: Callable[[Progress], None],
) -> Logits:
    """Write the graph with its weights as the recipe says; returns what it computed in float32."""
    model = ov.Core().read_model(xml)
    float_logits = _logits(model, ids)
    _require_finite(float_logits, "float")
    matrices = _matrices(model)
    wanted = {name: _wanted(name, matrices, recipe)[0] for name in matrices}
    if recipe.linear.bits == 16:
        _check_float16_range(matrices)
    plan = {
        reader: wanted[name]
        for name, matrix in matrices.items()
        for reader in matrix.readers
        if not wanted[name].is_float
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
            f"{out.parents[2]}: the model could not be written ({_reason(error)}); the disk is full or refuses, "
            "free some space"
        ) from error
    return float_logits


@dataclass(frozen=True)
class _Matrix:
    """A weight that products or look-ups read, compressed or not."""

    constant: Any  # the node that holds it
    shape: tuple[int, ...]  # (N, K), experts before them where there are some
    precision: Precision
    nbytes: int  # scales and zero points included
    readers: tuple[str, ...]  # names of the nodes
    kinds: frozenset[str]  # of the nodes: MatMul, Gather
    embeds: bool  # whether it is looked up by input_ids


def _matrices(model: ov.Model) -> dict[str, _Matrix]:
    """All weights of products and look-ups by the name of their constant, in the order of the graph."""
    found: dict[str, _Matrix] = {}
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        for port in {"MatMul": (0, 1), "Gather": (0,)}.get(kind, ()):
            parts = _parts(node.input_value(port))
            if parts is None or not (len(parts) > 1 or parts[0].get_element_type().is_real()):
                continue
            shape = _rows_first(node, port)
            if sum(size > 1 for size in shape) < 2:  # frequencies of a rotary embedding
                continue
            name = parts[0].get_friendly_name().removesuffix("_compressed")  # which save_model adds
            before = found.pop(name, None)  # its place is that of its last reader
            found[name] = _Matrix(
                parts[0],
                shape,
                _precision(parts, shape),
                sum(_nbytes(part) for part in parts),
                (*(before.readers if before else ()), node.get_friendly_name()),
                (before.kinds if before else frozenset()) | {kind},
                (before is not None and before.embeds) or (kind == "Gather" and _reads_input_ids(node)),
            )
    return found


def _parts(value: Any) -> list[Any] | None:
    """The constants that a value is made of: integers, scale, zero point, or floats alone. None for activations."""
    node, more = value.get_node(), []
    while node.get_type_name() != "Constant":
        kind = node.get_type_name()
        if kind in ("Multiply", "Subtract"):
            other = _parts(node.input_value(1))
            if other is None:
                return None
            more.append(other[0])
        elif kind not in ("Convert", "Reshape", "Transpose"):
            return None
        node = node.input_value(0).get_node()
    return [node, *more]


def _rows_first(node: Any, port: int) -> tuple[int, ...]:
    """Shape of the weight at this port, the axis that a product sums over last."""
    shape = list(node.input_value(port).get_shape())
    if node.get_type_name() == "MatMul" and len(shape) > 1:
        attributes = node.get_attributes()
        if not (attributes["transpose_b"] if port else not attributes["transpose_a"]):
            shape[-2:] = shape[:-3:-1]
    return tuple(shape)


def _precision(parts: list[Any], shape: tuple[int, ...]) -> Precision:
    kind = parts[0].get_element_type()
    if kind.is_real():
        return Precision(kind.bitwidth)
    groups = math.prod(parts[1].get_shape()) // math.prod(shape[:-1])  # in a row
    return Precision(kind.bitwidth, len(parts) == 2, shape[-1] // groups if groups > 1 else 0)


def _nbytes(constant: Any) -> int:
    bits: int = math.prod(constant.get_shape()) * constant.get_element_type().bitwidth
    return -(-bits // 8)


def _reads_input_ids(gather: Any) -> bool:
    node = gather.input_value(1).get_node()
    while node.get_type_name() in ("Convert", "Reshape", "Squeeze", "Unsqueeze"):
        node = node.input_value(0).get_node()
    return node.get_type_name() == "Parameter" and "input_ids" in node.output(0).get_names()


def _wanted(name: str, matrices: Mapping[str, _Matrix], recipe: Recipe) -> tuple[Precision, str]:
    """What the recipe gives a matrix, and why not the linear layers' precision ("" where it does)."""
    matrix = matrices[name]
    if "MatMul" not in matrix.kinds and not matrix.embeds:
        return Precision(16 if recipe.linear.bits == 16 else 32), "look-up tables other than the embedding stay float"
    return recipe.precision_of(_role(name, matrices), (math.prod(matrix.shape[:-1]), matrix.shape[-1]))


def _role(name: str, matrices: Mapping[str, _Matrix]) -> str:
    """A matrix's name in recipes."""
    if matrices[name].embeds:
        return EMBEDDING
    head = [other for other, matrix in matrices.items() if "MatMul" in matrix.kinds][-1]  # it needs all other products
    return HEAD if name == head else name


def _records(matrices: Mapping[str, _Matrix], recipe: Recipe) -> tuple[dict[str, TensorRecord], int]:
    """What the matrices of a finished graph became, and the group size of its linear layers."""
    records, groups = {}, set()
    for name, matrix in matrices.items():
        wanted, note = _wanted(name, matrices, recipe)
        found = matrix.precision
        if found == replace(wanted, group_size=wanted.group_size % matrix.shape[-1]):  # one group is a whole row
            found = wanted
        else:
            note = f"nncf gave it this and not {wanted}"
        records[name] = TensorRecord(matrix.shape, str(found), matrix.nbytes, note)
        if _role(name, matrices) not in (EMBEDDING, HEAD):
            groups.add(found.group_size)
    return records, min(groups - {0}, default=0)


def _check_float16_range(matrices: Mapping[str, _Matrix]) -> None:
    for name, matrix in matrices.items():
        largest = np.abs(matrix.constant.data).max()
        if largest > np.finfo(np.float16).max:
            raise TensorError(f"{name} reaches {largest:.3g}, beyond float16; use recipe fp32 or an int8 one")


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
        advice = "try another recipe" if whose == "compressed" else "is the checkpoint whole?"
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
            f"{FLOAT32_BOUND:g} or less; our runtime does not run {spec.architecture} rightly"
        )
