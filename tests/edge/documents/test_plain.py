"""Files of text are as they are, in every encoding that says what it is."""

from __future__ import annotations

import codecs
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.documents import read_document
from edge.documents.plain import PART_BYTES
from edge.documents.reader import open_document
from edge.runtime.errors import DocumentError

MARKED = [
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (b"", "utf-8"),
]
TEXT = "# Öl & Gas\n\n你好，世界 🙂\tعربي\n<b>not a tag</b> <|user|>\n\x1b[2J\x07 the end  "


@pytest.mark.parametrize(("mark", "encoding"), MARKED)
@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.py", "README"])
def test_text_is_as_it_is(mark: bytes, encoding: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(mark + TEXT.encode(encoding))
    document = read_document(path)
    assert (document.name, document.text, document.pages) == (name, TEXT, None)


# Without a zero, a surrogate, or what a file may not begin with because it means another format.
ANY = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(
    lambda text: text[0] != "\ufeff"
)


@given(ANY, st.sampled_from(MARKED), st.integers(1, 9))
def test_parts_are_the_text_wherever_they_are_cut(text: str, how: tuple[bytes, str], times: int) -> None:
    """Characters and line ends that a part begins and the next one ends, too."""
    mark, encoding = how
    text = text * times
    data = mark + text.encode(encoding)

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(4 if size == 4 else 3)

    from edge.documents.plain import _parts

    whole = "".join(part.text for part in _parts(Slow(data), "x"))
    assert whole == io.StringIO(text, newline=None).read()


def test_long_texts_come_in_parts_that_end_with_lines(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("One line of words.\n" * 20_000, encoding="utf-8")
    with open_document(path) as source:
        parts = list(source.parts)
    assert len(parts) > 3
    assert all(part.text.endswith("\n") for part in parts)
    assert "".join(part.text for part in parts) == path.read_text(encoding="utf-8")
    assert parts[-1].read == source.total == path.stat().st_size


def test_a_long_file_is_not_read_further_than_it_fits(tmp_path: Path) -> None:
    """A sparse file of a terabyte, whose first part alone is ever read."""
    path = tmp_path / "huge.txt"
    with path.open("wb") as file:
        file.write(b"words " * PART_BYTES)
        file.truncate(10**12)
    with pytest.raises(
        DocumentError, match=r"^huge\.txt is too long: 65,540 characters with 65,540 of its 1,000,000,0"
    ):
        read_document(path, fits=lambda characters: characters < 1000)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"caf\xe9 au lait", "a.txt is not UTF-8 text: byte 0xE9 at position 3; convert it to UTF-8"),
        (b"x" * PART_BYTES * 2 + b"\xff", f"byte 0xFF at position {PART_BYTES * 2:,}"),
        (b"x" * (PART_BYTES + 3) + b"\xe4\xbd!", f"byte 0xE4 at position {PART_BYTES + 3:,}"),
        (b"ends in half a character \xe4\xbd", "byte 0xE4 at position 25"),
        (codecs.BOM_UTF16_LE + b"a\0b", "is not UTF-16 text: byte 0x62 at position 4"),
        (codecs.BOM_UTF16_LE + b"a\0\x00\xd8b\0", "is not UTF-16 text: byte 0x00 at position 4"),
        ("hello".encode("utf-16-le"), "has zero bytes, as programs, pictures and UTF-16 without a byte-order mark do"),
        (b"\x7fELF\x02\x01\x01\0\0", "has zero bytes"),
    ],
)
def test_bytes_that_are_not_text_are_one_error(data: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    with pytest.raises(DocumentError) as found:
        read_document(path)
    assert said in str(found.value)
