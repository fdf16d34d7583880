"""What the float checkpoint says of a text: the log-probabilities that compressed models are measured against.

In: float weights and windows of tokens. Out: a `Reference`, and the file it is kept in. The model runs a block at a
time, as engines' graphs compute it in float32, so that memory is that of one block or of the head; a killed run goes
on. Knows nothing about bundles or about what is compared with it.
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edge.export.destination import check_ours, remove_work
from edge.export.graph import numpy_builder
from edge.export.journal import Journal
from edge.export.npz import put_array
from edge.export.output import FULL
from edge.export.tensors import FloatArray
from edge.export.text.windows import Windows
from edge.export.walk import Batches, Walk
from edge.export.weights.names import stages_of
from edge.profiles.kept_rows import ReferenceSettings, Rows, keep
from edge.profiles.reference_file import Reference, assemble, is_reference, open_reference, reference_key, window_file
from edge.runtime.atomic import name_beside, write_durably
from edge.runtime.errors import CalibrationError, EdgeError, OutputError, TensorError
from edge.runtime.files import sha256_of
from edge.runtime.spec import ModelSpec

BATCH_TOKENS = 1024  # that pass a block at once: more take memory and are no faster
ROWS = 64  # of logits in memory
HIDDEN = "hidden"  # states: hidden states (n, T, H) of all windows
PARTS = JOURNAL, MADE = "journal", "reference.npz"  # of the work folder


class FloatWeights(Protocol):
    """Weights by canonical name, as `edge.export.weights.source.Weights` has them; changed ones, too."""

    @property
    def spec(self) -> ModelSpec: ...

    def read(self, name: str) -> FloatArray: ...


def build(
    weights: FloatWeights,
    windows: Windows,
    out: str | Path,
    *,
    key: str,
    settings: ReferenceSettings | None = None,
    progress: Callable[[str, int, int], None] = lambda _stage, _done, _total: None,
) -> Reference:
    """Compute the reference and write it to `out`, or read it from there if it is that of the same key already.

    key: of the weights: `Plan.key`, with what has been changed in them since. progress: stage ("block 3", "head"),
    steps done, steps in all. What a killed or interrupted run has done stays in the folder `.NAME.partial` beside
    `out`, which a run of the same key continues from, after a full disk as well; an error of the input removes it. One
    process at a time may write one `out`. Raises CalibrationError for settings that do not fit the windows, TensorError
    for weights that give NaN, OutputError where the file cannot be written or `out` is something else.
    """
    out, settings, spec = Path(out), settings or ReferenceSettings(), weights.spec
    _check(settings, windows, spec)
    digest = reference_key(key, windows, settings, spec)
    if os.path.lexists(out):
        if not is_reference(out):
            raise OutputError(f"{out} exists and is not a whole reference; delete it, or name another file")
        try:
            found = open_reference(out)
        except CalibrationError:  # damaged, or of another version
            found = None
        if found is not None and found.key == digest:
            return found
    work = name_beside(out, ".partial", hidden=True)
    check_ours(work, PARTS)
    try:
        journal = Journal(work / JOURNAL, digest)
        runner = _Runner(weights, windows, journal, progress)
        runner.run_blocks()
        runner.run_head(settings)
        made = assemble(work / MADE, journal.folder, windows, settings, spec, digest)
        if os.path.lexists(out) and not is_reference(out):
            raise OutputError(f"{out} appeared meanwhile and is not a reference; move it away and run this again")
        made.replace(out)
        remove_work(work, PARTS)
    except EdgeError as error:
        if not isinstance(error, OutputError):  # the same input would give it again
            remove_work(work, PARTS)
        raise
    except OSError as error:
        advice = "the disk is full; free some space" if error.errno in FULL else "choose another folder"
        raise OutputError(
            f"{out} cannot be written ({error.strerror or error}): {advice}; what is done is kept in {work} for the "
            "next time"
        ) from error
    return open_reference(out)


class _Runner:
    """Carries hidden states of all windows through the float model.

    Each window that has been through the head is in a file of its own, known by its digest in a fact of the journal;
    what was altered is computed again.
    """

    def __init__(
        self,
        weights: FloatWeights,
        windows: Windows,
        journal: Journal,
        progress: Callable[[str, int, int], None],
    ) -> None:
        from edge.runtime.engines.openvino_core import make_core

        self._core = make_core()
        self._weights, self._windows, self._journal = weights, windows, journal
        self._spec = weights.spec
        self._walk = Walk(stages_of(self._spec), journal)
        self._progress = progress
        self._total = 1 + self._spec.num_layers + windows.count

    def run_blocks(self) -> None:
        from edge.export.graph.openvino.models import block_model

        positions = np.arange(self._windows.length, dtype=np.int64)
        for stage in self._walk.remaining:
            if stage.is_head:  # whose steps are windows
                return
            weights = {name: self._weights.read(name) for name in stage.own(self._spec)}  # outlives the compiled model
            if stage.layer is None:
                batches = (numpy_builder.embed(weights, ids, self._spec) for ids in self._batches(self._windows.ids))
            else:
                compiled = self._compile(block_model(weights, stage.layer, self._spec))
                batches = (
                    compiled([np.ascontiguousarray(batch), np.tile(positions, (len(batch), 1))])[0]
                    for batch in self._batches(self._walk.states(HIDDEN))
                )
            shape = (self._windows.count, self._windows.length, self._spec.hidden_size)
            self._walk.finish(stage, {}, **{HIDDEN: Batches(shape, batches)})
            self._progress(stage.name, stage.index + 1, self._total)

    def run_head(self, settings: ReferenceSettings) -> None:
        from edge.export.graph.openvino.models import head_model

        folder, facts = self._journal.folder, self._journal.facts
        missing = [
            index
            for index in range(self._windows.count)
            if _sha256_of(window_file(folder, index)) != facts.get(window_file(folder, index).name, "missing")
        ]
        if not missing:
            return
        weights = {name: self._weights.read(name) for name in self._walk.stages[-1].needed(self._spec)}
        compiled = self._compile(head_model(weights, self._spec))
        hidden = self._walk.states(HIDDEN)
        for index in missing:
            following, parts = self._windows.ids[index, 1:], []
            for start in range(settings.first_scored, self._windows.length - 1, ROWS):
                rows = slice(start, min(start + ROWS, self._windows.length - 1))
                logits = compiled([np.ascontiguousarray(hidden[index : index + 1, rows])])[0][0]
                if not np.isfinite(logits).all():
                    raise TensorError("the float model gives NaN or infinity; the checkpoint is damaged")
                seed = [settings.seed, index, start]
                parts.append(keep(logits, following[rows], settings.top, settings.samples, seed))
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w") as archive:
                for f in fields(Rows):
                    put_array(archive, f.name, np.concatenate([getattr(part, f.name) for part in parts]))
            write_durably(window_file(folder, index), buffer.getvalue())
            self._journal.note(window_file(folder, index).name, hashlib.sha256(buffer.getvalue()).hexdigest())
            self._progress("head", 1 + self._spec.num_layers + index + 1, self._total)

    def _compile(self, model: Any) -> Any:
        config = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
        return self._core.compile_model(model, "CPU", config)

    def _batches(self, array: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
        """Windows, a few at a time."""
        size = max(BATCH_TOKENS // self._windows.length, 1)
        return (array[start : start + size] for start in range(0, self._windows.count, size))


def _sha256_of(path: Path) -> str:
    """Hex sha256; empty for a file that is not there."""
    try:
        return sha256_of(path)
    except FileNotFoundError:
        return ""


def _check(settings: ReferenceSettings, windows: Windows, spec: ModelSpec) -> None:
    if not 0 <= settings.first_scored < windows.length - 1:
        raise CalibrationError(
            f"first_scored is {settings.first_scored} in windows of {windows.length} tokens, expected 0 to "
            f"{windows.length - 2}: the last token has none to predict"
        )
    if not 5 <= settings.top <= spec.vocab_size or settings.samples < 1:
        raise CalibrationError(
            f"top is {settings.top} and samples {settings.samples}, expected a top of 5 to {spec.vocab_size}, the "
            "vocabulary, and 1 sample or more"
        )
    if windows.length > spec.max_position_embeddings:
        raise CalibrationError(f"windows of {windows.length} tokens, the model takes {spec.max_position_embeddings}")
    if not 0 <= int(windows.ids.min()) <= int(windows.ids.max()) < spec.vocab_size:
        raise CalibrationError(
            f"token {int(windows.ids.max())} is in the windows, the model has {spec.vocab_size}; use its own tokenizer"
        )
