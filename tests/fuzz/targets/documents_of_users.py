"""Documents for `--file`: text, HTML, PDF and Word, and what looks like one and is another."""

from __future__ import annotations

import io
import zipfile
from functools import cache, partial
from pathlib import Path

import docx
from make_pdf import SIMPLE, TO_UNICODE, make_pdf

from edge.documents import read_document
from edge.runtime.unicode import check_text
from tests.fuzz.target import Target

_PAGE = """<?xml version="1.0"?><!doctype html><html><head><meta charset="utf-8"><title>A &amp; b</title>
<style>p{}</style></head><body><h1>One</h1><p>Words <b>in</b> 你好<br>lines</p><ul><li>a<li>b<ol start="3"><li>c</ol>
<table><caption>t</caption><tr><th>A<th>B<tr><td>1<td><p>2</p></table><pre> x
  y</pre><!-- no --><![if !x]><script>if (a < b) {}</script><ruby>漢<rt>かん</rt></ruby><img alt="z"></body></html>"""
_PDF_WORDS = (
    b"/Kids", b"/Parent", b"/Count", b"/Length", b"/Filter", b"/LZWDecode", b"/ASCII85Decode", b"/RunLengthDecode",
    b"/Encrypt", b"/ToUnicode", b"/Contents", b"/Type", b"/XObject", b"/ObjStm", b"/Prev", b"2 0 R", b"1 0 R",
    b"endobj", b"stream", b"BT", b"ET", b"Tj", b"Do", b"cm", b"null", b"<<", b">>", b"[", b"-1", b"99999999999",
)  # fmt: skip
_HTML_WORDS = (b"<td>", b"</td>", b"<tr>", b"<table>", b"<li>", b"<pre>", b"<!--", b"<![", b"<?", b"&#", b"</", b"<p")
_XML_WORDS = (
    b"<w:p>",
    b"</w:p>",
    b"<w:tbl>",
    b"<w:tc>",
    b"<w:t>",
    b"<w:sdt>",
    b"<!DOCTYPE a [<!ENTITY b 'c'>]>",
    b"&b;",
)


def _pdfs(_folder: Path) -> list[bytes]:
    plain = make_pdf(["Two words\nin lines.", None], SIMPLE)
    # What is compressed would only change into what is not: a stream that is none is more telling.
    open_stream = b"<< /Length 30 >>\nstream\nBT /F1 9 Tf (words) Tj ET     \nendstream"
    begin = plain.index(b"<< /Length")
    end = plain.index(b"endobj", begin)
    return [make_pdf(["你好\nABC", "two"], TO_UNICODE), plain[:begin] + open_stream + b"\n" + plain[end:]]


@cache
def _word() -> bytes:
    made, out = docx.Document(), io.BytesIO()
    made.add_paragraph("Some 你好\twords.")
    made.add_table(2, 2).cell(0, 0).text = "cell"
    made.save(out)
    return out.getvalue()


def _xml(_folder: Path) -> list[bytes]:
    with zipfile.ZipFile(io.BytesIO(_word())) as archive:
        return [archive.read("word/document.xml")]


def _read(raw: bytes, folder: Path, name: str) -> str:
    path = folder / name
    path.write_bytes(raw)
    return check_text(read_document(path).text, "the document")


def _read_xml(raw: bytes, folder: Path) -> str:
    """A Word document around its main part: what is compressed is seldom changed into anything that opens."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(_word())) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            new.writestr(entry, raw if entry.filename == "word/document.xml" else old.read(entry))
    return _read(out.getvalue(), folder, "it.docx")


_ZIP_WORDS = (b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06")
TARGETS = (
    Target("document-docx", lambda _: [_word()], partial(_read, name="it.docx"), "bytes", _ZIP_WORDS),
    Target("document-docx-xml", _xml, _read_xml, "text", _XML_WORDS),
    Target("document-html", lambda _: [_PAGE.encode()], partial(_read, name="it.html"), "text", _HTML_WORDS),
    Target("document-pdf", _pdfs, partial(_read, name="it.pdf"), "bytes", _PDF_WORDS),
    Target("document-text", lambda _: ["Öl, 你好.\r\n".encode()], partial(_read, name="it"), "text"),
)
