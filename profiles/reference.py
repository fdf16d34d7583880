"""What the float checkpoint says of a text: the log-probabilities that compressed models are measured against.

In: float weights and windows of tokens. Out: a `Reference`, and the file it is kept in. The model runs a block at a
time, as engines' graphs compute it in float32, so that memory is that of one block or of the head; a killed run goes
on. Knows nothing about bundles or about what is compared with it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edge.export.destination import check_ours, remove_work
from edge.export.graph import numpy_builder
from edge.export.journal import Journal
from edge.export.npz import DAMAGE, get_array, put_array
from edge.export.output import FULL
from edge.export.tensors import Float32Array, FloatArray
from edge.export.text.windows import Windows
from edge.export.weights.names import EMBEDDING, HEAD, canonical_shapes
from edge.profiles.kept_rows import ReferenceSettings, Rows, keep
from edge.profiles.typed_json import read_value
from edge.runtime.atomic import name_beside, write_durably
from edge.runtime.errors import CalibrationError, EdgeError, OutputError, TensorError, shown
from edge.runtime.files import open_file, sha256_of, shown_path
from edge.runtime.json_reader import parse_json
from edge.runtime.spec import ModelSpec

FORMAT = 1  # of the file
BATCH_TOKENS = 1024  # that pass a block at once: more take memory and are no faster
ROWS = 64  # of logits in memory
VERSIONED = ("edgeglm", "openvino", "numpy")  # packages that decide the figures
HEADER = "header.json"
_MAX_HEADER_BYTES = 10_000_000
PARTS = JOURNAL, MADE = "journal", "reference.npz"  # of the work folder


class FloatWeights(Protocol):
    """Weights by canonical name, as `edge.export.weights.names.Weights` has them; changed ones, too."""

    @property
    def spec(self) -> ModelSpec: ...

    def read(self, name: str) -> FloatArray: ...


@dataclass(frozen=True, slots=True)
class Reference:
    """The float model's log-probabilities of a text. Row t of a window is what is said of token t + 1."""

    windows: Windows
    rows: Rows  # (n, R): rows first_scored to length - 2 of every window
    settings: ReferenceSettings
    vocab_size: int
    key: str  # of everything that the figures depend on

    @property
    def scored(self) -> int:
        """Rows of one window."""
        return self.windows.length - 1 - self.settings.first_scored

    @property
    def ppl(self) -> float:
        """Perplexity of the text to the float model."""
        return float(np.exp(-np.mean(self.rows.next_logprobs, dtype=np.float64)))


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
    `out`, which a run of the same key goes on from, after a full disk as well; an error of the input removes it. One
    process at a time may write one `out`. Raises CalibrationError for settings that do not fit the windows, TensorError
    for weights that give NaN, OutputError where the file cannot be written or `out` is something else.
    """
    out, settings, spec = Path(out), settings or ReferenceSettings(), weights.spec
    _check(settings, windows, spec)
    digest = _key(key, windows, settings, spec)
    if os.path.lexists(out):
        if not _is_reference(out):
            raise OutputError(f"{out} is there and is no whole reference; delete it, or name another file")
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
        if journal.empty:
            journal.clear()
        runner = _Runner(weights, windows, journal, progress)
        runner.run_blocks()
        runner.run_head(settings)
        made = _assemble(work / MADE, journal.folder, windows, settings, spec, digest)
        if os.path.lexists(out) and not _is_reference(out):
            raise OutputError(f"{out} appeared meanwhile and is no reference; move it away and run this again")
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


def open_reference(path: str | Path) -> Reference:
    """Read a reference. Raises CalibrationError when the file is not there, damaged, or of another version."""
    name, advice = shown_path(path), "delete it, and it is made anew"
    try:
        with open_file(Path(path), CalibrationError, advice) as file, zipfile.ZipFile(file) as archive:
            entry = archive.getinfo(HEADER)
            if entry.file_size > _MAX_HEADER_BYTES:
                raise ValueError(f"{HEADER} has {entry.file_size:,} bytes")
            raw = archive.read(entry)
            header = parse_json(raw, f"{HEADER} in {name}", CalibrationError, advice, unique_keys=True)
            if header["format"] != FORMAT:
                raise CalibrationError(
                    f"{name} is a reference of format {shown(header['format'])}, expected {FORMAT}; delete it"
                )
            rows = Rows(**{field.name: get_array(archive, field.name) for field in fields(Rows)})
            languages = read_value(header["languages"], "tuple[str, ...]", "languages", CalibrationError, advice)
            windows = Windows(get_array(archive, "ids"), languages)
        settings = ReferenceSettings(**header["settings"])
        for field in fields(ReferenceSettings):
            read_value(getattr(settings, field.name), "int", field.name, CalibrationError, advice)
        vocab_size = read_value(header["vocab_size"], "int", "vocab_size", CalibrationError, advice)
        key = read_value(header["key"], "str", "key", CalibrationError, advice)
        reference = Reference(windows, rows, settings, vocab_size, key)
        whole = _is_whole(reference) and windows.sha256 == header["windows_sha256"]
    except DAMAGE as error:
        raise CalibrationError(f"{name} does not read as a reference ({shown(str(error))}); {advice}") from error
    if not whole:
        raise CalibrationError(f"{name} does not hold what its header says; {advice}")
    return reference


def _is_whole(reference: Reference) -> bool:
    """Whether arrays have the types, shapes and ranges that go with each other."""
    windows, rows, settings, vocab = reference.windows, reference.rows, reference.settings, reference.vocab_size
    if windows.ids.ndim != 2 or windows.ids.dtype != np.int64 or len(windows.languages) != windows.count:
        return False
    if not windows.count or vocab < 1 or not 0 <= settings.first_scored < windows.length - 1:
        return False
    lead = (windows.count, reference.scored)
    top, samples = rows.top_ids.shape[-1:], rows.sample_ids.shape[-1:]
    ids = {"top_ids": (*lead, *top), "sample_ids": (*lead, *samples), "next_ranks": lead}
    numbers = {"top_logprobs": (*lead, *top), "sample_logprobs": (*lead, *samples), "tail": lead, "next_logprobs": lead}
    found = {field.name: getattr(rows, field.name) for field in fields(Rows)}
    return (
        all(found[name].dtype == np.int32 and found[name].shape == shape for name, shape in ids.items())
        and all(found[name].dtype == np.float32 and found[name].shape == shape for name, shape in numbers.items())
        and all(_within(array, vocab) for array in (windows.ids, *(found[name] for name in ids)))
        and all(bool(np.isfinite(found[name]).all()) for name in numbers)
    )


def _within(ids: npt.NDArray[Any], vocab_size: int) -> bool:
    return not ids.size or (int(ids.min()) >= 0 and int(ids.max()) < vocab_size)


def _is_reference(path: Path) -> bool:
    """Whether a file was written by `build`, whole or damaged since: another archive has no header of ours."""
    try:
        with zipfile.ZipFile(path) as archive:
            return HEADER in archive.namelist() and "top_logprobs.npy" in archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


class _Runner:
    """Carries hidden states of all windows through the float model.

    The journal has a step for the embedding and for each block; the hidden states behind the last one are in a file,
    and each window that has been through the head in another, with a fact. All are known by their digests, and what
    was altered is computed again.
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
        self._progress = progress
        self._total = 1 + self._spec.num_layers + windows.count
        if journal.steps and _sha256_of(self._hidden_file) != journal.steps[-1].get("sha256"):
            journal.clear()

    def run_blocks(self) -> None:
        from edge.export.graph.openvino.models import block_model

        if not self._journal.steps:
            matrix = {EMBEDDING: self._weights.read(EMBEDDING)}
            self._finish(
                "embedding", (numpy_builder.embed(matrix, ids, self._spec) for ids in self._batches(self._windows.ids))
            )
        positions = np.arange(self._windows.length, dtype=np.int64)
        for layer in range(len(self._journal.steps) - 1, self._spec.num_layers):
            prefix = f"layers.{layer}."
            names = [name for name in canonical_shapes(self._spec) if name.startswith(prefix)]
            weights = {name: self._weights.read(name) for name in names}  # has to outlive the compiled model
            compiled = self._compile(block_model(weights, layer, self._spec))
            hidden = np.load(self._hidden_file, mmap_mode="r")
            self._finish(
                f"block {layer}",
                (
                    compiled([np.ascontiguousarray(batch), np.tile(positions, (len(batch), 1))])[0]
                    for batch in self._batches(hidden)
                ),
            )

    def run_head(self, settings: ReferenceSettings) -> None:
        from edge.export.graph.openvino.models import head_model

        folder, facts = self._journal.folder, self._journal.facts
        missing = [
            index
            for index in range(self._windows.count)
            if _sha256_of(_window_file(folder, index)) != facts.get(_window_file(folder, index).name, "missing")
        ]
        if not missing:
            return
        names = ["norm.weight", EMBEDDING if self._spec.tied_embeddings else HEAD]
        weights = {name: self._weights.read(name) for name in names}
        compiled = self._compile(head_model(weights, self._spec))
        hidden = np.load(self._hidden_file, mmap_mode="r")
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
            write_durably(_window_file(folder, index), buffer.getvalue())
            self._journal.note(_window_file(folder, index).name, hashlib.sha256(buffer.getvalue()).hexdigest())
            self._progress("head", 1 + self._spec.num_layers + index + 1, self._total)

    def _compile(self, model: Any) -> Any:
        config = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
        return self._core.compile_model(model, "CPU", config)

    def _batches(self, array: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
        """Windows, a few at a time."""
        size = max(BATCH_TOKENS // self._windows.length, 1)
        return (array[start : start + size] for start in range(0, self._windows.count, size))

    @property
    def _hidden_file(self) -> Path:
        """Hidden states (n, T, H), float32, behind the last stage that is done."""
        return self._journal.folder / f"hidden-{len(self._journal.steps)}.npy"

    def _finish(self, stage: str, batches: Iterator[Float32Array]) -> None:
        """Write the hidden states behind a stage; then it is done."""
        old = self._hidden_file
        new = old.with_name(f"hidden-{len(self._journal.steps) + 1}.npy")
        shape = (self._windows.count, self._windows.length, self._spec.hidden_size)
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
        digest = hashlib.sha256(header.getvalue())
        with new.open("wb") as file:  # not a writable map: on a full disk that ends the process
            file.write(header.getvalue())
            for batch in batches:
                rows = np.ascontiguousarray(batch, "<f4").data.cast("B")
                digest.update(rows)
                file.write(rows)
            file.flush()
            os.fsync(file.fileno())
        self._journal.add({"stage": stage, "sha256": digest.hexdigest()})
        old.unlink(missing_ok=True)
        self._progress(stage, len(self._journal.steps), self._total)


def _window_file(folder: Path, index: int) -> Path:
    return folder / f"window-{index}.npz"


def _sha256_of(path: Path) -> str:
    """Hex sha256; empty for a file that is not there."""
    try:
        return sha256_of(path)
    except FileNotFoundError:
        return ""


def _assemble(
    path: Path, folder: Path, windows: Windows, settings: ReferenceSettings, spec: ModelSpec, key: str
) -> Path:
    """One file of all windows that are in a folder: an .npz with a JSON header beside the arrays."""
    header = {
        "format": FORMAT,
        "key": key,
        "settings": asdict(settings),
        "vocab_size": spec.vocab_size,
        "windows_sha256": windows.sha256,
        "languages": list(windows.languages),
        "versions": _versions(),
    }
    with path.open("wb") as file:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(zipfile.ZipInfo(HEADER), json.dumps(header))
            put_array(archive, "ids", windows.ids)
            for field in fields(Rows):
                parts = []
                for index in range(windows.count):
                    with np.load(_window_file(folder, index), allow_pickle=False) as part:
                        parts.append(part[field.name])
                put_array(archive, field.name, np.stack(parts))
        file.flush()
        os.fsync(file.fileno())
    return path


def _key(key: str, windows: Windows, settings: ReferenceSettings, spec: ModelSpec) -> str:
    decides = [FORMAT, key, spec.to_json(), windows.sha256, list(windows.languages), asdict(settings), _versions()]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()


def _versions() -> dict[str, str]:
    return {name: version(name) for name in VERSIONED}


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
