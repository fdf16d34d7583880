"""The file that a reference is kept in: the float model's log-probabilities of a text.

In: a path, or the windows that a run has left in a folder. Out: a `Reference`, or the file, an .npz with a JSON header
beside the arrays. Knows nothing about models.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.export.npz import DAMAGE, get_array, put_array
from edge.export.text.windows import Windows
from edge.profiles.kept_rows import ReferenceSettings, Rows
from edge.profiles.typed_json import read_value
from edge.runtime.errors import CalibrationError, shown
from edge.runtime.files import open_file, shown_path
from edge.runtime.json_reader import parse_json
from edge.runtime.spec import ModelSpec

FORMAT = 1  # of the file
VERSIONED = ("edgeglm", "openvino", "numpy")  # packages that decide the figures
HEADER = "header.json"
_MAX_HEADER_BYTES = 10_000_000


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


def is_reference(path: Path) -> bool:
    """Whether a file was written by `build`, whole or damaged since: another archive has no header of ours."""
    try:
        with zipfile.ZipFile(path) as archive:
            return HEADER in archive.namelist() and "top_logprobs.npy" in archive.namelist()
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


def window_file(folder: Path, index: int) -> Path:
    return folder / f"window-{index}.npz"


def assemble(
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
                    with np.load(window_file(folder, index), allow_pickle=False) as part:
                        parts.append(part[field.name])
                put_array(archive, field.name, np.stack(parts))
        file.flush()
        os.fsync(file.fileno())
    return path


def reference_key(key: str, windows: Windows, settings: ReferenceSettings, spec: ModelSpec) -> str:
    decides = [FORMAT, key, spec.to_json(), windows.sha256, list(windows.languages), asdict(settings), _versions()]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()


def _versions() -> dict[str, str]:
    return {name: version(name) for name in VERSIONED}
