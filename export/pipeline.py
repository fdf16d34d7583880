"""Export: from a checkpoint to a finished bundle.

In: a source, an output folder, a recipe. Out: the bundle, and its manifest; or an error, and nothing left over. A
`plan` says what is asked for and `stages` makes the weights; here the bundle is put together.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge.export.budget import sensitivity
from edge.export.budget.choose import decide
from edge.export.compress.calibration import WINDOW, WINDOWS, Calibration
from edge.export.float16 import safety
from edge.export.graph.runners import OnnxRunner, OpenVINORunner, Runner
from edge.export.interop import openvino_tokenizer
from edge.export.interop.sidecars import write_genai_config, write_server_graph, write_sidecars
from edge.export.journal import Journal, keep, read_kept
from edge.export.manifest_of import make_manifest
from edge.export.output import BLOCKS, Work, check_space, graphs_written, work_folder
from edge.export.plan import Plan, make_plan, source_sha256, tensor_sha256, versions
from edge.export.proof import GOLDEN_TEXT, Verifier
from edge.export.settings import DEFAULT_FORMAT, Device, ExportSettings, Format, Limits
from edge.export.source_files import SourceFiles
from edge.export.space import least_bytes, within_memory
from edge.export.stages import MEASURED, Progress, compress, done_bytes, open_store
from edge.export.text.corpus import Corpus
from edge.export.text.windows import token_windows
from edge.export.vision.export import export_tower, tower_done_bytes
from edge.export.weights.names import stages_of
from edge.export.weights.store import WeightStore
from edge.runtime import bundle
from edge.runtime.chat import ChatTemplate
from edge.runtime.errors import BundleError, SettingsError, shown
from edge.runtime.extras import check_installed, missing_packages_named
from edge.runtime.files import sha256_of
from edge.runtime.manifest import SCHEMA_VERSION, FileRecord, Manifest
from edge.runtime.rules import FilePath, check_value
from edge.runtime.tokenizer import Tokenizer

SENSITIVITY = "sensitivity.json"


@missing_packages_named("export")
def export(
    source: str | Path,
    out: str | Path,
    recipe: str | None = None,
    *,
    format: Format = DEFAULT_FORMAT,
    embedding: str | None = None,
    head: str | None = None,
    pictures: str | None = None,
    adapter: str | Path | None = None,
    rope_theta: float | None = None,
    rotary_dim: int | None = None,
    chat_template: str | Path | None = None,
    calibration: str | Path | None = None,
    max_bytes: float | None = None,
    max_kld: float | None = None,
    device: Device | None = None,
    max_memory_bytes: int | None = None,
    force: bool = False,
    fresh: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Manifest:
    """Export a checkpoint to a bundle: compress its weights and write graphs over them that run without it.

        edge.export("THUDM/glm-4-9b-chat", "glm4-int4")

    What to export, and where to:
      source       a folder with config.json and *.safetensors, a .gguf file, or a hub id such as "THUDM/glm-4-9b-chat",
                   which is downloaded
      out          the folder of the bundle, made by the export
      force        replace `out` if it is a bundle already; nothing else is ever replaced, and files in its folder that
                   its manifest does not name stay. An empty folder needs no force
      fresh        start anew where an export to `out` was stopped, and keep nothing of it
      format       the graphs in the bundle: "openvino", "onnx" or "both", which share the bytes of the weights
      adapter      the folder of a PEFT LoRA to merge into the weights
      rope_theta   the rotary base to use instead of the checkpoint's
      rotary_dim   how many dims of each head rotate, instead of what the checkpoint says
      chat_template  a file with a Jinja template of messages, instead of the checkpoint's

    How to compress, by a recipe:
      recipe       one of the names in recipes.toml, such as "int8-asym"; the default is
                   "int4-asym-g128-awq-data-free"
      embedding    the precision of the embedding instead of the recipe's, such as "int4-asym-g128"
      head         the precision of the vocabulary projection, likewise
      pictures     the recipe of the picture tower, of models that see, or "none" to leave it out; the default is
                   "int8-asym", and the floats of the recipes fp16 and fp32
      calibration  a text or .jsonl file for recipes that are fitted to text; the default is text that comes with Python

    or within a budget, which gives every matrix a precision by what each was measured to cost:
      max_bytes    the most accurate model with at most this many bytes of weights
      max_kld      the smallest model with at most this predicted KLD from the float one, nats/token; with both, that
                   model must also have at most max_bytes
      device       "CPU", "GPU" or "NPU", which the precisions have to suit; the default is "CPU". For the others, which
                   compute in float16, values are measured on text and weights are folded (docs/float16.md)
      max_memory_bytes  upper bound of the memory of this process; the default is what is free

    progress       is called with a `Progress` after every stage

    Returns the manifest of the bundle. None for a setting means its default. When it fails, `out` is as it was before.
    An export that was killed, interrupted or stopped by a full disk resumes when it is started again with the same
    arguments; a note of the error (PEP 678) says where its work is kept. Raises CheckpointError, also for a
    checkpoint that changes meanwhile, SettingsError, RecipeError, CalibrationError, MemoryLimitError, OutputError,
    TokenizerError and VerificationError, and MissingPackageError where the packages that an export needs are not
    installed.
    """
    settings = ExportSettings(
        recipe,
        format=format,
        embedding=embedding,
        head=head,
        pictures=pictures,
        adapter=adapter,
        rope_theta=rope_theta,
        rotary_dim=rotary_dim,
        chat_template=chat_template,
        calibration=calibration,
        max_bytes=max_bytes,
        max_kld=max_kld,
        device=device,
        max_memory_bytes=max_memory_bytes,
        force=force,
        fresh=fresh,
    )
    return export_with(settings, source, out, progress)


def export_with(
    settings: ExportSettings,
    source: str | Path,
    out: str | Path,
    progress: Callable[[Progress], None] | None = None,
    begin: Callable[[Plan], None] | None = None,
) -> Manifest:
    """`export` with its choices as a record. begin: is called before the first work, once the place is known to do."""
    check_arguments(source, out, progress)
    check_installed("nncf", needed="export")  # which is wanted after minutes of other work
    progress = progress or (lambda _progress: None)
    plan = within_memory(make_plan(source, settings), settings.max_memory_bytes)
    limits = settings.limits
    sources = SourceFiles(plan.source_files)
    with work_folder(Path(out), settings.force, _key(plan), fresh=settings.fresh) as work, ExitStack() as stack:
        if (manifest := _made_before(work, plan)) is not None:
            return manifest
        folder, journal = work.folder, work.journal
        if begin is not None:
            begin(plan)
        if not plan.options:
            _check_space(plan, work)
        work.clear(plan.weight_file, bundle.VISION_BIN)
        sidecars = write_sidecars(plan.checkpoint, plan.spec, folder, plan.chat_template())
        tokenizer, stop_ids, plan = sidecars.tokenizer, sidecars.stop_ids, plan.warned(*sidecars.warnings)
        _check_inputs(journal, folder, plan)
        if limits is not None:
            plan = _within(limits, plan, tokenizer, work.kept / SENSITIVITY, progress)
            _check_space(plan, work)
        conversion = safe = None
        if plan.range_text is not None:
            ids = _windows(plan.range_text, plan, tokenizer, safety.WINDOW, safety.WINDOWS)
            safe = safety.fold(plan, ids, work.kept, journal, progress)
            plan = safe.plan
        if plan.onnx:
            write_genai_config(plan.checkpoint, plan.spec, stop_ids, folder)
        if plan.openvino:
            write_server_graph(folder)
            eos = stop_ids[0] if stop_ids else None
            conversion = stack.enter_context(openvino_tokenizer.start(folder, eos))
        with open_store(folder / plan.weight_file, journal, stages_of(plan.spec), plan.checkpoint) as (store, walk):
            verifier = Verifier(tokenizer.encode(GOLDEN_TEXT), plan.spec, _runners(plan), plan.assignments.is_coarse)
            calibrating = None if plan.calibration is None else _calibration(plan.calibration, plan, tokenizer)
            done = compress(plan, store, walk, verifier, calibrating, progress)
            progress(Progress.writing(plan, store.end))
            with graphs_written(folder):
                _write_graphs(plan, store, folder)
            record, near = (None, ()) if safe is None else safe.judge(store, progress)
            weights = FileRecord(store.end, store.hash_written())
        done.golden.write(folder)
        tower = export_tower(plan, work, weights.size, progress)
        if conversion is not None and (problem := conversion.finish()) is not None:
            plan = plan.warned(f"openvino_genai will find no tokenizer: {problem}")
        hashes = {**done.sha256, **tower.sha256}
        manifest = make_manifest(
            source=plan.source,
            source_sha256=source_sha256(plan.checkpoint, hashes, plan.small_files),
            spec=plan.spec,
            recipe=plan.recipe.name,
            assignments=plan.assignments,
            stop_ids=stop_ids,
            golden_kld=done.golden.kld,
            warnings=(*plan.warnings, *near),
            decisions=plan.decisions,
            adapter=None if plan.adapter is None else plan.adapter.path,
            calibration=plan.calibration,
            checks=tuple(stage.check for stage in done.stages),
            folder=folder,
            hashed={plan.weight_file: weights, **tower.files},  # as they were written
            versions=versions(plan.format),
            float16=record,
            vision=tower.record,
        )
        sources.check_unchanged(plan.checkpoint, hashes)
        (folder / bundle.MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        journal.note("manifest", sha256_of(folder / bundle.MANIFEST))
    return manifest


def _key(plan: Plan) -> str:
    """Same key, same manifest."""
    adapter = None if plan.adapter is None else str(plan.adapter.path)
    text = None if plan.calibration is None else plan.calibration.name
    told = json.dumps([plan.source, plan.warnings, plan.decisions, adapter, text])
    return f"{plan.key} {hashlib.sha256(told.encode()).hexdigest()}"


def _made_before(work: Work, plan: Plan) -> Manifest | None:
    """The manifest of a bundle that an export had finished and could not put in its place; None if there is none.

    Everything is read again, including the checkpoint: seconds to a minute, instead of the time it took to make.
    """
    if (made := work.journal.facts.get("manifest")) is None:
        return None
    with contextlib.suppress(OSError, BundleError):
        if sha256_of(work.folder / bundle.MANIFEST) == made:
            found = bundle.open_bundle(work.folder)
            found.check_hashes()
            if found.manifest.source_sha256 == _source_sha256(plan):
                return found.manifest
    work.journal.clear()
    return None


def _check_space(plan: Plan, work: Work) -> None:
    """Raises OutputError where what is left to write does not fit on the disk."""
    check_space(work.folder, least_bytes(plan) - done_bytes(work.journal) - tower_done_bytes(plan, work))


def _check_inputs(journal: Journal, folder: Path, plan: Plan) -> None:
    """Start again if the small files differ, whatever their dates say: what was calibrated depends on them."""
    digest = hashlib.sha256()
    made = sorted(path for path in folder.iterdir() if path.name not in (plan.weight_file, bundle.VISION_BIN))
    for path in [*made, *plan.small_files]:
        digest.update(f"{path.name} {sha256_of(path)}\n".encode())
    if journal.facts.get("inputs") != digest.hexdigest():
        journal.clear()
        journal.note("inputs", digest.hexdigest())
        journal.note(BLOCKS, str(plan.spec.num_layers))


def check_arguments(source: str | Path, out: str | Path, progress: Callable[[Progress], None] | None) -> None:
    """Check what an export takes besides its settings. Raises SettingsError."""
    for name, value in (("source", source), ("out", out)):
        check_value(name, FilePath(), value)
    if progress is not None and not callable(progress):
        raise SettingsError(f"progress is {shown(progress)}, expected a function of one argument", param="progress")


def is_export_of(out: Path, source: Path, recipe: str) -> bool:
    """Whether `out` is a bundle that exporting `source` with these versions would make again."""
    try:
        manifest = bundle.open_bundle(out).manifest
    except BundleError:
        return False
    if manifest.schema_version != SCHEMA_VERSION:
        return False
    if manifest.recipe != recipe or manifest.versions != versions(DEFAULT_FORMAT):
        return False
    return manifest.source_sha256 == _source_sha256(make_plan(source, ExportSettings(recipe)))


def _source_sha256(plan: Plan) -> str:
    """The hash of a plan's source, all of which is read."""
    return source_sha256(plan.checkpoint, tensor_sha256(plan.checkpoint, plan.sources), plan.small_files)


def _calibration(corpus: Corpus, plan: Plan, tokenizer: Tokenizer) -> Calibration:
    """The calibration text in windows of tokens. Raises CalibrationError if there is too little."""
    ids = _windows(corpus, plan, tokenizer, WINDOW, WINDOWS)
    return Calibration(ids, plan.spec, twin=plan.recipe.method == "gptq")


def _windows(corpus: Corpus, plan: Plan, tokenizer: Tokenizer, length: int, count: int) -> npt.NDArray[np.int64]:
    """Token ids (count, length) of the text; shorter windows if the model takes no more."""
    template = plan.chat_template()
    windows = token_windows(
        corpus.documents,
        tokenizer,
        min(length, plan.spec.max_position_embeddings),
        count,
        None if template is None else ChatTemplate(template, tokenizer.markup, plan.checkpoint.named_tokens()),
    )
    return windows.ids


def _within(limits: Limits, plan: Plan, tokenizer: Tokenizer, kept: Path, progress: Callable[[Progress], None]) -> Plan:
    """The plan with the precisions that the limits ask for. Raises RecipeError if no choice is within them.

    kept: the file for what was measured, in case this process is killed: measuring can take as long as the rest.
    """
    assert plan.calibration is not None, "recipes with choices are calibrated"
    ids = _windows(plan.calibration, plan, tokenizer, sensitivity.WINDOW, sensitivity.WINDOWS)
    key = replace(plan, limits=None).key
    measured = read_kept(kept, key, sensitivity.Sensitivity.from_json)
    total, layers = plan.spec.num_parameters, plan.spec.num_layers
    if measured is not None:
        progress(Progress(MEASURED, layers, layers, total, total, 0, total, None))
    else:

        def show(stage: str, blocks: int) -> None:
            progress(Progress(f"measuring {stage}", blocks, layers, total * blocks // (layers + 1), total, 0, 0, None))

        journal = Journal(kept.with_suffix(""), key)
        measured = sensitivity.measure(plan.checkpoint, plan.weights, plan.options, ids, show, journal)
        keep(kept, key, measured.to_json())
        journal.clear()  # states of many models, which nobody needs any more
    return plan.choose(*decide(plan.assignments, plan.options, measured, limits))


def _runners(plan: Plan) -> list[Runner]:
    return [*([OpenVINORunner()] if plan.openvino else []), *([OnnxRunner()] if plan.onnx else [])]


def _write_graphs(plan: Plan, store: WeightStore, folder: Path) -> None:
    """The graphs of the bundle, which point into the store; packages are imported for the format that needs them."""
    if plan.openvino:
        from edge.export.graph.openvino.files import write_ir
        from edge.export.graph.openvino.models import stateful_decoder

        write_ir(stateful_decoder(store, plan.spec), store, folder / bundle.MODEL_XML)
    if plan.onnx:
        from edge.export.graph.onnx.files import write_onnx

        write_onnx(store, plan.spec, folder, pictures=plan.tower is not None)
