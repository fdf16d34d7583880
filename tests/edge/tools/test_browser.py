"""The browser over a folder: what is found, opened and cited, in GLM-4's own forms; and what stays out of reach."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge import SettingsError, ToolError
from edge.documents import Document, read_document
from edge.runtime.tools.declared import checked_tools
from edge.tools.browser import Browser, Citation, LibraryLimits, browser_tool
from edge.tools.browser.library import Page, passages
from edge.tools.browser.session import snippet
from edge.tools.browser.words import terms

BEES = "# Bees\n\nBees make honey.\n\n## Winter\n\nIn winter bees form a cluster around the queen.\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "docs"
    (inside / "sub").mkdir(parents=True)
    (inside / "bees.md").write_text(BEES)
    (inside / "sub" / "zh.txt").write_text("蜜蜂采集花蜜并酿造蜂蜜。它们生活在蜂巢中。", encoding="utf-8")
    (inside / "ships.txt").write_text("".join(f"Ship {i} carries {i * i} tons of coal.\n\n" for i in range(400)))
    (inside / "page.html").write_text("<!doctype html><title>T</title><body><h1>Trains</h1><p>Trains run on rails.</p>")
    (tmp_path / "secret.txt").write_text("the secret of bees")
    return inside


def ask(browser: Browser, call: str) -> str:
    return browser.run({"input": call})


def test_a_search_is_in_the_form_of_glm_4(folder: Path) -> None:
    assert ask(Browser(folder), 'search("bees in winter")') == (
        "browser_result\n # 【0†Bees†file:bees.md】\n"
        "# Bees Bees make honey. ## Winter In winter bees form a cluster around the queen."
    )


def test_a_page_is_in_the_form_of_glm_4(folder: Path) -> None:
    browser = Browser(folder)
    ask(browser, 'search("bees")')
    assert ask(browser, "mclick([0])") == (
        f"quote_result [10†source]\nTITLE: Bees\nURL: file:bees.md\n\n{BEES.strip()}\n\nVisible: 0% - 100%"
    )


@pytest.mark.parametrize(
    ("query", "first"),
    [
        ("honey", "bees.md"),
        ("HONEY!", "bees.md"),
        ("蜂蜜", "sub/zh.txt"),
        ("蜂巢", "sub/zh.txt"),
        ("蜜", "sub/zh.txt"),  # one character: all pairs that have it
        ("ship 399 159201", "ships.txt"),
        ("rails", "page.html"),
    ],
)
def test_what_is_found_first(folder: Path, query: str, first: str) -> None:
    lines = Browser(folder).run({"query": query}).splitlines()
    assert lines[1].endswith(f"†file:{first}】")


def test_the_passage_is_opened_and_not_the_beginning(folder: Path) -> None:
    browser = Browser(folder, page_characters=1000)
    found = ask(browser, 'search("159201")')
    assert "Ship 399 carries 159201 tons" in found
    page = ask(browser, "mclick([0])")
    assert "Ship 399 carries 159201 tons" in page
    assert page.endswith("- 100%")
    assert "Ship 0 " not in page


def test_a_long_page_is_read_on_to_its_end(folder: Path) -> None:
    browser, url, read = Browser(folder, page_characters=1000), "ships.txt", []
    while url:
        shown = browser.run({"url": url})
        head, _, rest = shown.partition("\n\n")
        assert head.endswith("URL: file:ships.txt")
        text, _, end = rest.rpartition("\n\nVisible: ")
        read += text.split()
        url = end.partition('To read on: open_url("')[2].removesuffix('")')
    assert read == (folder / "ships.txt").read_text().split()


def test_several_results_share_the_room(folder: Path) -> None:
    browser = Browser(folder, page_characters=4000)
    ask(browser, 'search("ship coal tons")')
    pages = ask(browser, "mclick([0, 3, 6])").split("\n\nquote_result ")
    assert [page.partition("†")[0][-2:] for page in pages] == ["10", "11", "12"]
    assert all(900 < len(page) < 1500 for page in pages)
    assert ask(browser, "mclick([0, 77])").endswith("There is no result 77; results are 0 to 9.")
    with pytest.raises(ToolError, match="There is no result 77, 78; results are 0 to 9"):
        ask(browser, "mclick([77, 78])")
    with pytest.raises(ToolError, match="There is no result 0; results are none: search first"):
        ask(Browser(folder), "mclick([0])")


def test_nothing_found_is_said(folder: Path) -> None:
    browser = Browser(folder)
    assert "No passage of 4 documents has these words" in ask(browser, 'search("zeppelin")')
    assert "No passage of 4 documents has these words" in ask(browser, 'search("?!")')
    with pytest.raises(ToolError, match="search first"):
        ask(browser, "mclick([0])")


def test_recency_is_when_a_file_changed(folder: Path) -> None:
    old = time.time() - 10 * 86_400
    os.utime(folder / "bees.md", (old, old))
    browser = Browser(folder)
    assert "bees.md" in ask(browser, 'search("bees", recency_days=11)')
    assert "bees.md" in ask(browser, 'search("bees", recency_days=-1)')
    assert "documents changed in the last 9 days has" in ask(browser, 'search("bees", recency_days=9)')


def test_changes_are_seen(folder: Path) -> None:
    browser = Browser(folder)
    assert "No passage" in ask(browser, 'search("zebra")')
    (folder / "new.txt").write_text("A zebra.")
    assert "new.txt" in ask(browser, 'search("zebra")')
    (folder / "new.txt").write_text("An antelope, not the other one.")
    assert "No passage" in ask(browser, 'search("zebra")')
    assert "new.txt" in ask(browser, 'search("antelope")')
    (folder / "new.txt").unlink()
    assert "No passage" in ask(browser, 'search("antelope")')
    with pytest.raises(ToolError, match=r"no document 'new\.txt'"):
        ask(browser, 'open_url("new.txt")')


def test_what_has_not_changed_is_not_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def reading(path: Path, *, fits: Callable[[int], bool]) -> Document:
        read.append(path.name)
        return read_document(path, fits=fits)

    monkeypatch.setattr("edge.tools.browser.library.read_document", reading)
    browser = Browser(folder)
    assert read == []
    for _ in range(3):
        ask(browser, 'search("bees")')
    assert sorted(read) == ["bees.md", "page.html", "ships.txt", "zh.txt"]
    (folder / "bees.md").write_text("Bees again.")
    ask(browser, 'search("bees")')
    assert read[4:] == ["bees.md"]


@pytest.mark.parametrize(
    "url",
    [
        "../secret.txt",
        "sub/../../secret.txt",
        "%2e%2e/secret.txt",
        "file:../secret.txt",
        "/etc/passwd",
        "file:///etc/passwd",
        "link.txt",
        "up/secret.txt",
        "outside/secret.txt",
        ".hidden.txt",
        ".git/config.txt",
        "bees.md\0",
        "program.py",
        "#0",
        "x" * 9000,
    ],
)
def test_only_documents_of_the_folder_are_opened(folder: Path, url: str) -> None:
    (folder / "link.txt").symlink_to(folder.parent / "secret.txt")
    (folder / "up").symlink_to("..")
    (folder / "outside").symlink_to(folder.parent)
    (folder / ".hidden.txt").write_text("hidden bees")
    (folder / ".git").mkdir()
    (folder / ".git" / "config.txt").write_text("hidden bees")
    (folder / "program.py").write_text("bees = 1")
    browser = Browser(folder)
    with pytest.raises(ToolError, match="there is no document"):
        browser.run({"url": url})
    found = ask(browser, 'search("secret hidden bees")')
    assert "secret" not in found
    assert "hidden" not in found


def test_a_folder_that_becomes_a_link_is_not_followed(folder: Path) -> None:
    browser = Browser(folder)
    ask(browser, 'search("bees")')
    (folder / "sub" / "zh.txt").unlink()
    (folder / "sub").rmdir()
    (folder / "sub").symlink_to(folder.parent)
    assert "secret" not in ask(browser, 'search("secret")')


@pytest.mark.parametrize("url", ["http://x.org", "https://x.org/a.txt", "ftp://x", "javascript:alert(1)", "HTTP://x"])
def test_addresses_of_the_internet_are_refused(folder: Path, url: str) -> None:
    with pytest.raises(ToolError, match="reads local documents only, and has no internet"):
        Browser(folder).run({"url": url})


@pytest.mark.parametrize(
    "url",
    ["bees.md", "./bees.md", "file:bees.md", "file://bees.md", "bees%2Emd", "bees.md#0", "bees.md#999999999999999"],
)
def test_ways_to_write_a_name(folder: Path, url: str) -> None:
    assert "URL: file:bees.md" in Browser(folder).run({"url": url})


def test_a_name_with_a_sign_of_its_own(folder: Path) -> None:
    (folder / "a#1.txt").write_text("sharp")
    assert "sharp" in Browser(folder).run({"url": "a#1.txt"})
    with pytest.raises(ToolError, match=r"did you mean 'bees\.md'\?"):
        Browser(folder).run({"url": "bee.md"})


def test_citations_are_resolved(folder: Path) -> None:
    browser = Browser(folder)
    ask(browser, 'search("bees")')
    ask(browser, "mclick([0])")
    answer = "They cluster【10†cluster around the queen】, and make honey 【0†source】. 【99†x】 【†】 【a†b】"
    at = BEES.index("cluster around")
    assert browser.citations(answer) == [
        Citation(12, 41, 10, "cluster around the queen", "bees.md", "Bees", at),
        Citation(58, 68, 0, "source", "bees.md", "Bees", None),
        Citation(70, 76, 99, "x", None, None, None),
    ]
    first = browser.citations(answer)[0]
    assert answer[first.start : first.end] == "【10†cluster around the queen】"


@given(text=st.text(st.sampled_from("【】†0123456789ab "), max_size=60))
def test_citations_of_any_text(text: str) -> None:
    for citation in Browser(Path(__file__).parent).citations(text):
        assert text[citation.start : citation.end] == f"【{text[citation.start + 1 : citation.end - 1]}】"
        assert citation.name is None


def test_files_that_cannot_be_read_are_named(folder: Path) -> None:
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4\nnothing")
    (folder / "empty.txt").write_text("")
    found = ask(Browser(folder), 'search("bees")')
    assert "(2 files could not be read: broken.pdf: " in found
    assert "【0†Bees†file:bees.md】" in found
    with pytest.raises(ToolError, match=r"'empty\.txt' could not be read"):
        ask(Browser(folder), 'open_url("empty.txt")')


def test_limits_are_stated(folder: Path) -> None:
    with pytest.raises(ToolError, match="more than 3 documents; give one of its folders"):
        ask(Browser(folder, limits=LibraryLimits(files=3)), 'search("bees")')
    with pytest.raises(ToolError, match=r"more than 500 characters, counted up to 'ships\.txt'"):
        ask(Browser(folder, limits=LibraryLimits(characters=500)), 'search("bees")')
    found = ask(Browser(folder, limits=LibraryLimits(file_bytes=500)), 'search("bees")')
    assert "ships.txt: it has" in found
    assert "at most 500 are read" in found


def test_a_folder_that_goes_is_an_error(folder: Path) -> None:
    browser = Browser(folder)
    ask(browser, 'search("bees")')
    folder.rename(folder.with_name("moved"))
    with pytest.raises(ToolError, match="cannot be read: No such file"):
        ask(browser, 'search("bees")')


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_a_name_that_is_not_unicode_is_printable(folder: Path) -> None:
    for name in (b"odd\xff\n.txt", b"odd\xff.pdf"):
        (folder / os.fsdecode(name)).write_text("An okapi.")
    found = ask(Browser(folder), 'search("okapi")')
    assert found.encode().decode() == found
    assert "†file:odd\ufffd\ufffd.txt】" in found.replace("?", "\ufffd")
    assert len(found.splitlines()) == 4


@pytest.mark.parametrize("folder", ["", "missing/folder", b"x", 5, "a\0b", __file__])
def test_folders_that_are_none(folder: object) -> None:
    with pytest.raises(SettingsError) as caught:
        browser_tool(folder)  # type: ignore[arg-type]  # which is the point
    assert caught.value.param == "folder"


@pytest.mark.parametrize("name", LibraryLimits.__dataclass_fields__)
@pytest.mark.parametrize("value", [-1, 0, "x", 1.5, True, 1 << 80])
def test_limits_are_checked(name: str, value: object) -> None:
    with pytest.raises(SettingsError) as caught:
        LibraryLimits(**{name: value})  # type: ignore[arg-type]  # which is the point
    assert caught.value.param == name


def test_other_settings_are_checked(folder: Path) -> None:
    with pytest.raises(SettingsError, match="page_characters is 10, expected"):
        Browser(folder, page_characters=10)
    with pytest.raises(SettingsError, match="expected a LibraryLimits"):
        Browser(folder, limits=5)  # type: ignore[arg-type]  # which is the point


def test_calls_from_several_threads(folder: Path) -> None:
    browser, found = Browser(folder), list[str]()
    threads = [threading.Thread(target=lambda: found.append(ask(browser, 'search("bees")'))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def test_how_it_is_declared(folder: Path) -> None:
    import json

    import llguidance

    tool = browser_tool(folder)
    assert tool.name == "simple_browser"
    assert tool.native == {"type": "simple_browser"}
    assert checked_tools([tool.declaration]) == (tool.declaration,)
    schema = json.dumps(tool.declaration["function"]["parameters"])
    grammar = llguidance.LLMatcher.grammar_from_json_schema(schema)
    assert llguidance.LLMatcher.validate_grammar(grammar) == ""
    assert "【0†Bees†" in str(tool.run({"query": "honey"}))
    browser = Browser(folder)
    browser_tool(browser).run({"query": "honey"})
    assert browser.citations("【0†honey】")[0].name == "bees.md"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, World-wide web2!", ["hello", "world", "wide", "web2"]),
        ("STRASSE Straße", ["strasse", "strasse"]),
        ("ﬁle Ｆｕｌｌ", ["file", "full"]),
        ("e\u0301t\u00e9", ["\u00e9t\u00e9"]),
        ("蜂蜜酒 and tea", ["蜂蜜", "蜜酒", "and", "tea"]),
        ("東京タワー", ["東京", "京タ", "タワ", "ワー"]),
        ("한국어", ["한국", "국어"]),
        ("蜜", ["蜜"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("العَرَبِيَّة", ["العَرَبِيَّة"]),
        ("ภาษา", ["ภา", "าษ", "ษา"]),
        ("naïve_name", ["naïve_name"]),
        ("...", []),
    ],
)
def test_terms_of_languages(text: str, expected: list[str]) -> None:
    assert terms(text) == expected


@given(text=st.text(max_size=100))
def test_terms_do_not_depend_on_case(text: str) -> None:
    found = terms(text)
    assert all(found)
    assert terms(text.casefold()) == found


@given(text=st.text(st.sampled_from("ab .\n。蜜"), max_size=5000))
def test_passages_are_the_text(text: str) -> None:
    found = list(passages(Page("a", "a", text, 0)))
    assert "".join(passage.text for passage in found) == text
    assert all(0 < len(passage.text) <= 800 for passage in found)


@given(text=st.text(max_size=2000), words=st.sets(st.text(max_size=5), max_size=3))
def test_snippets_are_one_short_line_of_the_text(text: str, words: set[str]) -> None:
    found = snippet(text, words)
    assert len(found) <= 242
    assert len(found.splitlines()) <= 1
    assert found.strip("…") in " ".join(text.split()) or "…" in text
