"""Documents, what two texts have in common, and windows of tokens."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.export.text import corpus
from edge.export.text.documents import UNKNOWN_LANGUAGE, Document, read_documents
from edge.export.text.overlap import check_apart
from edge.export.text.windows import token_windows
from edge.runtime.chat import ChatTemplate
from edge.runtime.errors import CalibrationError
from edge.runtime.tokenizer import Tokenizer
from tests import tiny


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """One token a byte."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny.write_tokenizer(folder)
    return Tokenizer(folder / "tokenizer.json")


def test_the_builtin_texts_are_long_and_have_nothing_in_common() -> None:
    calibration, evaluation = corpus.builtin_calibration(), corpus.builtin_evaluation()
    assert (
        sum(len(document.text) for document in calibration) > 1_000_000
    )  # 376,000 tokens of SmolLM2 with CPython 3.11
    assert sum(len(document.text) for document in evaluation) > 400_000
    assert len({document.text for document in calibration}) == len(calibration)
    assert {document.language for document in calibration + evaluation} == {"en"}
    check_apart(calibration, evaluation, corpus.SHARED_WORDS_BUILTIN)
    everything = "".join(document.text for document in calibration)
    assert "\ndef " in everything
    assert "Raises" in everything


words = st.lists(st.sampled_from(["a", "b", "c", "日", "本"]), max_size=30)


@given(st.lists(words, min_size=1, max_size=3), st.lists(words, min_size=1, max_size=3), st.integers(1, 6))
def test_a_shared_run_is_found_where_plain_comparison_finds_one(
    calibration: list[list[str]], evaluation: list[list[str]], run: int
) -> None:
    def runs(texts: list[list[str]]) -> set[tuple[str, ...]]:
        return {tuple(one[i : i + run]) for one in texts for i in range(len(one) - run + 1)}

    expected = runs(calibration) & runs(evaluation)
    ours = [Document(" ".join(one)) for one in calibration]
    theirs = [Document("\n  ".join(one), origin="page 7") for one in evaluation]
    if expected:
        with pytest.raises(CalibrationError, match=rf"\(page 7\) share {run} words in a row"):
            check_apart(ours, theirs, run)
    else:
        check_apart(ours, theirs, run)


def test_the_shared_passage_is_shown_and_characters_of_chinese_count() -> None:
    sentence = "智谱清言是一个基于大语言模型的对话系统它能够理解和生成中文以及英文文本并支持多轮对话与工具调用"
    with pytest.raises(CalibrationError, match="智 谱 清 言"):
        check_apart([Document("before " + sentence)], [Document(sentence + "。after")])
    check_apart([Document(sentence[:39])], [Document(sentence)])


def test_text_files_are_one_document_and_lines_of_jsonl_are_many(tmp_path: Path) -> None:
    plain, lines = tmp_path / "a.txt", tmp_path / "b.jsonl"
    plain.write_text("one\n\ntwo", encoding="utf-8")
    assert [document.text for document in read_documents(plain)] == ["one\n\ntwo"]
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "你好"}]
    records = [{"text": "a\u2028b", "language": "en"}, {"messages": chat, "language": "zh"}, {"text": "no label"}]
    lines.write_text("\n\n".join(json.dumps(record, ensure_ascii=False) for record in records), encoding="utf-8")
    first, second, third = read_documents(lines)
    assert (first.text, first.language, first.origin) == ("a\u2028b", "en", f"{lines}, line 1")
    assert (second.text, second.language, second.origin) == ("Hi\n你好", "zh", f"{lines}, line 3")
    assert second.rendered(None) == "Hi\n你好"
    assert second.rendered(ChatTemplate(tiny.TEMPLATE)) == "<|user|>\nHi<|assistant|>\n你好"
    assert third.language == UNKNOWN_LANGUAGE


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n{"text": \n', "line 2 is not valid JSON"),
        (b'{"text": "a"}\n\n{"txt": "b"}', "line 3: expected an object"),
        (b'{"text": "a", "messages": []}', "line 1: expected an object"),
        (b'["a"]', "line 1: expected an object"),
        (b'{"text": 5}', "line 1: text is 5"),
        (b'{"text": "a", "language": 5}', "line 1: language is 5"),
        (b'{"messages": []}', r"line 1: messages are \[\]"),
        (b'{"messages": [{"role": "user"}]}', "line 1: messages are"),
        (b'{"messages": [{"role": "user", "content": [{"type": "image"}]}]}', "line 1: messages are"),
        (b'{"text": "a"}\n{"text": "\xff"}', "line 2: byte 24 is not UTF-8"),
        (b"\n \n", "holds no text"),
        (b"", "holds no text"),
        (b"\xef\xbb\xbf", "holds no text"),
        (b'{"text": "a"}\n' + b"[" * 100_000, "line 2 is not valid JSON: its lists and objects nest"),
        (b'{"text": "a"}\n' + b'{"text":' * 100_000, "line 2 is not valid JSON"),
        (b'{"text": "\\ud83d"}', "line 1 is not valid JSON: it holds half a character"),
        (b'{"text": "a", "n": ' + b"9" * 5000 + b"}", "line 1 is not valid JSON: it holds an integer of 5000 digits"),
        (b'{"text": "a", "n": 1e999}', "line 1 is not valid JSON: it holds '1e999'"),
        (b'{"text": "a"}\n\x00\n', "line 2: a zero byte, so this is not text"),
        ('{"text": "a"}'.encode("utf-16"), r"line 1: byte 0 is not UTF-8 \(it looks like UTF-16\)"),
        ('{"text": "a"}'.encode("utf-16-le"), "line 1: a zero byte"),
        (b"\x80\x04\x95\n\x00", "line 1: byte 0 is not UTF-8"),
        (b'{"text": null}', "line 1: text is None"),
        (b'{"messages": [{"role": "user", "content": null}]}', "line 1: messages are"),
        (b'{"messages": [' + b'{"role": "user", "content": 5},' * 10_000 + b"1]}", "line 1: messages are"),
        (b'{"text": ["' + b"\\u001b[2J" * 1000 + b'"]}', "line 1: text is"),
        (b"true", "line 1: expected an object"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_bytes(content)
    with pytest.raises(CalibrationError, match=message) as caught:
        read_documents(path)
    assert len(str(caught.value)) < 700
    assert str(caught.value).isprintable()


def test_how_lines_end_and_a_file_begins_makes_no_difference(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a\\r\\u2028b"}\r\n\r\n \r\n{"text": "c"}')
    assert [document.text for document in read_documents(path)] == ["a\r\u2028b", "c"]
    path = tmp_path / "text.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree")
    assert [document.text for document in read_documents(path)] == ["one\ntwo\nthree"]


def test_what_is_no_text_file_is_one_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    (tmp_path / "folder.jsonl").mkdir()
    with (tmp_path / "sparse.jsonl").open("wb") as file:
        file.truncate(3_000_000_000)
    for name in (*map(str, tmp_path.iterdir()), "/dev/zero", "x" * 300, "d/" * 3000, "a\0b", ""):
        with pytest.raises(CalibrationError, match=r"name a text or \.jsonl file") as caught:
            read_documents(name)
        assert len(str(caught.value)) < 700


def test_a_file_that_is_not_there_and_a_chat_that_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="cannot be read"):
        read_documents(tmp_path / "absent.txt")
    document = Document("Hi", messages=({"role": "user", "content": "Hi"},), origin="chats.jsonl, line 3")
    with pytest.raises(CalibrationError, match=r"chats.jsonl, line 3: .*no roles"):
        document.rendered(ChatTemplate("{{ raise_exception('no roles') }}"))


def test_windows_spread_over_the_text_and_languages_take_turns(tokenizer: Tokenizer) -> None:
    english = [Document("abcdefghij", "en"), Document("klmnopqrst", "en")]  # 21 tokens with the newline between
    german = [Document("ABCDEFGH", "de")]
    windows = token_windows([*english, *german], tokenizer, 4, 5)
    assert windows.languages == ("en", "de", "en", "de", "en")
    assert [tokenizer.decode(row.tolist()) for row in windows.ids] == ["abcd", "ABCD", "hij\n", "EFGH", "nopq"]
    assert (windows.count, windows.length, windows.num_tokens) == (5, 4, 20)
    assert windows.ids.dtype == np.int64
    again = token_windows([*english, *german], tokenizer, 4, 5)
    assert windows.sha256 == again.sha256
    assert windows.sha256 != token_windows(english, tokenizer, 4, 5).sha256
    assert windows.sha256 != token_windows([*english, *german], tokenizer, 4, 6).sha256


@given(st.lists(st.integers(0, 40), min_size=1, max_size=4), st.integers(1, 9), st.integers(1, 12))
def test_windows_never_overlap_and_none_is_left_out(
    tokenizer: Tokenizer, sizes: list[int], length: int, count: int
) -> None:
    # Every character of a language is another one, so that a window tells its place.
    documents = [Document("".join(chr(33 + i) for i in range(size)), f"l{n}") for n, size in enumerate(sizes)]
    room = sum(size // length for size in sizes)
    if room < count:
        with pytest.raises(CalibrationError, match=f"{room} windows of {length}, and {count} windows were asked for"):
            token_windows(documents, tokenizer, length, count)
        return
    windows = token_windows(documents, tokenizer, length, count)
    shares = [windows.languages.count(f"l{n}") for n in range(len(sizes))]
    for language, document in zip(dict.fromkeys(d.language for d in documents), documents, strict=True):
        rows = [row.tolist() for row, other in zip(windows.ids, windows.languages, strict=True) if other == language]
        found = tokenizer.decode([i for row in rows for i in row])
        assert len(set(found)) == len(found)
        assert found == "".join(sorted(found))
        assert set(found) <= set(document.text)
        own = int(language[1:])
        full = shares[own] == sizes[own] // length
        assert full or shares[own] >= max(shares) - 1  # a fair share, unless it has no more text


def test_chats_are_tokenized_as_the_template_writes_them(tokenizer: Tokenizer) -> None:
    chat = Document("Hi", "en", ({"role": "user", "content": "Hi"},))
    windows = token_windows([chat], tokenizer, 4, 1, ChatTemplate(tiny.TEMPLATE))
    assert windows.ids.tolist() == [tokenizer.encode("<|user|>\nHi")]
    assert windows.ids[0, 0] == tokenizer.token_id("<|user|>")


@pytest.mark.parametrize(("length", "count"), [(0, 1), (1, 0)])
def test_no_windows_and_empty_windows_are_refused(tokenizer: Tokenizer, length: int, count: int) -> None:
    with pytest.raises(CalibrationError, match="expected 1 or more"):
        token_windows([Document("abc")], tokenizer, length, count)
