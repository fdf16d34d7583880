"""Export: from a checkpoint to a finished bundle.

In: a source, an output folder, a recipe. Out: the bundle, and its manifest; or an error, and nothing left behind.

One stage at a time - embedding, decoder blocks, head - is compressed and appended to the weight file, while the stage
before it is checked in a second thread. After its check a stage stands in the journal, from which the next export goes
on if this one is killed.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from edge.export import openvino_tokenizer, recipes
from edge.export.adapter import Adapter
from edge.export.architectures import describe, doubts
from edge.export.checkpoint import Checkpoint, open_checkpoint
from edge.export.graph.ir import write_ir
from edge.export.graph.openvino import stateful_decoder
from edge.export.names import Weights, canonical_shapes
from edge.export.output import Journal, check_space, work_folder, write_durably
from edge.export.recipes import EMBEDDING, HEAD, Precision, Recipe
from edge.export.sidecars import write_sidecars
from edge.export.store import StoredWeight, WeightStore
from edge.export.tensors import FloatArray, Weight, to_float32
from edge.export.verify import GOLDEN_TEXT, Golden, Verifier
from edge.runtime import bundle
from edge.runtime.bundle import Manifest, StageCheck, TensorRecord
from edge.runtime.errors import BundleError, OutputError, TensorError, VerificationError
from edge.runtime.spec import ModelSpec

VERSIONED = ("edgeglm", "openvino", "nncf", "numpy")
SIDECAR_BYTES = 64_000_000  # at most, of a bundle's files that are no weights; a tokenizer for 151,552 tokens has 35 MB


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an export is."""

    stage: str  # "embedding", "block 3", "head", "writing"
    blocks: int  # decoder blocks done
    num_blocks: int
    done: int  # parameters done, which is what time goes by
    total: int
    written: int  # bytes of weights on the disk
    resumed: int  # parameters that an earlier export had done
    check: StageCheck | None  # of the stage; None for "writing" and where it was done earlier


@dataclass(frozen=True)
class Plan:
    """Everything that decides what an export gives."""

    source: str  # what the manifest calls it: a hub id, or the name of a file or folder
    checkpoint: Checkpoint
    weights: Weights
    recipe: Recipe
    adapter: Adapter | None  # merged into the weights
    warnings: tuple[str, ...]

    @property
    def spec(self) -> ModelSpec:
        return self.weights.spec

    @property
    def source_files(self) -> list[Path]:
        return self.checkpoint.weight_files() + self.small_files

    @property
    def small_files(self) -> list[Path]:
        return self.checkpoint.small_files() + ([] if self.adapter is None else self.adapter.files)

    @property
    def key(self) -> str:
        """Same key, same bytes. Files are known by size and time here: hashing 19 GB to begin would take too long."""
        stats = [(str(path.resolve()), path.stat()) for path in self.source_files]
        files = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
        text = json.dumps([files, asdict(self.spec), asdict(self.recipe), versions()])
        return hashlib.sha256(text.encode()).hexdigest()


def export(
    source: str | Path,
    out: str | Path,
    recipe: str = recipes.DEFAULT,
    *,
    embedding: str | None = None,
    head: str | None = None,
    adapter: str | Path | None = None,
    rope_theta: float | None = None,
    force: bool = False,
    progress: Callable[[Progress], None] = lambda _progress: None,
) -> Manifest:
    """Export a checkpoint to a bundle at `out`.

    source: a folder with config.json and *.safetensors, a .gguf file, or a hub id. recipe: a name in recipes.toml.
    embedding, head: precisions of the vocabulary matrices instead of the recipe's, like "int4-asym-g128". adapter: the
    folder of a PEFT LoRA to merge. rope_theta: replaces the checkpoint's rotary base. force: replace an existing `out`.
    progress is called after every stage.

    An export that was killed goes on where it stopped when it is started again with the same arguments. Raises
    CheckpointError, RecipeError, OutputError, TokenizerError and VerificationError; `out` is then as before.
    """
    plan = make_plan(source, recipe, embedding=embedding, head=head, adapter=adapter, rope_theta=rope_theta)
    with work_folder(Path(out), force, plan.key) as (folder, journal):
        shapes = canonical_shapes(plan.spec)
        check_space(
            folder, sum(plan.recipe.bytes_of(*item) for item in shapes.items()) + SIDECAR_BYTES - _done_bytes(journal)
        )
        tokenizer, stop_ids = write_sidecars(plan.checkpoint, plan.spec, folder)
        eos = stop_ids[0] if stop_ids else None
        with openvino_tokenizer.start(folder, eos) as conversion, _open_store(folder, journal) as store:
            verifier = Verifier(tokenizer.encode(GOLDEN_TEXT), plan.spec)
            done = compress(plan, store, verifier, journal, progress)
            total, layers = plan.spec.num_parameters, plan.spec.num_layers
            progress(Progress("writing", layers, layers, total, total, store.end, 0, None))
            _write_model(store, plan.spec, folder)
        done.golden.write(folder / bundle.GOLDEN)
        if (problem := conversion.finish()) is not None:
            plan = replace(plan, warnings=(*plan.warnings, f"openvino_genai will find no tokenizer: {problem}"))
        manifest = _manifest(plan, store, done, stop_ids, folder)
        (folder / bundle.MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def make_plan(
    source: str | Path,
    recipe: str,
    *,
    embedding: str | None = None,
    head: str | None = None,
    adapter: str | Path | None = None,
    rope_theta: float | None = None,
) -> Plan:
    """Open and check everything that export reads. Raises CheckpointError and RecipeError."""
    chosen = recipes.find_recipe(recipe)
    checkpoint = open_checkpoint(source)
    spec, weights = describe(checkpoint)
    warnings = doubts(checkpoint, spec)
    if rope_theta is not None:
        given = f"rope_theta {rope_theta:g} was given at export; the checkpoint says {spec.rope_theta:g}"
        spec = replace(spec, rope_theta=rope_theta)
        warnings = (*doubts(checkpoint, spec), given)
    change = None if adapter is None else Adapter(Path(adapter), spec)
    return Plan(
        Path(source).resolve().name if Path(source).exists() else str(source),
        checkpoint,
        replace(weights, spec=spec, change=change),
        chosen.with_vocabulary(embedding, head, tied=spec.tied_embeddings),
        change,
        warnings,
    )


def is_export_of(out: Path, source: Path, recipe: str) -> bool:
    """Whether `out` is a bundle that exporting `source` with these versions would make again."""
    try:
        manifest = bundle.open_bundle(out).manifest
    except BundleError:
        return False
    if manifest.recipe != recipe or manifest.versions != versions():
        return False
    plan = make_plan(source, recipe)
    parts = {part for parts in plan.weights.sources.values() for part in parts}
    return manifest.source_sha256 == source_sha256(plan, tensor_sha256(plan.checkpoint, parts))


@dataclass(frozen=True)
class Stage:
    """What is known of one stage when it is done; in the journal, so that no later export has to do it again."""

    end: int  # of the weight file
    weights: dict[str, StoredWeight]
    check: StageCheck
    sha256: dict[str, str]  # of the checkpoint's tensors

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Stage:
        weights = {name: StoredWeight.from_json(record) for name, record in data["weights"].items()}
        return cls(data["end"], weights, StageCheck(**data["check"]), data["sha256"])


@dataclass(frozen=True)
class Compressed:
    """All stages, done."""

    stages: tuple[Stage, ...]
    golden: Golden


def compress(
    plan: Plan,
    store: WeightStore,
    verifier: Verifier,
    journal: Journal,
    progress: Callable[[Progress], None],
) -> Compressed:
    """Compress all weights into the store, stage by stage, and check each stage beside the next one's compression.

    The head is not in the journal: it is the last stage, and its check gives the golden logits.
    """
    spec = plan.spec
    names = ["embedding", *(f"block {layer}" for layer in range(spec.num_layers)), "head"]
    stages = [Stage.from_json(step) for step in journal.steps]
    first = len(stages)
    resumed = sum(_parameters(name, spec) for name in names[:first])
    if first:
        verifier.hidden = np.load(_hidden_file(journal, first))
    golden: Golden | None = None

    def check(index: int, end: int) -> Stage:
        """Check one stage and record it. Runs in the second thread."""
        nonlocal golden
        packed = {name: store[name] for name in _needed(names[index], spec)}
        result, golden = _check(names[index], verifier, plan.weights, packed)
        parts = {part for name in _own(names[index], spec) for part in plan.weights.sources[name]}
        records = {name: store.records[name] for name in _own(names[index], spec)}
        stage = Stage(end, records, result, tensor_sha256(plan.checkpoint, parts))
        if golden is None:
            store.sync()
            buffer = io.BytesIO()
            np.save(buffer, verifier.hidden)
            write_durably(_hidden_file(journal, index + 1), buffer.getvalue())
            journal.add(stage.to_json())
            _hidden_file(journal, index).unlink(missing_ok=True)
        return stage

    def finish(pending: Future[Stage]) -> None:
        stages.append(pending.result())
        index = len(stages) - 1
        done = sum(_parameters(name, spec) for name in names[: index + 1])
        blocks = min(index, spec.num_layers)
        written, result = stages[-1].end, stages[-1].check
        progress(Progress(names[index], blocks, spec.num_layers, done, spec.num_parameters, written, resumed, result))

    # One BLAS thread: more of them would spin against nncf's, and the results would depend on how many there are.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(1) as second:
        pending: Future[Stage] | None = None
        for index in range(first, len(names)):
            for name, weight in _pack(names[index], plan).items():
                store.put(name, weight)
            if pending is not None:
                finish(pending)
                plan.checkpoint.release()
            pending = second.submit(check, index, store.end)
        assert pending is not None, "the head is always done"
        finish(pending)
    assert golden is not None
    return Compressed(tuple(stages), golden)


def _own(stage: str, spec: ModelSpec) -> list[str]:
    """The weights that a stage brings."""
    if stage == "embedding":
        return [EMBEDDING]
    if stage == "head":
        return ["norm.weight", *([] if spec.tied_embeddings else [HEAD])]
    prefix = f"layers.{stage.removeprefix('block ')}."
    return [name for name in canonical_shapes(spec) if name.startswith(prefix)]


def _needed(stage: str, spec: ModelSpec) -> list[str]:
    """The weights that a stage computes with."""
    return _own(stage, spec) + ([EMBEDDING] if stage == "head" and spec.tied_embeddings else [])


def _parameters(stage: str, spec: ModelSpec) -> int:
    shapes = canonical_shapes(spec)
    return sum(math.prod(shapes[name]) for name in _own(stage, spec))


def _pack(stage: str, plan: Plan) -> dict[str, Weight]:
    """The weights of a stage, each in the precision that the recipe gives it. Raises TensorError."""
    from edge.export.compress import compress_block, compress_matrix  # nncf takes seconds to import

    own = _own(stage, plan.spec)
    plan.checkpoint.prefetch(part for name in own for part in plan.weights.sources[name])
    floats = {name: plan.weights.read(name) for name in own}
    precisions = {name: plan.recipe.precision_of(name, weight.shape)[0] for name, weight in floats.items()}
    integers = {name: precision for name, precision in precisions.items() if not precision.is_float}
    packed: dict[str, Weight] = {
        name: _to_float(floats[name], name, precision) for name, precision in precisions.items() if precision.is_float
    }
    if stage.startswith("block ") and integers:
        packed |= compress_block(floats, int(stage.removeprefix("block ")), plan.spec, integers)
    else:
        packed |= {name: compress_matrix(name, floats[name], precision) for name, precision in integers.items()}
    return packed


def _check(
    stage: str, verifier: Verifier, weights: Weights, packed: Mapping[str, Weight]
) -> tuple[StageCheck, Golden | None]:
    """One stage against the checkpoint's own weights; with golden logits after the head. Raises TensorError, too."""
    floats = {name: weights.read(name) for name in packed}
    if stage == "embedding":  # of which only a few rows are computed with
        weights.check_finite(EMBEDDING)
        return verifier.embed(floats, packed), None
    try:
        if stage == "head":
            return verifier.head(floats, packed)
        return verifier.block(int(stage.removeprefix("block ")), floats, packed), None
    except VerificationError:
        for name in packed:
            weights.check_finite(name)  # or is it the checkpoint?
        raise


def _to_float(weight: FloatArray, name: str, precision: Precision) -> Weight:
    values = to_float32(weight)
    if precision.bits == 32:
        return values
    if np.abs(values).max(initial=0) > np.finfo(np.float16).max:
        raise TensorError(f"{name} reaches {np.abs(values).max():.3g}, beyond float16; use recipe fp32 or an int8 one")
    return values.astype(np.float16)


@contextmanager
def _open_store(folder: Path, journal: Journal) -> Iterator[WeightStore]:
    """The weight file, as far as the journal says that it is right."""
    stages = [Stage.from_json(step) for step in journal.steps]
    records = {name: record for stage in stages for name, record in stage.weights.items()}
    store = WeightStore(folder / bundle.MODEL_BIN, records, _done_bytes(journal))
    try:
        yield store
    finally:
        store.close()


def _done_bytes(journal: Journal) -> int:
    return int(journal.steps[-1]["end"]) if journal.steps else 0


def _hidden_file(journal: Journal, stages_done: int) -> Path:
    """Hidden states of both models after so many stages, which the next one goes on from."""
    return journal.folder / f"hidden-{stages_done}.npy"


def _write_model(store: WeightStore, spec: ModelSpec, folder: Path) -> None:
    try:
        write_ir(stateful_decoder(store, spec), store, folder / bundle.MODEL_XML)
    except RuntimeError as error:
        raise OutputError(
            f"{folder.parent}: the model could not be written ({error}); the disk is full or refuses, free some space"
        ) from error


def _manifest(
    plan: Plan,
    store: WeightStore,
    done: Compressed,
    stop_ids: tuple[int, ...],
    folder: Path,
) -> Manifest:
    tensors, groups = {}, set()
    for name, record in store.records.items():
        precision, note = plan.recipe.precision_of(name, record.shape)
        size = sum(size for _, size in record.constants.values())
        tensors[name] = TensorRecord(record.shape, str(precision), size, note)
        if name not in (EMBEDDING, HEAD):
            groups.add(precision.group_size)
    weight_bytes = sum(tensor.nbytes for tensor in tensors.values())
    files = {p.name: bundle.record_of(p) for p in sorted(folder.iterdir()) if p.is_file() and p.name != bundle.MANIFEST}
    return Manifest(
        schema_version=bundle.SCHEMA_VERSION,
        source=plan.source,
        source_sha256=source_sha256(plan, {k: v for stage in done.stages for k, v in stage.sha256.items()}),
        spec=plan.spec,
        recipe=plan.recipe.name,
        weight_group_size=min(groups - {0}, default=0),
        stop_token_ids=stop_ids,
        bits_per_weight=round(8 * weight_bytes / plan.spec.num_parameters, 4),
        weight_bytes=weight_bytes,
        golden_kld=done.golden.kld,
        warnings=plan.warnings,
        adapter="" if plan.adapter is None else plan.adapter.path.resolve().name,
        checks=tuple(stage.check for stage in done.stages),
        tensors=tensors,
        files=files,
        versions=versions(),
    )


def versions() -> dict[str, str]:
    """The packages that decide the bytes of a bundle."""
    return {name: version(name) for name in VERSIONED}


def tensor_sha256(checkpoint: Checkpoint, names: Iterable[str]) -> dict[str, str]:
    """Of each tensor's stored bytes."""
    return {name: hashlib.sha256(checkpoint.raw(name).data).hexdigest() for name in names}


def source_sha256(plan: Plan, tensors: Mapping[str, str]) -> str:
    """One hash over everything that decides the result: names, shapes and bytes of tensors, and the small files.

    Tensors and not files, because they are hashed while they are in memory; a second pass over 19 GB would not be.
    """
    digest = hashlib.sha256()
    for name, sha256 in sorted(tensors.items()):
        digest.update(f"{name} {list(plan.checkpoint.shapes[name])} {sha256}\n".encode())
    for path in plan.small_files:
        digest.update(f"{path.name} {bundle.sha256_of(path)}\n".encode())
    return digest.hexdigest()
