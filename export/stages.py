"""The stages of an export - embedding, decoder blocks, head - compressed, stored and checked, one after the other.

In: a plan, a weight file, a journal. Out: the weight file filled, what is known of every stage, and golden logits. A
stage is compressed while the one before it is checked in a second thread; after its check it stands in the journal,
from which the next export goes on if this one is ended. Before it does, all that it goes on from is held against the
digests in the journal: the weight file, both kinds of hidden states, the tensors of the checkpoint that went in, and
the bundle's small files. Knows nothing about the other files of a bundle.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import threadpool_limits

from edge.export.assignment import Assignment
from edge.export.compress import awq, gptq, low_rank
from edge.export.compress.calibration import Calibration
from edge.export.compress.precision import Precision
from edge.export.compress.recipes import Method
from edge.export.journal import Journal
from edge.export.plan import Plan, tensor_sha256
from edge.export.proof import Golden, Verifier
from edge.export.tensors import Float32Array, FloatArray, PackedTensor, Weight, as_unsigned, to_float32
from edge.export.weights.names import EMBEDDING, HEAD
from edge.export.weights.source import ReadWhenNeeded, WeightSource
from edge.export.weights.store import StoredWeight, WeightStore
from edge.runtime.atomic import write_durably
from edge.runtime.errors import TensorError, VerificationError
from edge.runtime.manifest import StageCheck

if TYPE_CHECKING:
    from edge.export.compress.nncf import Compressor, Fitting


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
class Stage:
    """What is known of one stage when it is done; in the journal, so that no later export has to do it again."""

    end: int  # of the weight file
    weights: dict[str, StoredWeight]
    check: StageCheck
    sha256: dict[str, str]  # of the checkpoint's tensors
    file_sha256: str  # of the weight file up to here
    hidden_sha256: str  # of what the next stage goes on from
    calibrated_sha256: str  # of the same of the calibration text; empty where there is none

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Stage:  # JSON, as to_json gives it
        weights = {name: StoredWeight.from_json(record) for name, record in data["weights"].items()}
        digests = [data[name] for name in ("file_sha256", "hidden_sha256", "calibrated_sha256")]
        return cls(data["end"], weights, StageCheck(**data["check"]), data["sha256"], *digests)


@dataclass(frozen=True)
class Begun:
    """What an ended export has done, after it was held against the journal; nothing at the beginning."""

    stages: tuple[Stage, ...] = ()
    hidden: Float32Array | None = None
    calibrated: Float32Array | None = None


@dataclass(frozen=True)
class Compressed:
    """All stages, done."""

    stages: tuple[Stage, ...]
    golden: Golden


def compress(
    plan: Plan,
    store: WeightStore,
    begun: Begun,
    verifier: Verifier,
    journal: Journal,
    calibration: Calibration | None,
    progress: Callable[[Progress], None],
) -> Compressed:
    """Compress all weights into the store, stage by stage, and check each stage beside the next one's compression.

    calibration: for a recipe that needs it, with nothing computed yet. The head is not in the journal: it is the last
    stage, and its check gives the golden logits.
    """
    from edge.export.compress.nncf import Compressor  # nncf takes seconds to import

    spec = plan.spec
    names = ["embedding", *(f"block {layer}" for layer in range(spec.num_layers)), "head"]
    stages = list(begun.stages)
    first = len(stages)
    done = np.cumsum([plan.assignments.of_stage(name).parameters for name in names]).tolist()
    resumed = done[first - 1] if first else 0
    if begun.hidden is not None:
        verifier.hidden = begun.hidden
    if calibration is not None and begun.calibrated is not None:
        calibration.hidden = begun.calibrated
    golden: Golden | None = None
    compressor = Compressor()

    def keep_and_check(index: int, packed: Mapping[str, Weight], calibrated: Float32Array | None) -> Stage:
        """Store one stage, check what was stored, and record it. Runs in the second thread."""
        nonlocal golden
        for name, weight in packed.items():
            store.put(name, weight)
        stored = {name: store[name] for name in plan.assignments.needed_by(names[index])}
        result, golden = _check(names[index], verifier, plan.weights, stored)
        own = plan.assignments.of_stage(names[index])
        parts = {part for name in own for part in plan.weights.sources[name]}
        records = {name: store.records[name] for name in own}
        hashes = tensor_sha256(plan.checkpoint, parts)
        stage = Stage(store.end, records, result, hashes, store.hash_written(), "", "")
        if golden is None:
            store.sync()
            kept = _keep(verifier.hidden, _hidden_file(journal, index + 1))
            again = "" if calibrated is None else _keep(calibrated, _calibration_file(journal, index + 1))
            stage = replace(stage, hidden_sha256=kept, calibrated_sha256=again)
            journal.add(stage.to_json())
            for old in (_hidden_file(journal, index), _calibration_file(journal, index)):
                old.unlink(missing_ok=True)
        return stage

    def finish(pending: Future[Stage]) -> None:
        stages.append(pending.result())
        index = len(stages) - 1
        blocks, (end, result) = min(index, spec.num_layers), (stages[-1].end, stages[-1].check)
        progress(Progress(names[index], blocks, spec.num_layers, done[index], done[-1], end, resumed, result))

    # One BLAS thread: more of them would spin against nncf's, and the results would depend on how many there are.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(1) as second:
        pending: Future[Stage] | None = None
        for index in range(first, len(names)):
            packed = pack_stage(names[index], plan, compressor, calibration)
            if pending is not None:
                finish(pending)
                plan.checkpoint.release()
            pending = second.submit(keep_and_check, index, packed, None if calibration is None else calibration.hidden)
            del packed  # an embedding has half a gigabyte, which nobody needs once it is checked
        assert pending is not None, "the head is always done"
        finish(pending)
    assert golden is not None
    return Compressed(tuple(stages), golden)


def pack_stage(stage: str, plan: Plan, compressor: Compressor, calibration: Calibration | None) -> dict[str, Weight]:
    """The weights of a stage, each as the plan assigns it. Raises TensorError."""
    own = plan.assignments.of_stage(stage)
    plan.checkpoint.prefetch(part for name in own for part in plan.weights.sources[name])
    floats = ReadWhenNeeded(plan.weights.read, own)

    def compressed(
        name: str, weight: FloatArray, inputs: Float32Array | None = None, drift: Float32Array | None = None
    ) -> Weight:
        assigned = own[name]
        if assigned.precision.is_float:
            return _to_float(weight, assigned)
        if inputs is None or assigned.precision.bits > 4:
            packed = compressor.compress(name, weight, assigned.precision)
        else:
            packed = _fit(assigned, weight, inputs, drift, plan.recipe.method, compressor)
        assert packed.nbytes == assigned.nbytes, f"{name}: {packed.nbytes} bytes, {assigned.nbytes} planned"
        return packed if plan.openvino else as_unsigned(packed)  # ONNX has no signed operators

    fitted: dict[str, Weight] = {}
    if stage.startswith("block "):
        layer = int(stage.removeprefix("block "))
        if scaled := {name: assigned for name, assigned in own.items() if assigned.scaled != "off"}:
            by_inputs = any(assigned.scaled == "inputs" for assigned in scaled.values())
            hidden = calibration.hidden if by_inputs and calibration is not None else None
            precisions = {name: assigned.precision for name, assigned in scaled.items()}
            floats = awq.fold(floats, layer, plan.spec, precisions, hidden)
        if calibration is not None:
            fitted = calibration.block(layer, floats, compressed)
    elif calibration is not None and stage == "head" and HEAD in own:
        needed = own[HEAD].precision.bits <= 4
        fitted = {HEAD: compressed(HEAD, floats[HEAD], calibration.last(floats))} if needed else {}
    packed = {name: fitted[name] if name in fitted else compressed(name, floats[name]) for name in own}
    if calibration is not None and stage == "embedding":
        calibration.embed(floats[EMBEDDING], packed[EMBEDDING])
    return packed


def _fit(
    assigned: Assignment,
    weight: FloatArray,
    inputs: Float32Array,
    drift: Float32Array | None,
    method: Method,
    compressor: Compressor,
) -> PackedTensor:
    """A matrix in 4 bits by this method, for inputs (T, K) and with outputs that are moved by the drift."""
    name, precision, rank = assigned.name, assigned.precision, assigned.rank
    moments = gptq.moments(inputs) if method == "gptq" or rank else None
    if method == "gptq":
        assert moments is not None
        weight = to_float32(weight)
        weight = weight if drift is None else gptq.move(weight, moments, drift)
        packed = gptq.quantize(weight, moments, precision)
    elif method == "data-free":
        packed = compressor.compress(name, weight, precision)
    else:
        fitting: Fitting = "gptq" if method == "nncf-gptq" else "scale_estimation"
        packed = compressor.fit(name, weight, precision, inputs, fitting)
    if moments is None or not rank:
        return packed

    def pack(narrow: str, matrix: Float32Array) -> PackedTensor:
        return compressor.compress(f"{name}/{narrow}", matrix, Precision(8, precision.symmetric))

    return low_rank.correct(to_float32(weight), packed, moments, rank, pack)


def _check(
    stage: str, verifier: Verifier, weights: WeightSource, packed: Mapping[str, Weight]
) -> tuple[StageCheck, Golden | None]:
    """One stage against the checkpoint's own weights; with golden logits after the head. Raises TensorError, too."""
    floats = ReadWhenNeeded(weights.read, packed)
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


def _to_float(weight: FloatArray, assigned: Assignment) -> Weight:
    values = to_float32(weight)
    if assigned.precision.bits == 32:
        return values
    if np.abs(values).max(initial=0) > np.finfo(np.float16).max:
        raise TensorError(
            f"{assigned.name} reaches {np.abs(values).max():.3g}, beyond float16; use recipe fp32 or an int8 one"
        )
    return values.astype(np.float16)


@contextmanager
def open_store(path: Path, journal: Journal, plan: Plan) -> Iterator[tuple[WeightStore, Begun]]:
    """The weight file and what is done of it; the journal loses its steps where they do not hold any more."""
    begun = Begun()
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        begun = _read_begun(journal, plan)
    store = _reopen(path, begun)
    if begun.stages and store.hash_written() != begun.stages[-1].file_sha256:
        store.close()
        begun = Begun()
        store = _reopen(path, begun)
    if journal.steps and not begun.stages:
        journal.forget_steps()
    try:
        yield store, begun
    finally:
        store.close()


def _reopen(path: Path, begun: Begun) -> WeightStore:
    records = {name: record for stage in begun.stages for name, record in stage.weights.items()}
    return WeightStore(path, records, begun.stages[-1].end if begun.stages else 0)


def _read_begun(journal: Journal, plan: Plan) -> Begun:
    """What the journal says is done, if the files that go with it and the checkpoint are those that it was written of.

    All tensors of these stages are read again, which takes a part of the time that compressing them took: nothing else
    tells a checkpoint that was replaced by one of the same size and date.
    """
    stages = tuple(Stage.from_json(step) for step in journal.steps)
    if not stages:
        return Begun()
    last = stages[-1]
    hidden = _load(_hidden_file(journal, len(stages)), last.hidden_sha256)
    calibrated = None
    if last.calibrated_sha256:
        calibrated = _load(_calibration_file(journal, len(stages)), last.calibrated_sha256)
    for stage in stages:
        if tensor_sha256(plan.checkpoint, stage.sha256) != stage.sha256:
            raise ValueError(f"the tensors of {stage.check.stage} are others than they were")
        plan.checkpoint.release()
    return Begun(stages, hidden, calibrated)


def done_bytes(journal: Journal) -> int:
    return int(journal.steps[-1]["end"]) if journal.steps else 0


def _hidden_file(journal: Journal, stages_done: int) -> Path:
    """Hidden states of both models after so many stages, which the next one goes on from."""
    return journal.folder / f"hidden-{stages_done}.npy"


def _calibration_file(journal: Journal, stages_done: int) -> Path:
    """The same of the calibration text."""
    return journal.folder / f"calibration-{stages_done}.npy"


def _keep(array: Float32Array, path: Path) -> str:
    """Write an array with no copy of it; returns its digest."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    write_durably(path, header.getvalue(), array.data.cast("B"))
    return _digest(array)


def _load(path: Path, sha256: str) -> Float32Array:
    """An array that `_keep` wrote. Raises OSError and ValueError."""
    array: Float32Array = np.load(path, allow_pickle=False)
    if _digest(array) != sha256:
        raise ValueError(f"{path} was altered")
    return array


def _digest(array: Float32Array) -> str:
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data.cast("B"))
    return digest.hexdigest()
