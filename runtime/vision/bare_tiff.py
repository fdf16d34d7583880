"""TIFF's directories, which EXIF is made of as well: a file with one small directory, and how a picture is turned.

In: bytes. Out: the same bytes with a directory of what makes pixels alone; or a `Refusal`. Knows nothing about other
formats.

Each of a directory's up to 65,535 values may claim all of a file, and directories may lead to each other. So they are
not read by a library before what makes no pixels is out of them.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from edge.runtime.vision.formats import SAVE_AS, Refusal

_WIDTH, _HEIGHT, _COMPRESSION, _ORIENTATION, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 259, 274, 322, 323
_KEPT = frozenset(
    (
        *(_WIDTH, _HEIGHT, 258, _COMPRESSION, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320),
        *(_TILE_WIDTH, _TILE_HEIGHT, 324, 325, 332, 338, 339, 347, 529, 530, 531, 532),
    )
)
_COMPRESSIONS = (1, 2, 3, 4, 5, 7, 8, 32773, 32946)  # none, fax, LZW, JPEG, Deflate, PackBits
_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 16: 8}  # of one value, by type
_MAX_VALUES = 1_000_000  # of one entry: places of strips, above all
_MAX_TILE = 1 << 24  # pixels; tiles have 256 or 512 on a side


class _Entry(NamedTuple):
    """One line of a directory."""

    tag: int
    kind: int
    values: int  # how many
    raw: bytes  # the whole line
    number: int  # the first value, where it is a whole number in the line itself; else where values are


class _Directory(NamedTuple):
    at: int  # where it begins in the file
    head: int  # bytes of the number of entries
    entries: tuple[_Entry, ...]
    following: int  # where the next directory is; 0: there is none
    order: Literal["little", "big"]


def orientation(exif: bytes) -> int:
    """Return EXIF's orientation, 1 to 8; 1 (not turned) if there is none that can be understood."""
    entries = _directory(exif).entries if exif[:2] in (b"II", b"MM") else ()
    found = next((entry.number for entry in entries if entry.tag == _ORIENTATION), 1)
    return found if 1 <= found <= 8 else 1


def bare_tiff(data: bytes) -> tuple[bytes, int, int, int, str]:
    """Return a file with its first page alone, then width, height, orientation, and "pages" if it had more."""
    found = _directory(data)
    numbers = {entry.tag: entry.number for entry in reversed(found.entries)}
    if numbers.get(_COMPRESSION, 1) not in _COMPRESSIONS:
        raise Refusal(f"is a TIFF of an uncommon compression ({numbers[_COMPRESSION]}), which is not read; {SAVE_AS}")
    if numbers.get(_TILE_WIDTH, 0) * numbers.get(_TILE_HEIGHT, 0) > _MAX_TILE:
        raise Refusal(f"is a TIFF with tiles of more than {_MAX_TILE:,} pixels, which is not read; {SAVE_AS}")
    kept = [entry for entry in found.entries if entry.tag in _KEPT]
    if any(entry.values > _MAX_VALUES for entry in kept):
        raise Refusal(f"is a TIFF with a list of more than {_MAX_VALUES:,} values, which is not read; {SAVE_AS}")
    wide = 8 if found.head == 8 else 4
    written = len(kept).to_bytes(found.head, found.order) + b"".join(entry.raw for entry in kept) + bytes(wide)
    turn = numbers.get(_ORIENTATION, 1)
    return (
        data[: found.at] + written + data[found.at + len(written) :],
        numbers.get(_WIDTH, 0),
        numbers.get(_HEIGHT, 0),
        turn if 1 <= turn <= 8 else 1,
        "pages" if found.following else "",
    )


def _directory(data: bytes) -> _Directory:
    """Return the first directory, as far as it is there."""
    order: Literal["little", "big"] = "little" if data.startswith(b"II") else "big"

    def number(begin: int, size: int) -> int:
        return int.from_bytes(data[begin : begin + size], order)

    is_big = number(2, 2) == 43
    at = number(8, 8) if is_big else number(4, 4)
    head, line, word = (8, 20, 8) if is_big else (2, 12, 4)
    entries = []
    begin = at + head
    for _ in range(min(number(at, head), 65_535)):
        if begin + line > len(data):
            break
        tag, kind, values = number(begin, 2), number(begin + 2, 2), number(begin + 4, word)
        size = _BYTES.get(kind, 0)
        first = number(begin + 4 + word, size if kind in (1, 3, 4, 16) and size * values <= word else word)
        entries.append(_Entry(tag, kind, values, data[begin : begin + line], first))
        begin += line
    return _Directory(at, head, tuple(entries), number(begin, word), order)
