"""Small PDF files, written by hand: pages of text in any script, in the ways that programs write it, and scans.

In: lines of text for each page, or None for a picture. Out: the bytes of a PDF 1.7 with compressed contents. Fonts are
named and not embedded: enough to read the text, and not to print it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

LINE = 14  # points from line to line
TOP = 780
SIMPLE = "WinAnsi"  # one byte a letter, as Latin text is written
TO_UNICODE = "Identity-H"  # numbers of glyphs, with a map to Unicode: what word processors and browsers write
COLLECTIONS = {  # predefined maps, without one to Unicode -> collection of glyphs, and the encoding of their text
    "UniGB-UCS2-H": ("GB1", "utf-16-be"),
    "GBK-EUC-H": ("GB1", "gbk"),
    "UniJIS-UCS2-H": ("Japan1", "utf-16-be"),
    "UniKS-UCS2-H": ("Korea1", "utf-16-be"),
    "UniCNS-UCS2-H": ("CNS1", "utf-16-be"),
}
_PICTURE = b"q 500 0 0 700 50 50 cm BI /W 1 /H 1 /CS /G /BPC 8 ID \x80 EI Q"


@dataclass(frozen=True)
class _Font:
    """How text becomes bytes. glyphs: character -> number, for fonts whose numbers mean nothing."""

    encoding: str
    glyphs: dict[str, int]

    def show(self, line: str) -> bytes:
        if self.encoding == SIMPLE:
            escaped = line.encode("cp1252").replace(b"\\", rb"\\").replace(b"(", rb"\(").replace(b")", rb"\)")
            return b"(" + escaped + b") Tj T*"
        if self.encoding == TO_UNICODE:
            data = b"".join(self.glyphs[c].to_bytes(2, "big") for c in line)
        else:
            data = line.encode(COLLECTIONS[self.encoding][1])
        return b"<" + data.hex().encode() + b"> Tj T*"

    def objects(self, first: int) -> Iterator[bytes]:
        """Yield the font, and the objects that it refers to by the numbers after `first`."""
        if self.encoding == SIMPLE:
            yield b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>"
            return
        collection = COLLECTIONS.get(self.encoding, ("Identity", ""))[0]
        to_unicode = f" /ToUnicode {first + 2} 0 R" if self.encoding == TO_UNICODE else ""
        yield (
            f"<< /Type /Font /Subtype /Type0 /BaseFont /Song /Encoding /{self.encoding} "
            f"/DescendantFonts [{first + 1} 0 R]{to_unicode} >>"
        ).encode()
        yield (
            "<< /Type /Font /Subtype /CIDFontType2 /BaseFont /Song /DW 1000 "
            f"/CIDSystemInfo << /Registry (Adobe) /Ordering ({collection}) /Supplement 0 >> >>"
        ).encode()
        if self.encoding == TO_UNICODE:
            yield _stream(self._map().encode())

    def _map(self) -> str:
        pairs = [
            f"<{number:04X}> <{c.encode('utf-16-be', 'surrogatepass').hex()}>" for c, number in self.glyphs.items()
        ]
        blocks = [pairs[i : i + 100] for i in range(0, len(pairs), 100)]
        ranges = "\n".join(f"{len(b)} beginbfchar\n" + "\n".join(b) + "\nendbfchar" for b in blocks)
        return (
            "/CIDInit /ProcSet findresource begin 12 dict begin begincmap /CMapName /Adobe-Identity-UCS def\n"
            f"1 begincodespacerange <0000> <FFFF> endcodespacerange\n{ranges}\nendcmap end end"
        )


def make_pdf(pages: Sequence[str | None], encoding: str = TO_UNICODE) -> bytes:
    """Return a PDF with a page for each text, whose lines stay lines; None is a page with a picture alone."""
    characters = sorted({c for page in pages if page for c in page if c != "\n"})
    font = _Font(encoding, {c: number for number, c in enumerate(characters, 3)})
    fonts = list(font.objects(3))
    begin = 3 + len(fonts)  # two objects for each page
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Count {len(pages)} /Kids [{' '.join(f'{begin + 2 * i} 0 R' for i in range(len(pages)))}] >>"
        .encode(),
        *fonts,
    ]  # fmt: skip
    for i, page in enumerate(pages):
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents {begin + 2 * i + 1} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>".encode()
        )
        shown = b"\n".join(map(font.show, (page or "").split("\n")))
        text = f"BT /F1 10 Tf {LINE} TL 50 {TOP} Td\n".encode() + shown + b"\nET"
        objects.append(_stream(_PICTURE if page is None else text))
    return _file(objects)


def _stream(data: bytes) -> bytes:
    packed = zlib.compress(data)
    return b"<< /Length %d /Filter /FlateDecode >>\nstream\n%s\nendstream" % (len(packed), packed)


def _file(objects: Sequence[bytes]) -> bytes:
    """Return objects 1, 2, ... with the table of where they are."""
    out, places = bytearray(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n"), []
    for number, content in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    count, begin = len(objects) + 1, len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n%s" % (count, table)
    out += b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (count, begin)
    return bytes(out)
