"""What kind of picture a file is, by its first bytes: one that is read, or one that is refused with what to do instead.

In: a file's bytes. Out: the name of a format, or a `Refusal`. Knows nothing about what follows the first bytes.
"""

from __future__ import annotations

import re
from typing import Literal

Format = Literal["PNG", "JPEG", "WebP", "GIF", "BMP", "TIFF"]
ADVICE = "give a PNG, JPEG, WebP, GIF, BMP or TIFF file"
SAVE_AS = "save it as PNG or JPEG"


class Refusal(Exception):
    """Why a file is not read, in words that follow its name."""


_READ: tuple[tuple[bytes, Format], ...] = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)
_BRANDS = {  # of the boxes that HEIF's family begins with
    b"avif": "AVIF",
    b"avis": "AVIF",
    b"crx ": "a camera's raw picture",
    b"heic": "HEIC",
    b"heix": "HEIC",
    b"heim": "HEIC",
    b"heis": "HEIC",
    b"hevc": "HEIC",
    b"hevx": "HEIC",
    b"mif1": "HEIF",
    b"msf1": "HEIF",
}
_PAGES = "is a PDF; turn the page into PNG, as with `pdftoppm -png`, or give the file as a document"
_NOT_READ = (
    (b"%PDF-", _PAGES),
    (b"\0\0\0\x0cjP  \r\n\x87\n", f"is JPEG 2000, which is not read; {SAVE_AS}"),
    (b"\xff\x4f\xff\x51", f"is JPEG 2000, which is not read; {SAVE_AS}"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", f"is JPEG XL, which is not read; {SAVE_AS}"),
    (b"\xff\x0a", f"is JPEG XL, which is not read; {SAVE_AS}"),
    (b"8BPS", f"is a Photoshop document, which is not read; {SAVE_AS}"),
    (b"%!PS", f"is PostScript, which is not read; {SAVE_AS}"),
    (b"\0\0\x01\0", f"is an icon file, which is not read; {SAVE_AS}"),
    (b"qoif", f"is QOI, which is not read; {SAVE_AS}"),
    (b"PK\x03\x04", "is an archive or an office document; give the picture that is in it"),
    (b"\x1f\x8b", "is compressed; unpack it first"),
)
_SVG = re.compile(rb"<svg[\s>]")
_MARKUP = re.compile(rb"(?:\xef\xbb\xbf)?\s*<")
_HTML = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype\s+html|html)[\s>]", re.IGNORECASE)
_HEAD_BYTES = 2048


def format_of(data: bytes) -> Format:
    """Return the format of a file. Raises Refusal for those that are not read."""
    head = data[:_HEAD_BYTES]
    if not head.strip(b"\0"):
        raise Refusal("is empty; copy it again" if not head else f"begins with zeros alone; {ADVICE}")
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WebP"
    for begin, known in _READ:
        if head.startswith(begin):
            return known
    if head[4:8] == b"ftyp":
        brand = _BRANDS.get(head[8:12])
        raise Refusal(f"is {brand}, which is not read; {SAVE_AS}" if brand else f"is a video or sound; {ADVICE}")
    for begin, problem in _NOT_READ:
        if head.startswith(begin):
            raise Refusal(problem)
    if _HTML.match(head):
        raise Refusal(f"is HTML: it may be the page of an error in place of a download; {ADVICE}")
    if _MARKUP.match(head) and _SVG.search(head):
        raise Refusal("is SVG, a drawing without pixels; turn it into PNG, as with `rsvg-convert`")
    raise Refusal(f"is {'text' if _is_text(head) else 'no picture of a format that is read'}; {ADVICE}")


def _is_text(head: bytes) -> bool:
    return not any(byte < 32 and byte not in b"\t\n\f\r\x1b" for byte in head)
