"""Export: from a checkpoint to a finished bundle.

In: a source, an output folder, a recipe. Out: the bundle, and its manifest; or an error, and nothing left behind. What
is asked for is a `plan`, the weights are made by `stages`; here the bundle is put together.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from edge.export import openvino_tokenizer, recipes
from edge.export.calibration import WINDOW, WINDOWS, Calibration
from edge.export.graph.runners import OnnxRunner, OpenVINORunner, Runner
from edge.export.names import canonical_shapes
from edge.export.output import check_space, work_folder
from edge.export.plan import (
    DEFAULT_FORMAT,
    Format,
    Plan,
    make_plan,
    signed_bytes,
    source_sha256,
    tensor_sha256,
    versions,
)
from edge.export.recipes import EMBEDDING, HEAD
from edge.export.sidecars import write_genai_config, write_server_graph, write_sidecars
from edge.export.stages import Compressed, Progress, compress, done_bytes, open_store
from edge.export.store import WeightStore
from edge.export.text import Corpus, token_windows
from edge.export.verify import GOLDEN_TEXT, Verifier
from edge.runtime import bundle
from edge.runtime.bundle import FileRecord, Manifest, TensorRecord
from edge.runtime.chat import ChatTemplate
from edge.runtime.errors import BundleError, OutputError
from edge.runtime.tokenizer import Tokenizer

SIDECAR_BYTES = 64_000_000  # at most, of a bundle's files that are no weights; a tokenizer for 151,552 tokens has 35 MB


def export(
    source: str | Path,
    out: str | Path,
    recipe: str = recipes.DEFAULT,
    *,
    format: Format = DEFAULT_FORMAT,
    embedding: str | None = None,
    head: str | None = None,
    adapter: str | Path | None = None,
    rope_theta: float | None = None,
    calibration: str | Path | None = None,
    force: bool = False,
    progress: Callable[[Progress], None] = lambda _progress: None,
) -> Manifest:
    """Export a checkpoint to a bundle at `out`.

    source: a folder with config.json and *.safetensors, a .gguf file, or a hub id. recipe: a name in recipes.toml.
    format: the graphs in the bundle, "openvino", "onnx" or "both"; they share the bytes of the weights. embedding,
    head: precisions of the vocabulary matrices instead of the recipe's, like "int4-asym-g128". adapter: the
    folder of a PEFT LoRA to merge. rope_theta: replaces the checkpoint's rotary base. calibration: a text or .jsonl
    file for recipes that are fitted to text, instead of text that comes with Python. force: replace an existing `out`.
    progress is called after every stage.

    An export that was killed goes on where it stopped when it is started again with the same arguments. Raises
    CheckpointError, RecipeError, CalibrationError, OutputError, TokenizerError and VerificationError; `out` is then as
    before.
    """
    plan = make_plan(
        source,
        recipe,
        format=format,
        embedding=embedding,
        head=head,
        adapter=adapter,
        rope_theta=rope_theta,
        calibration=calibration,
    )
    with work_folder(Path(out), force, plan.key) as (folder, journal), ExitStack() as stack:
        check_space(folder, _expected_bytes(plan) - done_bytes(journal))
        tokenizer, stop_ids = write_sidecars(plan.checkpoint, plan.spec, folder)
        conversion = None
        if plan.onnx:
            write_genai_config(plan.checkpoint, plan.spec, stop_ids, folder)
        if plan.openvino:
            write_server_graph(folder)
            eos = stop_ids[0] if stop_ids else None
            conversion = stack.enter_context(openvino_tokenizer.start(folder, eos))
        with open_store(folder / plan.weight_file, journal) as store:
            verifier = Verifier(tokenizer.encode(GOLDEN_TEXT), plan.spec, _runners(plan))
            calibrating = None if plan.calibration is None else _calibration(plan.calibration, plan, folder)
            done = compress(plan, store, verifier, journal, calibrating, progress)
            total, layers = plan.spec.num_parameters, plan.spec.num_layers
            progress(Progress("writing", layers, layers, total, total, store.end, 0, None))
            _write_graphs(plan, store, folder)
            weights = FileRecord(store.end, store.hash_written())
        done.golden.write(folder / bundle.GOLDEN)
        if conversion is not None and (problem := conversion.finish()) is not None:
            plan = replace(plan, warnings=(*plan.warnings, f"openvino_genai will find no tokenizer: {problem}"))
        manifest = _manifest(plan, store, weights, done, stop_ids, folder)
        (folder / bundle.MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def is_export_of(out: Path, source: Path, recipe: str) -> bool:
    """Whether `out` is a bundle that exporting `source` with these versions would make again."""
    try:
        manifest = bundle.open_bundle(out).manifest
    except BundleError:
        return False
    if manifest.recipe != recipe or manifest.versions != versions(DEFAULT_FORMAT):
        return False
    plan = make_plan(source, recipe)
    parts = {part for parts in plan.weights.sources.values() for part in parts}
    hashes = tensor_sha256(plan.checkpoint, parts)
    return manifest.source_sha256 == source_sha256(plan.checkpoint, hashes, plan.small_files)


def _expected_bytes(plan: Plan) -> int:
    """About what the bundle will take, at most."""
    sizes = [plan.recipe.bytes_of(name, shape) for name, shape in canonical_shapes(plan.spec).items()]
    copied = signed_bytes(plan.recipe, plan.spec) if plan.format == "both" else 0
    return sum(sizes) + copied + SIDECAR_BYTES


def _calibration(corpus: Corpus, plan: Plan, folder: Path) -> Calibration:
    """The calibration text in windows of tokens. Raises CalibrationError where there is too little."""
    template = (folder / bundle.CHAT_TEMPLATE).read_text(encoding="utf-8") if plan.checkpoint.chat_template() else None
    length = min(WINDOW, plan.spec.max_position_embeddings)
    windows = token_windows(
        corpus.documents,
        Tokenizer(folder / bundle.TOKENIZER),
        length,
        WINDOWS,
        None if template is None else ChatTemplate(template),
    )
    return Calibration(windows.ids, plan.spec)


def _runners(plan: Plan) -> list[Runner]:
    return [*([OpenVINORunner()] if plan.openvino else []), *([OnnxRunner()] if plan.onnx else [])]


def _write_graphs(plan: Plan, store: WeightStore, folder: Path) -> None:
    """The graphs of the bundle, which point into the store; packages are imported for the format that needs them."""
    try:
        if plan.openvino:
            from edge.export.graph.ir import write_ir
            from edge.export.graph.openvino import stateful_decoder

            write_ir(stateful_decoder(store, plan.spec), store, folder / bundle.MODEL_XML)
        if plan.onnx:
            from edge.export.graph.onnx_files import write_onnx

            write_onnx(store, plan.spec, folder)
    except RuntimeError as error:
        raise OutputError(
            f"{folder.parent}: the model could not be written ({error}); the disk is full or refuses, free some space"
        ) from error


def _manifest(
    plan: Plan,
    store: WeightStore,
    weights: FileRecord,
    done: Compressed,
    stop_ids: tuple[int, ...],
    folder: Path,
) -> Manifest:
    tensors = {}
    groups: dict[bool, set[int]] = {False: set(), True: set()}  # of linear layers, and of the vocabulary matrices
    for name, record in store.records.items():
        precision, note = plan.recipe.precision_of(name, record.shape)
        size = sum(size for _, size in record.constants.values())
        tensors[name] = TensorRecord(record.shape, str(precision), size, note)
        groups[name in (EMBEDDING, HEAD)].add(precision.group_size)
    weight_bytes = sum(tensor.nbytes for tensor in tensors.values())
    files = {plan.weight_file: weights}  # hashed as it was written
    for path in folder.iterdir():
        if path.is_file() and path.name not in (plan.weight_file, bundle.MANIFEST):
            files[path.name] = bundle.record_of(path)
    hashes = {name: sha256 for stage in done.stages for name, sha256 in stage.sha256.items()}
    return Manifest(
        schema_version=bundle.SCHEMA_VERSION,
        source=plan.source,
        source_sha256=source_sha256(plan.checkpoint, hashes, plan.small_files),
        spec=plan.spec,
        recipe=plan.recipe.name,
        weight_group_size=min((groups[False] | groups[True]) - {0}) if groups[False] - {0} else 0,
        stop_token_ids=stop_ids,
        bits_per_weight=round(8 * weight_bytes / plan.spec.num_parameters, 4),
        weight_bytes=weight_bytes,
        golden_kld=done.golden.kld,
        warnings=plan.warnings,
        decisions=plan.decisions,
        adapter="" if plan.adapter is None else plan.adapter.path.resolve().name,
        calibration="" if plan.calibration is None else f"{plan.calibration.name}, sha256 {plan.calibration.sha256}",
        checks=tuple(stage.check for stage in done.stages),
        tensors=tensors,
        files=dict(sorted(files.items())),
        versions=versions(plan.format),
    )
