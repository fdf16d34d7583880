"""Word: what is shown once all changes are accepted, in the order of the document."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import docx
import pytest

from edge.documents import read_document
from edge.documents.word import MAIN_PART, MAX_BYTES, MAX_XML_BYTES
from edge.runtime.errors import DocumentError

W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"


def saved(folder: Path, body: str | None = None, changes: Mapping[str, bytes] | None = None) -> Path:
    """A document with this XML in its body, or with other parts by their names."""
    made = io.BytesIO()
    docx.Document().save(made)
    path = folder / "it.docx"
    with zipfile.ZipFile(made) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            data = old.read(entry)
            if entry.filename == "word/document.xml" and body is not None:
                data = f'<w:document xmlns:w="{W}"><w:body>{body}</w:body></w:document>'.encode()
            new.writestr(entry.filename, (changes or {}).get(entry.filename, data))
    return path


def run(text: str) -> str:
    return f'<w:r><w:t xml:space="preserve">{text}</w:t></w:r>'


def paragraph(*content: str) -> str:
    return f"<w:p><w:pPr><w:jc w:val='left'/></w:pPr>{''.join(content)}</w:p>"


def test_a_document_as_python_docx_writes_it(tmp_path: Path) -> None:
    made = docx.Document()
    made.add_heading("Title", 1)
    made.add_paragraph("First 你好 🙂.")
    table = made.add_table(2, 2)
    for number, cell in enumerate(cell for row in table.rows for cell in row.cells):
        cell.text = f"cell {number}\nsecond line"
    table.cell(1, 1).add_table(1, 2).cell(0, 1).text = "inner"
    made.add_paragraph("")
    made.add_paragraph("After the table,\twith a tab\nand a line.")
    made.save(str(tmp_path / "report.docx"))
    document = read_document(tmp_path / "report.docx")
    assert document.text == (
        "Title\n\nFirst 你好 🙂.\n\ncell 0 second line | cell 1 second line\ncell 2 second line | cell 3 second line "
        "| inner\n\nAfter the table,\twith a tab\nand a line."
    )
    assert (document.name, document.pages) == ("report.docx", None)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (paragraph(run("kept "), f"<w:ins>{run('new')}</w:ins>", "<w:del><w:r><w:t>old</w:t></w:r></w:del>"),
         "kept new"),
        (paragraph(f"<w:moveFrom>{run('gone')}</w:moveFrom><w:moveTo>{run('here')}</w:moveTo>"), "here"),
        (paragraph(f"<w:hyperlink>{run('a link')}</w:hyperlink>", run(" after")), "a link after"),
        (f"<w:sdt><w:sdtPr/><w:sdtContent>{paragraph(run('in a control'))}</w:sdtContent></w:sdt>", "in a control"),
        (paragraph(f"<w:sdt><w:sdtContent>{run('inline')}</w:sdtContent></w:sdt>"), "inline"),
        (f"<w:tbl><w:sdt><w:sdtContent><w:tr><w:tc>{paragraph(run('a'))}</w:tc><w:tc>{paragraph(run('b'))}</w:tc></w:tr>"
         "</w:sdtContent></w:sdt></w:tbl>", "a | b"),
        (paragraph("<w:r><w:t>a</w:t><w:br/><w:t>b</w:t><w:tab/><w:t>c</w:t><w:noBreakHyphen/><w:t>d</w:t></w:r>"),
         "a\nb\tc-d"),
        (paragraph(run("around"), f"<w:r><w:pict><w:box>{paragraph(run('box'))}</w:box></w:pict></w:r>"),
         "around\nbox"),
        (paragraph(run("one")) + "<!-- no --><?odd thing?>" + paragraph() + paragraph(run("two")), "one\n\ntwo"),
    ],
)  # fmt: skip
def test_what_is_shown(body: str, text: str, tmp_path: Path) -> None:
    assert read_document(saved(tmp_path, body)).text == text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({MAIN_PART: b"<w:document"}, "it.docx is damaged ("),
        ({MAIN_PART: b""}, "it.docx is damaged ("),
        ({MAIN_PART: f"<w:document xmlns:w='{W}'/>".encode()}, "it.docx has no text; pictures in it are not read"),
        ({MAIN_PART: f"<w:document xmlns:w='{W}'>{'<w:p>' * 5000}".encode()}, "it.docx is damaged ("),
        (
            {MAIN_PART: b"<w:document xmlns:w='http://purl.oclc.org/ooxml/wordprocessingml/main'/>"},
            "is Strict Open XML",
        ),
        ({"_rels/.rels": b"<Relationships/>"}, "it.docx is damaged ("),
        ({"[Content_Types].xml": b"no"}, "it.docx is damaged ("),
    ],
)
def test_documents_that_are_none(changes: dict[str, bytes], said: str, tmp_path: Path) -> None:
    with pytest.raises(DocumentError) as found:
        read_document(saved(tmp_path, changes=changes))
    assert said in str(found.value)
    assert "\n" not in str(found.value)


def test_entities_are_not_expanded(tmp_path: Path) -> None:
    """Neither a billion laughs nor a file of this machine."""
    secret = tmp_path / "secret"
    secret.write_text("4711")
    lol = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10))
    xml = (
        f'<!DOCTYPE w:document [<!ENTITY l0 "lol">{lol}<!ENTITY f SYSTEM "{secret.as_uri()}">]>'
        f"<w:document xmlns:w='{W}'><w:body>{paragraph(run('start &l9; &f; end'))}</w:body></w:document>"
    )
    try:
        text = read_document(saved(tmp_path, changes={MAIN_PART: xml.encode()})).text
    except DocumentError:
        return
    assert "4711" not in text
    assert len(text) < 1000


@pytest.mark.parametrize(("name", "most"), [("word/document.xml", MAX_XML_BYTES), ("word/media/x.png", MAX_BYTES)])
def test_an_archive_that_unpacks_to_gigabytes(name: str, most: int, tmp_path: Path) -> None:
    path = tmp_path / "bomb.docx"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        if name != "word/document.xml":
            archive.writestr("word/document.xml", "<w:document/>")
        with archive.open(name, "w", force_zip64=True) as file:
            for _ in range(most // 10_000_000 + 1):
                file.write(bytes(10_000_000))
    assert path.stat().st_size < most / 100
    with pytest.raises(DocumentError, match=rf"^bomb\.docx unpacks to [\d,]+ bytes, expected at most {most:,}; "):
        read_document(path)


def test_an_archive_that_lies_about_its_size(tmp_path: Path) -> None:
    """What is unpacked is no more than what was said."""
    path = saved(tmp_path, paragraph(run("x" * 10_000_000)))
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02", 0, data.rindex(b"word/document.xml"))
    data[at + 24 : at + 28] = (200).to_bytes(4, "little")  # the unpacked size in the directory
    path.write_bytes(data)
    with pytest.raises(DocumentError, match=r"^it\.docx is damaged \("):
        read_document(path)
