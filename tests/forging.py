"""Bundles made wrong by somebody who makes the hashes fit again, so that only what is behind the hashes can tell."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge.runtime import bundle as bundles
from edge.runtime.manifest import DIGEST, digest_of


def read_manifest(bundle: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((bundle / bundles.MANIFEST).read_text(encoding="utf-8"))
    return data


def write_manifest(bundle: Path, data: dict[str, Any]) -> None:
    """With a digest that fits."""
    text = json.dumps(data | {DIGEST: digest_of(data)}, indent=1)
    (bundle / bundles.MANIFEST).write_text(text, encoding="utf-8")


def forge_manifest(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = read_manifest(bundle)
    change(data)
    write_manifest(bundle, data)


def forge_file(bundle: Path, name: str, content: bytes) -> None:
    """Another content under the same name, recorded."""
    (bundle / name).write_bytes(content)
    record = bundles.record_of(bundle / name)
    forge_manifest(bundle, lambda data: data["files"].update({name: {"size": record.size, "sha256": record.sha256}}))
