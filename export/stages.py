"""The stages of an export - embedding, decoder blocks, head - compressed, stored and checked, one after the other.

In: a plan, a weight file, a walk. Out: the weight file filled, what is known of every stage, and golden logits. A stage
is compressed while the one before it is checked in a second thread, and others wait for the disk; then the walk has
it, and an export that was ended resumes there. Before it does, everything it continues from is compared with digests:
the states of the walk, the weight file, and the tensors of the checkpoint that went in. Knows nothing about the other
files of a bundle.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.export.assignment import Assignment
from edge.export.checkpoint.checkpoint import Checkpoint
from edge.export.compress import awq, gptq, low_rank
from edge.export.compress.calibration import Calibration
from edge.export.compress.drift import Drift, move
from edge.export.compress.moments import moments
from edge.export.compress.precision import Precision
from edge.export.compress.recipes import Method
from edge.export.journal import Journal
from edge.export.parallel import one_blas_thread
from edge.export.plan import Plan, tensor_sha256
from edge.export.proof import Golden, Verifier
from edge.export.tensors import Float32Array, FloatArray, PackedTensor, Weight, as_unsigned, to_float32
from edge.export.walk import S, Walk
from edge.export.weights.names import EMBEDDING, HEAD, Stage
from edge.export.weights.source import ReadWhenNeeded, WeightSource
from edge.export.weights.store import StoredWeight, WeightStore
from edge.runtime.errors import TensorError, VerificationError
from edge.runtime.tensor_records import StageCheck

if TYPE_CHECKING:
    from edge.export.compress.nncf import Compressor, Fitting


PICTURES = "picture "  # begins the names of a picture tower's stages
# In the place of a stage's name:
RESUMED, RESUMED_PICTURES, MEASURED = "resumed", "resumed pictures", "measured earlier"
HIDDEN, CALIBRATION = "hidden", "calibration"  # states: of the golden tokens in both models, of the text


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an export is."""

    # "embedding", "block 3", "head", "writing", "picture layer 3"; or what was done before: RESUMED ...
    stage: str
    blocks: int  # decoder blocks done, or layers of the picture tower
    num_blocks: int
    done: int  # parameters done, which is what time goes by
    total: int
    written: int  # bytes of weights on the disk
    resumed: int  # parameters that an earlier export had done
    check: StageCheck | None  # of the stage; None for "writing" and where it was done earlier

    @classmethod
    def writing(cls, plan: Plan, written: int) -> Progress:
        """All weights of the text model are compressed, and its graphs come next."""
        layers = plan.spec.num_layers
        return cls("writing", layers, layers, plan.assignments.parameters, plan.parameters, written, 0, None)


@dataclass(frozen=True)
class DoneStage:
    """What is known of one stage when it is done; in the journal, so that no later export has to do it again."""

    end: int  # of the weight file
    weights: dict[str, StoredWeight]
    check: StageCheck
    sha256: dict[str, str]  # of the checkpoint's tensors
    file_sha256: str  # of the weight file up to here

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DoneStage:  # JSON, as to_json gives it
        weights = {name: StoredWeight.from_json(record) for name, record in data["weights"].items()}
        return cls(data["end"], weights, StageCheck(**data["check"]), data["sha256"], data["file_sha256"])


@dataclass(frozen=True)
class Compressed:
    """All stages, done."""

    stages: tuple[DoneStage, ...]
    golden: Golden

    @property
    def sha256(self) -> dict[str, str]:
        """Of all tensors of the checkpoint that went in."""
        return {name: sha256 for stage in self.stages for name, sha256 in stage.sha256.items()}


def compress(
    plan: Plan,
    store: WeightStore,
    walk: Walk[Stage],
    verifier: Verifier,
    calibration: Calibration | None,
    progress: Callable[[Progress], None],
) -> Compressed:
    """Compress all weights into the store, stage by stage, and check each stage beside the next one's compression.

    store, walk: from `open_store`. calibration: for a recipe that needs it, with nothing computed yet. The walk never
    finishes the head: it is the last stage, and its check gives the golden logits.
    """
    from edge.export.compress.nncf import Compressor  # nncf takes seconds to import

    spec = plan.spec
    stages = [DoneStage.from_json(record) for record in walk.records]
    done = np.cumsum([plan.assignments.of_stage(stage).parameters for stage in walk.stages]).tolist()
    total = plan.parameters
    resumed = done[len(stages) - 1] if stages else 0
    if stages:
        _continue(walk, verifier, calibration)
        blocks = min(len(stages) - 1, spec.num_layers)
        progress(Progress(RESUMED, blocks, spec.num_layers, resumed, total, stages[-1].end, resumed, None))
    golden: Golden | None = None
    compressor = Compressor(plan.weights_at_once)

    def keep_and_check(
        stage: Stage, packed: Mapping[str, Weight], hashes: dict[str, str], calibrated: Float32Array | None
    ) -> Future[DoneStage]:
        """Store one stage, check what was stored, and have it recorded. Runs in the second thread."""
        nonlocal golden
        for name, weight in packed.items():
            store.put(name, weight)
        stored = {name: store[name] for name in stage.needed(spec)}
        result, golden = _check(stage, verifier, plan.weights, stored)
        record = DoneStage(
            store.end, {name: store.records[name] for name in stage.own(spec)}, result, hashes, store.hash_written()
        )
        states = {HIDDEN: verifier.hidden} | ({} if calibrated is None else {CALIBRATION: calibrated})
        return third.submit(keep_record, stage, record, None if golden is not None else states)

    def keep_record(stage: Stage, record: DoneStage, states: dict[str, Float32Array] | None) -> DoneStage:
        """Wait for the disk, while others work, and tell the walk. Runs in the third thread."""
        if states is not None:
            store.sync()
            walk.finish(stage, record.to_json(), **states)
        return record

    def finish(pending: Future[Future[DoneStage]]) -> None:
        stages.append(pending.result().result())
        stage, last = walk.stages[len(stages) - 1], stages[-1]
        blocks, layers = min(stage.index, spec.num_layers), spec.num_layers
        progress(Progress(stage.name, blocks, layers, done[stage.index], total, last.end, resumed, last.check))

    # One BLAS thread: more of them would spin against nncf's, and the results would depend on how many there are.
    with one_blas_thread(), ThreadPoolExecutor(1) as third, ThreadPoolExecutor(1) as second:
        pending: deque[Future[Future[DoneStage]]] = deque()
        checked: set[str] = set()  # the tensors of the stage before
        for stage, tensors in _read_ahead(plan, walk.remaining):
            packed = pack_stage(stage, plan, compressor, calibration)
            hashes = tensor_sha256(plan.checkpoint, tensors)
            if pending:
                pending[-1].result()
                plan.checkpoint.release()
                plan.checkpoint.done_with(checked)
            checked = tensors
            while len(pending) > 1:  # the last one may be on its way to the disk
                finish(pending.popleft())
            calibrated = None if calibration is None else calibration.hidden
            pending.append(second.submit(keep_and_check, stage, packed, hashes, calibrated))
            del packed  # an embedding has half a gigabyte, which nobody needs once it is checked
        assert pending, "the head is always done"
        while pending:
            finish(pending.popleft())
    assert golden is not None
    return Compressed(tuple(stages), golden)


def _continue(walk: Walk[Stage], verifier: Verifier, calibration: Calibration | None) -> None:
    """Take up the states that the last finished stage left."""
    verifier.hidden = np.array(walk.states(HIDDEN))
    if calibration is not None:
        calibration.hidden = np.array(walk.states(CALIBRATION))


def _read_ahead(plan: Plan, stages: Sequence[Stage]) -> Iterator[tuple[Stage, set[str]]]:
    """The stages with their tensors; while one is worked on, the system reads those of the next."""
    tensors = [{part for name in stage.own(plan.spec) for part in plan.weights.sources[name]} for stage in stages]
    with ThreadPoolExecutor(1) as ahead:  # asking waits where the disk is busy
        for place, stage in enumerate(stages):
            for wanted in tensors[place if place == 0 else place + 1 : place + 2]:
                ahead.submit(plan.checkpoint.prefetch, wanted)
            yield stage, tensors[place]


def pack_stage(stage: Stage, plan: Plan, compressor: Compressor, calibration: Calibration | None) -> dict[str, Weight]:
    """The weights of a stage, each as the plan assigns it. Raises TensorError."""
    own = plan.assignments.of_stage(stage)
    floats = ReadWhenNeeded(plan.weights.read, own)

    def compressed(
        name: str, weight: FloatArray, inputs: Float32Array | None = None, drift: Drift | None = None
    ) -> Weight:
        assigned = own[name]
        if assigned.precision.is_float:
            return to_float(weight, assigned)
        if inputs is None or assigned.precision.bits > 4:
            packed = compressor.compress(name, weight, assigned.precision)
        else:
            packed = _fit(assigned, weight, inputs, drift, plan.recipe.method, compressor)
        assert packed.nbytes == assigned.nbytes, f"{name}: {packed.nbytes} bytes, {assigned.nbytes} planned"
        return packed if plan.openvino else as_unsigned(packed)  # ONNX has no signed operators

    fitted: dict[str, Weight] = {}
    if stage.layer is not None:
        if scaled := {name: assigned for name, assigned in own.items() if assigned.scaled != "off"}:
            by_inputs = any(assigned.scaled == "inputs" for assigned in scaled.values())
            hidden = calibration.hidden if by_inputs and calibration is not None else None
            precisions = {name: assigned.precision for name, assigned in scaled.items()}
            floats = awq.fold(floats, stage.layer, plan.spec, precisions, hidden)
        if calibration is not None:
            fitted = calibration.block(stage.layer, floats, compressed)
    elif calibration is not None and HEAD in own:
        needed = own[HEAD].precision.bits <= 4
        fitted = {HEAD: compressed(HEAD, floats[HEAD], calibration.last(floats))} if needed else {}
    packed = {name: fitted[name] if name in fitted else compressed(name, floats[name]) for name in own}
    if calibration is not None and EMBEDDING in own:
        calibration.embed(floats[EMBEDDING], packed[EMBEDDING])
    return packed


def _fit(
    assigned: Assignment,
    weight: FloatArray,
    inputs: Float32Array,
    drift: Drift | None,
    method: Method,
    compressor: Compressor,
) -> PackedTensor:
    """A matrix in 4 bits by this method, for inputs (T, K) and with outputs that are moved by the drift."""
    name, precision, rank = assigned.name, assigned.precision, assigned.rank
    known = moments(inputs) if method == "gptq" or rank else None
    if method == "gptq":
        assert known is not None
        weight = to_float32(weight)
        weight = weight if drift is None else move(weight, known, drift)
        packed = gptq.quantize(weight, known, precision)
    elif method == "data-free":
        packed = compressor.compress(name, weight, precision)
    else:
        fitting: Fitting = "gptq" if method == "nncf-gptq" else "scale_estimation"
        packed = compressor.fit(name, weight, precision, inputs, fitting)
    if known is None or not rank:
        return packed

    def pack(narrow: str, matrix: Float32Array) -> PackedTensor:
        return compressor.compress(f"{name}/{narrow}", matrix, Precision(8, precision.symmetric))

    return low_rank.correct(to_float32(weight), packed, known, rank, pack)


def _check(
    stage: Stage, verifier: Verifier, weights: WeightSource, packed: Mapping[str, Weight]
) -> tuple[StageCheck, Golden | None]:
    """One stage against the checkpoint's own weights; with golden logits after the head. Raises TensorError, too."""
    floats = ReadWhenNeeded(weights.read, packed)
    if stage.index == 0:  # of the embedding only a few rows are computed with
        weights.check_finite(EMBEDDING)
        return verifier.embed(floats, packed), None
    try:
        if stage.layer is None:
            return verifier.head(floats, packed)
        return verifier.block(stage.layer, floats, packed), None
    except VerificationError:
        for name in packed:
            weights.check_finite(name)  # or is it the checkpoint?
        raise


def to_float(weight: FloatArray, assigned: Assignment) -> Weight:
    """A weight that is not packed, as it is stored. Raises TensorError where float16 cannot hold it."""
    values = to_float32(weight)
    if assigned.precision.bits == 32:
        return values
    if np.abs(values).max(initial=0) > np.finfo(np.float16).max:
        raise TensorError(
            f"{assigned.name} reaches {np.abs(values).max():.3g}, beyond float16; use recipe fp32 or an int8 one"
        )
    return values.astype(np.float16)


@contextmanager
def open_store(
    path: Path, journal: Journal, all_stages: tuple[S, ...], checkpoint: Checkpoint
) -> Iterator[tuple[WeightStore, Walk[S]]]:
    """A weight file and how far it is filled; it begins anew where anything is not as the journal says.

    All tensors of the stages that are done are read again, which takes a part of the time that compressing them took:
    nothing else tells a checkpoint that was replaced by one of the same size and date.
    """
    walk = Walk(all_stages, journal)
    store: WeightStore | None = None
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        stages = [DoneStage.from_json(record) for record in walk.records]
        if stages and _same_tensors(stages, checkpoint):
            store = WeightStore(
                path, {n: weight for stage in stages for n, weight in stage.weights.items()}, stages[-1].end
            )
            if store.hash_written() != stages[-1].file_sha256:
                store.close()
                store = None
    if store is None:
        if walk.records:
            walk.begin_anew()
        store = WeightStore(path, {}, 0)
    try:
        yield store, walk
    finally:
        store.close()


def _same_tensors(stages: Iterable[DoneStage], checkpoint: Checkpoint) -> bool:
    """Whether the checkpoint's tensors are still those that these stages were made of."""
    for stage in stages:
        if tensor_sha256(checkpoint, stage.sha256) != stage.sha256:
            return False
        checkpoint.release()
    return True


def done_bytes(journal: Journal) -> int:
    """Bytes of the weight file that are written already."""
    return int(journal.steps[-1]["record"]["end"]) if journal.steps else 0
