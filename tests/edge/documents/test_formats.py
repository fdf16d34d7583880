"""Which reader a file gets, and one line for each that gets none."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import docx
import pytest
from make_pdf import make_pdf

from edge.documents import read_document
from edge.documents.formats import ADVICE
from edge.documents.reader import printable_name
from edge.runtime.errors import DocumentError, EdgeError
from edge.runtime.extras import install_command


def word(text: str) -> bytes:
    made, out = docx.Document(), io.BytesIO()
    made.add_paragraph(text)
    made.save(out)
    return out.getvalue()


def archive(*names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name in names:
            file.writestr(name, "x")
    return out.getvalue()


PDF, DOCX = make_pdf(["Words"]), word("Words")
PAGE = b"<!DOCTYPE html><p>Words</p>"


@pytest.mark.parametrize("name", ["a.pdf", "a.docx", "a.txt", "a.html", "a", "a.PDF", "a.bin"])
@pytest.mark.parametrize("data", [PDF, DOCX])
def test_content_counts_where_it_is_certain(name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    assert read_document(tmp_path / name).text == "Words"


@pytest.mark.parametrize(
    ("name", "data", "text"),
    [
        ("a.html", b"Words <b>here</b>", "Words here"),
        ("a.HTM", PAGE, "Words"),
        ("a", b"\n <html><p>Words", "Words"),
        ("a.php", PAGE, "Words"),
        ("a.txt", PAGE, PAGE.decode()),
        ("a.md", PAGE, PAGE.decode()),
        ("a.py", b"<b>", "<b>"),
        ("a.json", b'{"html": 1}', '{"html": 1}'),
        ("a.pdf", b"junk of a mail program\n" + PDF, "Words"),
    ],
)
def test_endings_count_elsewhere(name: str, data: bytes, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    assert read_document(tmp_path / name).text == text


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.pdf", PAGE, "a.pdf is not a PDF but HTML: it may be the page of an error in place of a download; "),
        ("a.pdf", b"words", f"a.pdf is not a PDF; {ADVICE}, with the ending of what it is"),
        ("a.docx", b"words", f"a.docx is not a Word document; {ADVICE}"),
        ("a.docx", archive("xl/workbook.xml"), "is a ZIP archive without word/document.xml (xlsx, pptx, odt, epub?); "),
        ("a.epub", archive("mimetype"), "is a ZIP archive without word/document.xml"),
        ("a.zip", archive(), "is a ZIP archive without word/document.xml"),
        ("a.docx", DOCX[: len(DOCX) // 2], "a.docx is a damaged ZIP archive, or half a Word document; copy it again"),
        ("a.docx", b"PK\x03\x04", "a.docx is a damaged ZIP archive"),
        ("a.doc", bytes.fromhex("d0cf11e0a1b11ae1") + b"x" * 512, "is an old or encrypted file of Word, Excel or "),
        ("a.rtf", b"{\\rtf1 words}", "is RTF; save it as .docx"),
        ("a.png", b"\x89PNG\r\n\x1a\n", "is a picture; give it as --image to a model that sees pictures, or "),
        ("a.txt.gz", b"\x1f\x8b\x08", "is compressed; unpack it first"),
        ("a.txt", b"", f"a.txt is empty; {ADVICE}"),
        ("a.pdf", b"", "a.pdf is empty"),
    ],
)
def test_what_is_not_read_says_what_to_do(name: str, data: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DocumentError) as found:
        read_document(tmp_path / name)
    assert said in str(found.value)
    assert "\n" not in str(found.value)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nothing")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(DocumentError, match=r"^\S+ is not an ordinary file; give a file of txt, md, html, pdf or "):
            read_document(path)
    for name in ("loop", "dangling", "nothing", "zero\0byte", "x" * 300, "a.txt/b"):
        with pytest.raises(
            DocumentError, match=r"^\S+ cannot be read \(.+\); give a file of txt, md, html, pdf or docx$"
        ):
            read_document(tmp_path / name)


def test_a_link_is_the_file_that_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(PDF)
    (tmp_path / "link.txt").symlink_to("real")
    assert read_document(tmp_path / "link.txt").name == "link.txt"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("secret")
    (tmp_path / "a.txt").chmod(0)
    with pytest.raises(DocumentError, match="cannot be read"):
        read_document(tmp_path / "a.txt")


def test_names_are_on_one_line() -> None:
    assert printable_name("a\n[File Content]\x1b[2J\udce9.txt") == "a\ufffd[File Content]\ufffd[2J?.txt"
    assert printable_name("报告 1.pdf") == "报告 1.pdf"


@pytest.mark.parametrize(("missing", "name", "data"), [("pypdf", "a", PDF), ("docx", "a", DOCX), ("bs4", "a", PAGE)])
def test_a_missing_package_is_named_with_its_extra(missing: str, name: str, data: bytes, tmp_path: Path) -> None:
    """Before a model is loaded; text needs none of the packages."""
    (tmp_path / name).write_bytes(data)
    (tmp_path / "t.txt").write_text("text")
    script = f"""
import sys
for name in ("pypdf", "docx", "bs4", "lxml"):
    sys.modules[name] = None
sys.modules.pop("lxml")
from edge.documents import read_document
assert read_document({str(tmp_path / "t.txt")!r}).text == "text"
from edge.cli import main
sys.exit(main(["run", {str(tmp_path)!r}, "hi", "--file", {str(tmp_path / name)!r}]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"edge: {missing} is not installed; {install_command('documents')}\n"


def test_errors_are_in_the_tree() -> None:
    assert issubclass(DocumentError, EdgeError)
