"""Profiles' own files: profile.json, and the archive of what the float model says."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from edge.export.npz import put_array
from edge.export.text.windows import Windows
from edge.profiles.comparison import compare_named
from edge.profiles.kept_rows import ReferenceSettings, keep
from edge.profiles.record import PROFILE
from edge.profiles.reference_file import FORMAT, HEADER, open_reference
from edge.profiles.worker import read_windows, write_windows
from tests.fuzz.target import Target
from tests.profiles.rows import profile, row

VOCABULARY = 40


def _profiles(folder: Path) -> list[bytes]:
    text = profile(row("int8-asym", "onnx"), row("int4-asym-g128", "onnx")).to_json()
    (folder / "other.json").write_text(text)
    cell = {"key": "k", "row": json.loads(text)["rows"][0]}
    return [text.encode(), json.dumps(cell).encode()]


def _read_profile(raw: bytes, folder: Path) -> object:
    (folder / PROFILE).write_bytes(raw)
    return compare_named(str(folder / PROFILE), str(folder / "other.json"))


def _references(_folder: Path) -> list[bytes]:
    rng = np.random.default_rng(0)
    windows = Windows(rng.integers(0, VOCABULARY, (2, 5)), ("en", "zh"))
    settings = ReferenceSettings(first_scored=1, top=6, samples=3)
    parts = [
        keep(rng.normal(size=(3, VOCABULARY)).astype(np.float32), ids[2:], settings.top, settings.samples, [0])
        for ids in windows.ids
    ]
    header: dict[str, Any] = {
        "format": FORMAT, "key": "k", "settings": asdict(settings), "vocab_size": VOCABULARY,
        "windows_sha256": windows.sha256, "languages": list(windows.languages), "versions": {},
    }  # fmt: skip
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo(HEADER), json.dumps(header))
        put_array(archive, "ids", windows.ids)
        for field in fields(parts[0]):
            put_array(archive, field.name, np.stack([getattr(part, field.name) for part in parts]))
    return [buffer.getvalue()]


def _read_reference(raw: bytes, folder: Path) -> object:
    path = folder / "reference.npz"
    path.write_bytes(_with_sums(raw))
    found = open_reference(path)
    return found.ppl, found.rows[0]


def _with_sums(raw: bytes) -> bytes:
    """Its entries with the checksums that they have, so that more than zipfile's own check is tried."""
    if len(raw) % 4 == 0:
        return raw
    out = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive, zipfile.ZipFile(out, "w") as new:
            for entry in archive.infolist():
                entry.CRC = None  # type: ignore[assignment]  # zipfile then compares none
                with archive.open(entry) as file:
                    file._expected_crc = None  # type: ignore[attr-defined]
                    new.writestr(zipfile.ZipInfo(entry.filename), file.read())
    except Exception:  # then it is tried as it is
        return raw
    return out.getvalue()


def _windows(folder: Path) -> list[bytes]:
    write_windows(Windows(np.arange(12).reshape(3, 4), ("en", "en", "zh")), folder / "seed.npz")
    return [(folder / "seed.npz").read_bytes()]


def _read_windows(raw: bytes, folder: Path) -> object:
    (folder / "windows.npz").write_bytes(_with_sums(raw))
    return read_windows(folder / "windows.npz").sha256


_NPY = (b"{'descr': '<i8', ", b"'shape': (99999999999,)", b"|O", b"<f4", b"'fortran_order': True", b"PK\1\2", b"NaN")
TARGETS = (
    Target("profile", _profiles, _read_profile, "json", (b"NaN", b"null", b'"rows"', b"1e999", b"true")),
    Target("reference", _references, _read_reference, "bytes", _NPY),
    Target("windows", _windows, _read_windows, "bytes", _NPY),
)
