"""A file of a picture without what makes no pixels, so that a decoder meets nothing else.

In: a file's bytes and its format. Out: a `Bare` file: size, turn, and bytes that decode to the same pixels; or a
`Refusal`. Knows nothing about decoders.

Comments, profiles, thumbnails, text, EXIF and later frames are where a small file can cost a reader gigabytes or hours:
they are left out here, in one pass over the file, and EXIF is looked at for the one value that matters. What is left
bounds the decoder's work by the pixels, which are counted before any is decoded.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from edge.runtime.vision.bare_tiff import bare_tiff, orientation
from edge.runtime.vision.formats import SAVE_AS, Format, Refusal

COPY = "copy it again"
MAX_SCANS = 100  # of a JPEG, each of which goes over all pixels; progressive ones have about 10
MAX_SCANNED = 2_000_000_000  # pixels in all of these; 7 billion took 19 seconds without any content
_MAX_PIECES = 1_000_000  # chunks or blocks that are passed over
_MAX_SEGMENTS = 100_000  # of a JPEG, or parts of a WebP
_CUT_OFF = f"is cut off; {COPY}"


@dataclass(frozen=True, slots=True)
class Bare:
    """What a decoder gets, and what is known of it before."""

    data: bytes
    width: int  # as stored, not turned
    height: int
    turn: int = 1  # EXIF's orientation, 1 to 8
    more: str = ""  # what else the file has: "frames" or "pages"


def bare(data: bytes, kind: Format) -> Bare:
    """Return a file without what makes no pixels. Raises Refusal."""
    return _READERS[kind](data)


def _png(data: bytes) -> Bare:
    kept: dict[bytes, list[bytes]] = {b"IHDR": [], b"PLTE": [], b"IDAT": []}
    at, turn, more = 8, 1, ""
    for _ in range(_MAX_PIECES):
        length, name = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        end = at + 12 + length
        if end > len(data):
            raise Refusal(_CUT_OFF)
        if name in kept:
            if zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):
                raise Refusal(f"is damaged: a checksum does not fit; {COPY}")
            kept[name].append(data[at + 8 : end - 4])
        elif name == b"eXIf":
            turn = orientation(data[at + 8 : end - 4])
        elif name == b"acTL":
            more = "frames"
        elif name == b"IEND":
            break
        at = end
    else:
        raise Refusal(f"has more than {_MAX_PIECES:,} chunks; {SAVE_AS}")
    if len(kept[b"IHDR"]) != 1 or len(kept[b"IHDR"][0]) != 13 or len(kept[b"PLTE"]) > 1 or not kept[b"IDAT"]:
        raise Refusal(f"is damaged: a part is missing or occurs twice; {COPY}")
    header = kept[b"IHDR"][0]
    parts = [data[:8], *(_chunk(name, b"".join(found)) for name, found in kept.items() if found), _chunk(b"IEND", b"")]
    return Bare(b"".join(parts), int.from_bytes(header[:4]), int.from_bytes(header[4:8]), turn, more)


def _chunk(name: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4) + name + content + zlib.crc32(content, zlib.crc32(name)).to_bytes(4)


_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")  # but for those within coded data
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_END = 0xD9
_DECODED = _FRAMES | {0xC4, 0xCC, 0xDA, 0xDB, 0xDC, 0xDD, _END}
_ALONE = frozenset({0x01, 0xD8, _END})  # markers without a segment
_EXIF = b"Exif\0\0"


def _jpeg(data: bytes) -> Bare:
    kept, scans, exif = [data[:2]], 0, b""
    width = height = 0
    for coded, marker, segment in _segments(data):
        content = segment[4:]
        if scans:
            kept.append(coded)
        if marker == 0xE1 and content.startswith(_EXIF):
            exif = exif or content
        if marker in _FRAMES:
            if width:
                raise Refusal(f"is damaged: it begins twice; {COPY}")
            height, width = int.from_bytes(content[1:3]), int.from_bytes(content[3:5])
        scans += marker == 0xDA
        if scans > MAX_SCANS or scans * width * height > MAX_SCANNED:
            raise Refusal(f"is coded in {scans} scans or more, which takes long; {SAVE_AS}")
        if marker in _DECODED or _tells_colours(marker, content):
            kept.append(segment)
    if not width or not scans:
        raise Refusal(_CUT_OFF)
    return Bare(b"".join(kept), width, height, orientation(exif.removeprefix(_EXIF)))


def _segments(data: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    """Yield what stands before each marker, the marker, and its segment with it; 0 where the file ends without one."""
    at = 2
    for _ in range(_MAX_SEGMENTS):
        found = _MARKER.search(data, at)
        if found is None:
            yield data[at:], 0, b""
            return
        marker, begin = found[1][0], found.end()
        end = begin + (0 if marker in _ALONE else max(2, int.from_bytes(data[begin : begin + 2])))
        if end > len(data):
            raise Refusal(_CUT_OFF)
        yield data[at : found.start()], marker, b"\xff" + found[1] + data[begin:end]
        if marker == _END:
            return
        at = end
    raise Refusal(f"has more than {_MAX_SEGMENTS:,} segments; {SAVE_AS}")


def _tells_colours(marker: int, content: bytes) -> bool:
    """Whether a segment decides how components become colours."""
    return (marker == 0xE0 and content.startswith(b"JFIF\0")) or (marker == 0xEE and content.startswith(b"Adobe"))


def _gif(data: bytes) -> Bare:
    at = 13 + _palette_bytes(data[10:11])
    kept, control = [data[:at]], b""
    for _ in range(_MAX_PIECES):
        match data[at : at + 1]:
            case b"!":
                end = _behind_blocks(data, at + 2)
                if data[at + 1 : at + 3] == b"\xf9\x04":
                    control = data[at : at + 8]
                at = end
            case b",":
                break
            case b"" | b";":
                raise Refusal(_CUT_OFF)
            case _:
                at += 1
    else:
        raise Refusal(f"has more than {_MAX_PIECES:,} blocks before its picture; {SAVE_AS}")
    end = _behind_blocks(data, at + 11 + _palette_bytes(data[at + 9 : at + 10]))
    kept += [control, data[at:end], b";"]
    left, top, width, height, screen_width, screen_height = (
        int.from_bytes(data[place : place + 2], "little") for place in (at + 1, at + 3, at + 5, at + 7, 6, 8)
    )
    more = "frames" if data[end : end + 1] in (b"!", b",") and b"," in data[end:-1] else ""
    return Bare(b"".join(kept), max(screen_width, left + width), max(screen_height, top + height), 1, more)


def _palette_bytes(flags: bytes) -> int:
    return 3 << ((flags[0] & 7) + 1) if flags and flags[0] & 128 else 0


def _behind_blocks(data: bytes, at: int) -> int:
    """Where a series of blocks ends, each of which begins with its length; the end of the file if it is cut off."""
    for _ in range(_MAX_PIECES):
        if at >= len(data):
            return len(data)
        length = data[at]
        at += 1 + length
        if not length:
            return at
    raise Refusal(f"has more than {_MAX_PIECES:,} blocks; {SAVE_AS}")


def _webp(data: bytes) -> Bare:
    name, turn = data[12:16], 1
    if name == b"VP8X":
        width, height = (1 + int.from_bytes(data[place : place + 3], "little") for place in (24, 27))
    elif name == b"VP8L":
        packed = int.from_bytes(data[21:25], "little")
        width, height = 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF)
    elif name == b"VP8 ":
        width, height = (int.from_bytes(data[place : place + 2], "little") & 0x3FFF for place in (26, 28))
    else:
        raise Refusal(f"is damaged: its first part is none of WebP's; {COPY}")
    at, frames = 12, 0
    for _ in range(_MAX_SEGMENTS):
        name, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if not name:
            break
        if name == b"EXIF":
            turn = orientation(data[at + 8 : at + 8 + length].removeprefix(_EXIF))
        frames += name == b"ANMF"
        at += 8 + length + (length & 1)
    else:
        raise Refusal(f"has more than {_MAX_SEGMENTS:,} parts; {SAVE_AS}")
    return Bare(data, width, height, turn, "frames" if frames > 1 else "")


def _bmp(data: bytes) -> Bare:
    header = int.from_bytes(data[14:18], "little")
    if header == 12:
        width, height = (int.from_bytes(data[place : place + 2], "little") for place in (18, 20))
        return Bare(data, width, height)
    if int.from_bytes(data[30:34], "little") in (1, 2):
        raise Refusal(f"is a BMP that is compressed by run lengths, which is not read; {SAVE_AS}")
    width, height = (int.from_bytes(data[place : place + 4], "little", signed=True) for place in (18, 22))
    return Bare(data, abs(width), abs(height))


_READERS: Mapping[Format, Callable[[bytes], Bare]] = {
    "PNG": _png,
    "JPEG": _jpeg,
    "GIF": _gif,
    "WebP": _webp,
    "BMP": _bmp,
    "TIFF": lambda data: Bare(*bare_tiff(data)),
}
