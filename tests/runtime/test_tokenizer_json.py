"""A tokenizer.json of a stranger is a tokenizer that works, or one TokenizerError: no hang, no abort, no panic."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from edge.runtime.errors import EdgeError, PromptError, TokenizerError
from edge.runtime.tokenizer import MAX_TEXT, Tokenizer
from edge.runtime.tokenizer_json import check_tokenizer_json
from tests.export.test_prompt_files import TEXT, tokenizer_json
from tests.fuzz.driver import is_message

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
# How published tokenizers cut text, as far as their expressions differ in kind.
PUBLISHED = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re)?|\s+(?!\S)",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*",
    r" ?[^(\s|[.,!?…。，、।۔،])]+",
    r"(?=(\d{3})+(?!\d))",
    r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"[\r\n]",
)
ENDLESS = (
    "(a+)+$",
    "(a*)*b",
    "(.?){22}(?!)",
    ".?{22}",
    "(?:.?.?)+(?!)",
    "(a|a?)+",
    "((a{1,2}){1,3}){4}",
    ".*.*.*(?!)",
    ".?.?.?.?.?.?.?.?.?.?.?.?.?.?.?.?(?!)",
    r"(?i)(a+\))+",
    r"[\]]*(b*)+",
    "(?=a+)+",
    "(?:(a*)|b)*",
    "a" * 6000,
)


def cut_by(pattern: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, BYTE_LEVEL]}}


def replacing(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def normalized(*parts: object) -> dict[str, Any]:
    return {"normalizer": {"type": "Sequence", "normalizers": list(parts)}}


HOSTILE: dict[str, dict[str, Any]] = {
    "a text made longer": normalized(replacing({"String": "a"}, "a" * 10_000)),
    "a text made longer and longer": normalized(*[replacing({"String": "a"}, "aaa")] * 20),
    "an expression made longer": normalized(replacing({"Regex": "."}, "b" * 1000)),
    "nothing replaced": normalized(replacing({"String": ""}, "ab")),
    "an endless expression": normalized(replacing({"Regex": "(a+)+$"}, "b")),
    "a long beginning": normalized({"type": "Prepend", "prepend": "a" * 10_000_000}),
    "a table that is none": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "//////8A"}},
    "a type that is none": {"normalizer": {"type": ["NFC"]}},
    "normalizers that are none": normalized(5, "NFC"),
    "a decoder of another kind": {"decoder": {"type": "Fuse"}},
    "an expression that does not compile": cut_by("(a"),
    "a version of another kind": {"version": "\x1b[2J\x00"},
    "a merge of a token that is none": {"model__merges": [["\x1b", "b"]]},
    "a huge token": {"added_tokens": [{"id": 256, "content": "x" * 100_000, "special": True, **dict.fromkeys(
        ("single_word", "lstrip", "rstrip", "normalized"), False)}]},
    "no model": {"model": None},
    **{f"cut by {pattern[:20]}": cut_by(pattern) for pattern in ENDLESS},
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_the_library_is_not_given(name: str, tmp_path: Path) -> None:
    text = json.dumps(tokenizer_json(**HOSTILE[name]))
    (tmp_path / "tokenizer.json").write_text(text)
    started = time.perf_counter()
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.from_text(text)
    assert is_message(str(caught.value))
    with pytest.raises(TokenizerError):
        Tokenizer(tmp_path / "tokenizer.json", 320)
    assert time.perf_counter() - started < 60


def test_a_key_in_disguise_is_found() -> None:
    text = json.dumps(tokenizer_json(**HOSTILE["a text made longer"]))
    for other in ('"norm\\u0061lizer"', '"\\u006eormalizer"'):
        with pytest.raises(TokenizerError, match="times as long"):
            Tokenizer.from_text(text.replace('"normalizer"', other))
    doubled = text.replace('"model"', '"normalizer": null, "model"')
    with pytest.raises(TokenizerError, match="twice"):
        Tokenizer.from_text(doubled)


@pytest.mark.parametrize("pattern", PUBLISHED)
def test_published_expressions_are_taken(pattern: str) -> None:
    tokenizer = Tokenizer.from_text(json.dumps(tokenizer_json(**cut_by(pattern))))
    assert tokenizer.decode(tokenizer.encode("Hello 12345 wörld,\n\n it's 你好 ", parse_special=False)).startswith(
        "Hello"
    )


@pytest.mark.parametrize("kind", ["NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt"])
def test_normalizers_that_are_taken(kind: str) -> None:
    tokenizer = Tokenizer.from_text(json.dumps(tokenizer_json(**normalized({"type": kind}))))
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"


def test_a_panic_is_an_error_of_the_text() -> None:
    """An expression within bounds that gives up all the same."""
    tokenizer = Tokenizer.from_text(json.dumps(tokenizer_json(**cut_by(r"a*a*\z(?<!a)"))))
    tokenizer.encode("bbb")
    with pytest.raises(TokenizerError, match="fails on a text"):
        tokenizer.encode("a" * 10_000)
    assert tokenizer.decode(tokenizer.encode("bbb")) == "bbb"


def test_texts_have_an_end() -> None:
    tokenizer = Tokenizer.from_text(json.dumps(tokenizer_json()))
    with pytest.raises(PromptError, match="give it in parts"):
        tokenizer.encode("a" * (MAX_TEXT + 1))


def test_ids_beyond_the_rows_are_not_the_models() -> None:
    data = tokenizer_json(model__vocab={**tokenizer_json()["model"]["vocab"], "he": 300, "hehe": 400})
    data["model"]["merges"] = [["h", "e"], ["he", "he"]]
    text = json.dumps(data)
    assert Tokenizer.from_text(text).num_tokens == 401
    for rows, num_tokens in ((500, 401), (401, 401), (400, 301), (301, 301), (300, 261), (261, 261), (260, 260)):
        tokenizer = Tokenizer.from_text(text, rows)
        assert tokenizer.num_tokens == num_tokens
        below = Tokenizer.from_text(tokenizer.to_json())
        assert below.num_tokens == num_tokens
        assert below.token_id("<|user|>") == tokenizer.token_id("<|user|>") == 259
        assert max(below.encode("hehehe", parse_special=False)) < rows
        assert max(tokenizer.encode("hehehe")) == 400
    assert Tokenizer.from_text(text, 401).to_json() == Tokenizer.from_text(text).to_json()


def test_a_huge_id_costs_nothing() -> None:
    data = tokenizer_json(model__vocab={**tokenizer_json()["model"]["vocab"], "zz": 2**32 - 1})
    tokenizer = Tokenizer.from_text(json.dumps(data), 320)
    assert tokenizer.num_tokens <= 320
    assert tokenizer.encode(TEXT)
    with pytest.raises(TokenizerError, match="4,294,967,295"):
        tokenizer.to_json()


@pytest.mark.parametrize(
    "raw", [b"", b"\xff", b"[" * 100_000, b"null", b'{"normalizer": {}}', b'{"normalizer": [' * 90]
)
def test_files_that_are_none(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(raw)
    with pytest.raises(EdgeError) as caught:
        Tokenizer(tmp_path / "tokenizer.json")
    assert is_message(str(caught.value))


def test_two_tokens_of_one_id() -> None:
    """A copy that the library makes of such a tokenizer has one of the two, left to chance, and then reads or not."""
    vocab = {**tokenizer_json()["model"]["vocab"], "he": 5}
    data = tokenizer_json(model__vocab=vocab, model__merges=[["h", "e"]])
    data["added_tokens"][0]["lstrip"] = True  # looked for by the library itself, in a copy
    said = set()
    for _ in range(20):
        tokenizer = Tokenizer.from_text(json.dumps(data))
        assert tokenizer.encode("hello", parse_special=False)
        try:
            tokenizer.encode("hello")
        except TokenizerError as error:
            said.add(str(error))
    assert said, "twenty copies, and all of them read"
    assert all("two tokens of one id" in words for words in said)


def test_the_real_ones_pass(shared: Path) -> None:
    started = time.perf_counter()
    text = (shared / "glm4-tokenizer" / "tokenizer.json").read_text(encoding="utf-8")
    check_tokenizer_json(text, "it")
    assert time.perf_counter() - started < 60  # 0.02 s alone on one core
