"""Text and JSONL to calibrate and to measure with."""

from __future__ import annotations

import json
from pathlib import Path

from edge.export.text.documents import read_documents
from tests.fuzz.target import Target

LINES = (
    {"text": "One text.", "language": "en"},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "你好"}], "language": "zh"},
)


def _seeds(_folder: Path) -> list[bytes]:
    lines = [json.dumps(line, ensure_ascii=False).encode() for line in LINES]
    return [b"\n".join(lines), b"\r\n\r\n".join(lines) + b"\r\n"]


def _one(_folder: Path) -> list[bytes]:
    return [json.dumps(line).encode() for line in LINES]


def _read(raw: bytes, folder: Path) -> object:
    path = folder / "it.jsonl"
    path.write_bytes(raw)
    return [document.rendered(None).encode() for document in read_documents(path)]


def _read_text(raw: bytes, folder: Path) -> object:
    path = folder / "it.txt"
    path.write_bytes(raw)
    return [document.text.encode() for document in read_documents(path)]


_WORDS = (b"\\ud83d", b"\xef\xbb\xbf", b"\r", b"\n", b"\0", b"{", b"[", b'"messages"', b'"text"')
TARGETS = (
    Target("jsonl", _seeds, _read, "text", _WORDS),
    Target("jsonl-line", _one, _read, "json", _WORDS),
    Target("text", _seeds, _read_text, "bytes", _WORDS),
)
