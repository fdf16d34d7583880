"""PDF: text in every script, page after page, and one line for what cannot be read."""

from __future__ import annotations

import io
import logging
import time
import tracemalloc
from pathlib import Path

import pytest
from make_pdf import COLLECTIONS, SIMPLE, TO_UNICODE, make_pdf
from pypdf import PdfReader, PdfWriter

from edge.documents import read_document
from edge.documents.reader import open_document
from edge.runtime.errors import DocumentError
from edge.runtime.unicode import check_text

SCRIPTS = {
    "UniGB-UCS2-H": "你好，世界。人工智能",
    "GBK-EUC-H": "你好，世界。人工智能",
    "UniJIS-UCS2-H": "こんにちは、世界。漢字とカタカナ",
    "UniKS-UCS2-H": "안녕하세요 세계",
    "UniCNS-UCS2-H": "繁體中文，你好",
    SIMPLE: "Où est (le) \\ café? 50 % – “quoted”",
    TO_UNICODE: "你好，世界 🙂 здравствуй Ελλάδα naïve 日本語 한국어",
}


def saved(data: bytes, folder: Path, name: str = "it.pdf") -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def refused(data: bytes, folder: Path) -> str:
    with pytest.raises(DocumentError) as found:
        read_document(saved(data, folder))
    said = str(found.value)
    assert said.startswith("it.pdf ")
    assert "\n" not in said
    return said


def encrypted(password: str, algorithm: str, owner: str = "owner") -> bytes:
    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(make_pdf(["The secret is 4711."]))))
    writer.encrypt(password, owner, algorithm=algorithm)
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


@pytest.mark.parametrize("encoding", SCRIPTS)
def test_text_in_every_script(encoding: str, tmp_path: Path) -> None:
    assert set(COLLECTIONS) < set(SCRIPTS)
    pages = [f"{SCRIPTS[encoding]}\n{SCRIPTS[encoding][::-1]}", SCRIPTS[encoding]]
    document = read_document(saved(make_pdf(pages, encoding), tmp_path))
    assert document.text == "\n\n".join(pages)
    assert (document.name, document.pages, document.without_text) == ("it.pdf", 2, ())


def test_pages_without_text_are_noted(tmp_path: Path) -> None:
    document = read_document(saved(make_pdf([None, "One", "", "Two", None]), tmp_path))
    assert document.text == "One\n\nTwo"
    assert (document.pages, document.without_text) == (5, (1, 3, 5))


@pytest.mark.parametrize(("pages", "said"), [([None], "has 1 page and"), ([None] * 12, "has 12 pages and")])
def test_a_scan_says_that_it_is_one(pages: list[None], said: str, tmp_path: Path) -> None:
    assert refused(make_pdf(pages), tmp_path) == (
        f"it.pdf {said} no text: a scan, pictures, or damaged; recognize its text first, with ocrmypdf"
    )


def test_glyphs_and_odd_characters(tmp_path: Path) -> None:
    """What maps of fonts hold: ligatures, radicals for characters, halves of characters, zeros."""
    text = read_document(saved(make_pdf(["ﬁle ⼀⼁ a\0b\x1bc \ud83d d"]), tmp_path)).text
    assert text == "file 一丨 abc \ufffd d"
    check_text(text, "it")


@pytest.mark.parametrize("algorithm", ["RC4-40", "RC4-128", "AES-128", "AES-256"])
def test_encrypted_files(algorithm: str, tmp_path: Path) -> None:
    """One that anybody may open is read; a password is asked for by an error."""
    assert read_document(saved(encrypted("", algorithm), tmp_path)).text == "The secret is 4711."
    assert refused(encrypted("pass", algorithm), tmp_path) == (
        "it.pdf is encrypted; open it with its password and save or print it without one"
    )


def test_aes_without_cryptography(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is no dependency of pypdf's."""
    from pypdf import _encryption
    from pypdf.errors import DependencyError

    def missing(*_: object) -> bytes:
        raise DependencyError("cryptography>=3.1 is required for AES algorithm")

    data = encrypted("", "AES-256")
    for name in ("aes_cbc_encrypt", "aes_cbc_decrypt", "aes_ecb_encrypt", "aes_ecb_decrypt"):
        monkeypatch.setattr(_encryption, name, missing)
    assert refused(data, tmp_path).startswith("it.pdf is encrypted; ")


def test_damaged_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = make_pdf(["Some words.", "And more."])
    for size in (5, 9, 100, len(whole) // 2):
        assert "it.pdf is damaged (" in refused(whole[:size], tmp_path)
    assert "no text: a scan, pictures, or damaged" in refused(make_pdf(["words"]).replace(b"x\x9c", b"zz"), tmp_path)
    assert "damaged" in refused(whole.replace(b"/Type /Pages", b"/Type /Nopes").replace(b"/Kids", b"/Kins"), tmp_path)
    assert capfd.readouterr().err == ""


def test_a_file_that_can_be_mended_is_read_in_silence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = make_pdf(["Some words."])
    mended = whole[: whole.index(b"xref")]
    assert mended != whole
    noted: list[logging.LogRecord] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            noted.append(record)

    assert read_document(saved(mended + whole[whole.index(b"trailer") :], tmp_path)).text == "Some words."
    assert capfd.readouterr().err == ""
    handler = Handler()
    logging.getLogger().addHandler(handler)  # a program that wants to know still hears of it
    try:
        read_document(saved(mended + whole[whole.index(b"trailer") :], tmp_path))
    finally:
        logging.getLogger().removeHandler(handler)
    assert noted


def test_a_page_that_is_damaged_is_one_without_text(tmp_path: Path) -> None:
    data = make_pdf(["One", "Two", "Three"])
    at = data.rindex(b"x\x9c")  # of the last page's content
    document = read_document(saved(data[:at] + b"zz" + data[at + 2 :], tmp_path))
    assert (document.text, document.without_text) == ("One\n\nTwo", (3,))


def test_a_pdf_that_unpacks_to_gigabytes(tmp_path: Path) -> None:
    """100 kB of zeros: pypdf ends its unpacking."""
    import zlib

    packer = zlib.compressobj(9)
    bomb = b"".join(packer.compress(b" " * 10_000_000) for _ in range(30)) + packer.flush()
    data = make_pdf(["words"])
    begin = data.rindex(b"<< /Length ")
    end = data.index(b"endobj", begin)
    data = (
        data[:begin]
        + b"<< /Length %d /Filter /FlateDecode >>\nstream\n%s\nendstream\n" % (len(bomb), bomb)
        + data[end:]
    )
    tracemalloc.start()
    said = refused(data, tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "none of its 1 page can be read" in said
    assert peak < 250_000_000


def test_five_thousand_pages_are_refused_at_once(tmp_path: Path) -> None:
    """After a few of them, and without the memory that all would take."""
    page = "\n".join(["Words in a line of a long report, over and over again."] * 50)
    path = saved(make_pdf([page] * 5000, SIMPLE), tmp_path)
    read_document(saved(make_pdf([page]), tmp_path, "small.pdf"))  # imports pypdf
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(
        DocumentError, match=r"^it\.pdf is too long: [\d,]+ characters with 4 of its 5,000 pages read; "
    ):
        read_document(path, fits=lambda characters: characters < 10_000)
    seconds, peak = time.process_time() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 20  # under a tracer, on a machine that does other things
    assert peak < 100_000_000


def test_pages_are_read_one_by_one(tmp_path: Path) -> None:
    """One ahead of the part that is given."""
    with open_document(saved(make_pdf([f"Page {i}" for i in range(9)]), tmp_path)) as source:
        assert source.pages == 9
        assert [(part.text, part.read) for part in source.parts][:2] == [("Page 0\n\n", 1), ("Page 1\n\n", 2)]
