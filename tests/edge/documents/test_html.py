"""What a reader of a page sees is its text."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.documents import read_document
from edge.documents.html import MAX_BYTES, page_text
from edge.documents.reader import open_document
from edge.runtime.errors import DocumentError
from edge.runtime.unicode import check_text


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("<title>A  page</title><h1>A <i>b</i></h1><p>One\n two.<p>Three.", "A page\n\n# A b\n\nOne two.\n\nThree."),
        ("a<script>x = '<p>no</p>'</script>b<style>p {}</style>c<template>no</template><!-- no -->d", "abcd"),
        ("<p hidden>no</p><svg><text>no</text></svg>yes<noscript>no</noscript>", "yes"),
        ("<div>a<div>b</div>c<br>d</div>e", "a\nb\nc\nd\ne"),
        ("<ul><li>one<li>two<ul><li>in</ul></ul>after", "- one\n- two\n  - in\n\nafter"),
        ("<ol start=9><li><p>nine</p></li><li></li><li>eleven</ol>", "9. nine\n\n11. eleven"),
        ("<table><tr><th>A<th>B<tr><td>1<td><p>2</p><p>3</p></table>x", "A | B\n1 | 2 3\n\nx"),
        ("<table><tr><td>menu<td><table><tr><td>1<td>2</table></table>", "menu\n\n1 | 2"),
        ("<pre>\ndef f():\n    <b>return</b>  1\n\n\n  x</pre>y", "def f():\n    return  1\n\n\n  x\n\ny"),
        ("<pre><b>a</b>\n<b>b</b>\n  <i>c</i></pre>", "a\nb\n  c"),
        ("&lt;|user|&gt; &amp; &nbsp; &#x4F60;&#0;&#xD800;", "<|user|> & 你��"),
        ("<ruby>漢字<rp>(</rp><rt>かんじ</rt><rp>)</rp></ruby>です", "漢字です"),
        ('<img src="http://192.0.2.1/x.png" alt="A cat"> sits', "A cat sits"),
        ('<?xml version="1.0"?><feed><title>Feed</title><entry>One</entry></feed>', "Feed\n\nOne"),
        ("<![if !vml]>a<![endif]><![CDATA[x]]><![odd]>b <p", "ab"),
        ("a < b", "a < b"),
        ("plain words", "plain words"),
        ("</p></table></ul></pre></li></td>x<td>y<li>z", "x\ny\n- z"),
    ],
)  # fmt: skip
def test_text_of_pages(markup: str, text: str) -> None:
    assert page_text(markup, "page") == text


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ('<meta charset="gb2312"><p>你好'.encode("gbk"), "你好"),
        ('<meta http-equiv="Content-Type" content="text/html; charset=Shift_JIS"><p>日本'.encode("cp932"), "日本"),
        ("<meta charset=iso-8859-1><p>“quoted” café".encode("cp1252"), "“quoted” café"),
        ("<meta charset=koi8-r><p>привет".encode("koi8-r"), "привет"),
        ("<meta charset=big5><p>繁體".encode("big5"), "繁體"),
        ("\ufeff<meta charset=gbk><p>你好".encode(), "你好"),
        ("\ufeff<p>你好".encode("utf-16-le"), "你好"),
        ("<meta charset=utf-16><p>你好".encode(), "你好"),  # what could be read to say so is not UTF-16
        ("<meta charset=rot13><p>你好".encode(), "你好"),
        ("<meta charset=unicode_escape><p>\\n你好".encode(), "\\n你好"),
        (b"<meta charset=utf-8><p>broken \xff here", "broken � here"),
    ],
)
def test_encodings_that_pages_name(data: bytes, text: str, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_bytes(data)
    assert read_document(tmp_path / "page.html").text == text


def test_an_encoding_that_is_not_named(tmp_path: Path) -> None:
    (tmp_path / "page.htm").write_bytes(b"<p>caf\xe9")
    with pytest.raises(DocumentError, match=r"^page.htm is not UTF-8 \(byte 0xE9 at position 6\) and names no other "):
        read_document(tmp_path / "page.htm")


def test_a_page_without_text_says_why(tmp_path: Path) -> None:
    (tmp_path / "app.html").write_text("<html><title></title><div id=root></div><script>go()</script>")
    with pytest.raises(DocumentError, match=r"^app\.html has no text: it may be built by its scripts"):
        read_document(tmp_path / "app.html")


def test_too_large_a_page(tmp_path: Path) -> None:
    with (tmp_path / "big.html").open("wb") as file:
        file.write(b"<p>words")
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(DocumentError, match=r"^big\.html has more than 20,000,000 bytes"):
        read_document(tmp_path / "big.html")


@pytest.mark.parametrize(
    "markup",
    [
        "<div>" * 20_000 + "deep",
        "<table><tr><td>" * 7_000 + "deep",
        "<ul><li>" * 10_000 + "deep" + "</li></ul>" * 10_000,
        "deep" + "<a " * 50_000,
        "deep" + "<!--" * 50_000,
        "deep<b" + "<a x='" * 50_000 + ">",
        "deep" + "<![" * 50_000 + ">",
        "deep" + "&" * 50_000,
        "deep<script>" + "<!--" * 50_000 + "</script>",
    ],
    ids=lambda markup: str(markup)[:12],
)
def test_pages_made_to_take_for_ever(markup: str) -> None:
    """html.parser of Python 3.11.7 takes two minutes for one of these."""
    started = time.process_time()
    assert "deep" in page_text(markup, "page")
    assert time.process_time() - started < 10


PIECES = st.lists(
    st.sampled_from("<>/!-[]&;#'\"= \n\tabp你\ud800\0\x1b") | st.sampled_from(["<p>", "<td>", "<!--", "<li>", "<pre>"])
)


@given(PIECES.map("".join))
def test_any_markup_becomes_text_that_a_tokenizer_takes(markup: str) -> None:
    text = page_text(markup, "page")
    check_text(text, "it")
    assert not any(ord(c) < 32 and c not in "\t\n" for c in text)


def test_parts_of_a_long_page_are_its_text(tmp_path: Path) -> None:
    path = tmp_path / "long.html"
    path.write_text("<p>Some words in a paragraph.</p>" * 3000 + "x" * 50_000)
    with open_document(path) as source:
        parts = list(source.parts)
    assert len(parts) > 5
    assert parts[-1].read == source.total
    assert "".join(part.text for part in parts) == read_document(path).text
