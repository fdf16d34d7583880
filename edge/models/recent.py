"""Which bundles were used last, for `edge chat` without one.

In: the folder of a bundle that is being used. Out: the folders that were, latest first, each with the day. The file is
small, private and never missed: whatever keeps it from being read or written is nobody's error. It is written when the
order or the day changes, so that using one bundle again and again writes nothing.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path

from edge.models.config_file import models_folder
from edge.models.find import names_in
from edge.models.folders import state_folder
from edge.runtime.atomic import write_atomically
from edge.runtime.bundle import is_bundle
from edge.runtime.errors import BundleError, EdgeError, OutputError
from edge.runtime.files import is_file, read_file, real_path, shown_path
from edge.runtime.json_reader import parse_json

FILE = "last-used.json"
MOST = 50
MAX_BYTES = 1_000_000
_DAY = re.compile(r"\d{4}-\d\d-\d\d")


@dataclass(frozen=True, slots=True)
class Used:
    """A bundle, and the last day on which it was used."""

    path: Path
    day: str  # 2026-03-31


@dataclass(frozen=True, slots=True)
class Choice:
    """A bundle that nobody named, and why it is the one that is meant."""

    path: Path
    why: str


def remember(bundle: Path) -> None:
    """Make a bundle the one that was used last; does nothing where that cannot be written."""
    with contextlib.suppress(EdgeError, OSError, ValueError):
        folder = state_folder()
        if folder is None:
            return
        used = Used(real_path(bundle), time.strftime("%Y-%m-%d"))
        before = _read(folder / FILE)
        if before[:1] == [used]:
            return
        rows = [used, *(one for one in before if one.path != used.path)][:MOST]
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        content = json.dumps([{"path": str(one.path), "day": one.day} for one in rows], indent=1)
        write_atomically(folder / FILE, [f"{content}\n".encode()])


def recent() -> list[Used]:
    """Return the bundles that were used, latest first; those that are gone are left out."""
    with contextlib.suppress(EdgeError, OSError, ValueError):
        folder = state_folder()
        return [] if folder is None else [one for one in _read(folder / FILE) if is_bundle(one.path)]
    return []


def choose() -> Choice:
    """Return the bundle that is meant where none is named: the last used one, or the only one. Raises BundleError."""
    used = recent()
    if used:
        return Choice(used[0].path, "the last used")
    folder = models_folder()
    names = [] if folder is None else list(names_in(folder))
    if folder is not None and len(names) == 1:
        return Choice(folder / names[0], "the only one")
    if names:
        raise BundleError(f"no BUNDLE is given, and none was used before; give one of {', '.join(names)}")
    where = "" if folder is None else f", and {shown_path(folder)} has none"
    raise BundleError(f"no BUNDLE is given{where}; give the folder of one, or make one with `edge export SOURCE NAME`")


def _read(path: Path) -> list[Used]:
    """Return what the file says. Raises OutputError for one that is not ours, which is then left alone."""
    if not is_file(path):
        return []
    raw = read_file(path, OutputError, "remove it", max_bytes=MAX_BYTES)
    if not raw.strip(b"\0 \r\n"):  # what a power failure leaves on some file systems
        return []
    rows = parse_json(raw, FILE, OutputError, "remove it")
    if not isinstance(rows, list) or not all(map(_is_row, rows)):
        raise OutputError(f"{path} holds something else; remove it")
    return [Used(Path(row["path"]), row["day"]) for row in rows]


def _is_row(row: object) -> bool:
    if not isinstance(row, dict):
        return False
    path, day = row.get("path"), row.get("day")
    return isinstance(path, str) and isinstance(day, str) and _DAY.fullmatch(day) is not None
