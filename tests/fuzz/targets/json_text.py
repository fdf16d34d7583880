"""The reader of JSON that all others use."""

from __future__ import annotations

import json
from pathlib import Path

from edge.runtime.errors import BundleError
from edge.runtime.json_reader import parse_json
from tests.fuzz.target import Target


def _seeds(_folder: Path) -> list[bytes]:
    return [json.dumps({"a": [1, 2.5, "é", None, {"b": {"c": [True, False]}}], "n": -1e300}).encode()]


def _read(raw: bytes, _folder: Path) -> object:
    return parse_json(raw, "it", BundleError, "go")


TARGETS = (Target("json", _seeds, _read, "json", (b"\\ud83d", b"[", b"{", b"NaN", b"1e999", b'"')),)
