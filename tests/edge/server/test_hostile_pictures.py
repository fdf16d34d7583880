"""Pictures that are made to harm: each is refused in words, in little memory, and the server answers on."""

from __future__ import annotations

import base64
import io
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.api import scripted_llm
from edge.runtime.engines.scripted import replies
from edge.runtime.messages import ImagePart
from tests.edge.server.live import Json, Live, served
from tests.edge.server.pictured import FakePictures, seeing

MOST_BYTES = 100 << 20  # of memory for any of them; the largest would have 40 GB of pixels
STATUS = Path("/proc/self/status")
URL = "messages[0].content[0].image_url.url"


class Decoding(FakePictures):
    """Reads pictures as a model does."""

    def open(self, part: ImagePart) -> Any:
        from edge.runtime.vision.decode import open_picture

        assert part.path is None
        assert part.data is not None
        return open_picture(part.data)


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    pytest.importorskip("PIL")
    with served(seeing(scripted_llm(replies({})), Decoding())) as server:
        yield server


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *more: bytes, data: bytes = b"") -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"".join([b"\x89PNG\r\n\x1a\n", head, *more, chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b"")])


def small(kind: str) -> bytes:
    pillow: Any = pytest.importorskip("PIL.Image")
    found = io.BytesIO()
    pillow.new("RGB", (32, 32), "red").save(found, kind)
    return found.getvalue()


def growing(kind: bytes) -> bytes:
    """A PNG with half a megabyte beside its pixels that would be 120 MB."""
    return png(8, 8, chunk(kind, b"a\0\0" + zlib.compress(bytes(120 << 20), 1)))


def patched(kind: str, at: int, form: str, side: int) -> bytes:
    data = bytearray(small(kind))
    struct.pack_into(form, data, at, side, side)
    return bytes(data)


HOSTILE: dict[str, Callable[[], bytes]] = {
    "a wide PNG": lambda: png(200_000, 200_000, data=bytes(1 << 20)),
    "a PNG with more data than pixels": lambda: png(1, 0, data=bytes(1 << 20)),
    "a PNG with text that grows": lambda: growing(b"zTXt"),
    "a PNG with a profile that grows": lambda: growing(b"iCCP"),
    "a JPEG of 4 thousand million pixels": lambda: patched("JPEG", small("JPEG").index(b"\xff\xc0") + 5, ">HH", 65_500),
    "a GIF of 4 thousand million pixels": lambda: patched("GIF", 6, "<HH", 65_535),
    "a BMP of 4 thousand million pixels": lambda: patched("BMP", 18, "<ii", 60_000),
    "a cut PNG": lambda: small("PNG")[:60],
    "a cut JPEG": lambda: small("JPEG")[:200],
    "a cut WebP": lambda: small("WEBP")[:20],
    "a PDF": lambda: b"%PDF-1.7\n" + bytes(100),
    "an SVG with entities": lambda: b'<?xml version="1.0"?><!DOCTYPE s [<!ENTITY a "aaaa">]><svg>&a;</svg>',
    "PostScript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n",
    "HEIC": lambda: b"\0\0\0\x18ftypheic" + bytes(100),
    "an archive": lambda: b"PK\3\4" + bytes(100),
    "a script": lambda: b"#!/bin/sh\nid\n",
}


def asked(data: bytes) -> Json:
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]}


def highest() -> int:
    """Bytes that this process has had at once since the mark was taken back."""
    found = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())
    assert found is not None
    return int(found[1]) << 10


@pytest.mark.parametrize("kind", HOSTILE)
def test_it_is_refused_in_words_and_little_memory(kind: str, live: Live) -> None:
    body = asked(HOSTILE[kind]())
    mark = Path("/proc/self/clear_refs")
    if mark.exists():
        mark.write_text("5")
    before = highest() if mark.exists() else 0
    reply = live.post("/v1/chat/completions", body)
    assert (reply.status, reply.error["code"], reply.error["param"]) == (400, "invalid_value", URL), reply.error
    message = reply.error["message"]
    assert message.startswith(f"{URL}: the picture "), message
    assert not re.search(r"PIL|Traceback|/tmp|Error\(", message), message
    if mark.exists():
        assert highest() - before < MOST_BYTES
    assert live.chat("hello").status == 200
