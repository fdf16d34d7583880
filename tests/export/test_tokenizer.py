"""A tokenizer made from tiktoken's ranks gives tiktoken's ids; what is no such file is refused."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.export.checkpoint.build_tokenizer import from_tiktoken, special_tokens
from edge.export.checkpoint.pre_tokenizers import CL100K
from edge.export.checkpoint.safetensors import SafetensorsCheckpoint
from edge.runtime.errors import ConfigError, TokenizerError
from edge.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    import tiktoken

SPECIAL = ("<|user|>", "<sop>")
# After the 256 bytes. "abc" ranks below its part "bc". Nothing merges into " xyz", "你好" and "🙂": " " and "x" do not,
# 好 is no token, and 🙂 would need a third part; they are found as whole words only.
WORDS = (
    *("he", "th", "the", " the", "in", "ing", "abc", "bc", "xy", " xyz", "aa", "aaa", "aaaa", "ab", "ba", "aba"),
    *("12", "23", "123", "  ", "    ", "\n\n", "'s", "é", "你", "你好", "🙂"),
)
# 你 begins with E4 BD, 🙂 with F0 9F 99.
TOKENS = [*(bytes([i]) for i in reversed(range(256))), b"\xe4\xbd", b"\x9f\x99", *(word.encode() for word in WORDS)]
CONFIG = {
    "added_tokens_decoder": {
        str(len(TOKENS) + i): {"content": text, "special": True, "normalized": False} for i, text in enumerate(SPECIAL)
    }
}


def write_ranks(path: Path, tokens: list[bytes]) -> Path:
    lines = [base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)]
    path.write_bytes(b"".join(lines))
    return path


def make_tiny(tokens: list[bytes], path: Path) -> tokenizers.Tokenizer:
    return from_tiktoken(write_ranks(path, tokens), special_tokens(CONFIG))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tokenizers.Tokenizer:
    return make_tiny(TOKENS, tmp_path_factory.mktemp("ranks") / "tokenizer.model")


@pytest.fixture(scope="module")
def glm4(shared: Path) -> tokenizers.Tokenizer:
    folder = shared / "glm4-tokenizer"
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    started = time.perf_counter()
    built = from_tiktoken(folder / "tokenizer.model", special_tokens(config))
    assert time.perf_counter() - started < 60  # 1.7 s alone on one core
    return built


def ids_of(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


# Any text, any bytes as far as they are text, and words that are near the tiny vocabulary, with special tokens between.
texts = st.one_of(
    st.text(max_size=60),
    st.binary(max_size=60).map(lambda raw: raw.decode("utf-8", errors="replace")),
    st.text(alphabet="thein gabcxyz'S\n 123é你好🙂", max_size=40),
    st.lists(st.sampled_from([*WORDS, *SPECIAL, " ", "a", "z", "\r\n", "４"]), max_size=15).map("".join),
)


def test_tiny_words(tiny: tokenizers.Tokenizer) -> None:
    rank = {token: i for i, token in enumerate(TOKENS)}
    assert ids_of(tiny, "the") == [rank[b"the"]]
    assert ids_of(tiny, "abc") == [rank[b"abc"]]
    assert ids_of(tiny, " xyz") == [rank[b" xyz"]]
    assert ids_of(tiny, " xyzz") == [rank[b" "], rank[b"xy"], rank[b"z"], rank[b"z"]]
    assert ids_of(tiny, "你") == [rank["你".encode()]]
    assert ids_of(tiny, "<|user|>in<sop>") == [len(TOKENS), rank[b"in"], len(TOKENS) + 1]


def test_each_token_has_one_merge_at_most(tiny: tokenizers.Tokenizer) -> None:
    merges = [tuple(pair) for pair in json.loads(tiny.to_str())["model"]["merges"]]
    assert [left + right for left, right in merges if (left + right).isascii()] == [
        word for word in WORDS if word.isascii() and word.isalnum()
    ] + ["'s"]
    assert ("a", "bc") in merges
    assert len(merges) == len(TOKENS) - 256 - 3  # " xyz", "你好" and "🙂" have none


@settings(max_examples=300, deadline=None)
@given(text=texts)
def test_tiny_equals_tiktoken(tiny: tokenizers.Tokenizer, text: str) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    ranks = {token: rank for rank, token in enumerate(TOKENS)}
    special = {text: len(TOKENS) + i for i, text in enumerate(SPECIAL)}
    reference = tiktoken.Encoding("tiny", pat_str=CL100K, mergeable_ranks=ranks, special_tokens=special)
    ids = reference.encode(text, allowed_special="all")
    assert ids_of(tiny, text) == ids
    assert tiny.decode(ids, skip_special_tokens=False) == reference.decode(ids) == text


def test_golden_encodings(glm4: tokenizers.Tokenizer, shared: Path) -> None:
    golden = json.loads((shared / "glm4-tokenizer" / "golden_encodings.json").read_text(encoding="utf-8"))
    for name, case in golden.items():
        assert ids_of(glm4, case["text"]) == case["ids"], name
        assert glm4.decode(case["ids"]).encode() == case["text"].encode(), name


def test_glm4_equals_the_tokenizer_json_and_tiktoken(glm4: tokenizers.Tokenizer, shared: Path) -> None:
    published = tokenizers.Tokenizer.from_file(str(shared / "glm4-tokenizer" / "tokenizer.json"))
    reference = _glm4_tiktoken(shared)

    @settings(max_examples=400, deadline=None)
    @given(text=st.one_of(texts, st.lists(st.sampled_from(["[gMASK]", "<sop>", "<|user|>", " árbol"])).map("".join)))
    def compare(text: str) -> None:
        ids = ids_of(glm4, text)
        assert ids == ids_of(published, text)
        assert glm4.decode(ids, skip_special_tokens=False) == text
        if reference is not None:
            assert ids == reference.encode(text, allowed_special="all")

    compare()
    # Every token as a word of its own: also those that no merge makes.
    words = [published.decode([i], skip_special_tokens=False) for i in range(0, 151_343, 7)]
    for got, want in zip(
        glm4.encode_batch(words), published.encode_batch(words, add_special_tokens=False), strict=True
    ):
        assert got.ids == want.ids


def _glm4_tiktoken(shared: Path) -> tiktoken.Encoding | None:
    try:
        import tiktoken
    except ImportError:
        return None
    lines = (shared / "glm4-tokenizer" / "tokenizer.model").read_bytes().split(b"\n")
    ranks = {base64.b64decode(line.split()[0]): int(line.split()[1]) for line in lines if line}
    config = json.loads((shared / "glm4-tokenizer" / "tokenizer_config.json").read_text(encoding="utf-8"))
    special = {entry["content"]: int(i) for i, entry in config["added_tokens_decoder"].items()}
    return tiktoken.Encoding("glm4", pat_str=CL100K, mergeable_ranks=ranks, special_tokens=special)


def test_glm4_knows_its_special_tokens(glm4: tokenizers.Tokenizer, shared: Path) -> None:
    """Without a tokenizer_config.json the tokenizer is the same, byte for byte."""
    assert from_tiktoken(shared / "glm4-tokenizer" / "tokenizer.model", {}).to_str() == glm4.to_str()


def test_special_tokens_keep_ids_and_flags(tmp_path: Path) -> None:
    """Also where ids between them are unused, and where a token is plain text."""
    first = len(TOKENS)
    config = {
        "added_tokens_decoder": {
            str(first + 3): {"content": "<think>", "special": False, "normalized": False},
            str(first): {"content": "<|end|>", "special": True, "normalized": False, "lstrip": True},
        }
    }
    built = from_tiktoken(write_ranks(tmp_path / "tokenizer.model", TOKENS), special_tokens(config))
    assert ids_of(built, "he  <|end|><think>") == [TOKENS.index(b"he"), first, first + 3]
    assert built.decode([first, first + 3]) == "<think>"


def checkpoint_folder(folder: Path) -> Path:
    """A folder without weights that opens as a checkpoint."""
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    write_ranks(folder / "tokenizer.model", TOKENS)
    (folder / "tokenizer_config.json").write_text(json.dumps(CONFIG))
    return folder


def test_checkpoint_writes_it(tmp_path: Path) -> None:
    checkpoint = SafetensorsCheckpoint(checkpoint_folder(tmp_path))
    assert "tokenizer.model" in [file.name for file in checkpoint.small_files()]
    written = []
    for name in ("first.json", "second.json"):
        checkpoint.write_tokenizer(tmp_path / name)
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1]
    tokenizer = Tokenizer(tmp_path / "first.json")
    assert tokenizer.encode("<sop>the 你") == [
        len(TOKENS) + 1,
        *(TOKENS.index(t) for t in (b"the", b" ", "你".encode())),
    ]
    assert tokenizer.is_special(len(TOKENS))
    assert tokenizer.num_tokens == len(TOKENS) + len(SPECIAL)


def test_checkpoint_prefers_the_tokenizer_json(tmp_path: Path) -> None:
    checkpoint = SafetensorsCheckpoint(checkpoint_folder(tmp_path))
    tokens = from_tiktoken(tmp_path / "tokenizer.model", special_tokens(CONFIG)).to_str(pretty=True)
    (tmp_path / "tokenizer.json").write_text(tokens)
    names = [file.name for file in checkpoint.small_files()]
    assert "tokenizer.json" in names
    assert "tokenizer.model" not in names
    checkpoint.write_tokenizer(tmp_path / "out.json")
    assert (tmp_path / "out.json").read_text() == tokens


def test_checkpoint_without_either(tmp_path: Path) -> None:
    checkpoint = SafetensorsCheckpoint(checkpoint_folder(tmp_path))
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(TokenizerError, match=r"tokenizer\.json and tokenizer\.model are both missing"):
        checkpoint.write_tokenizer(tmp_path / "out.json")


def test_checkpoint_with_damaged_tokenizer_config(tmp_path: Path) -> None:
    checkpoint = SafetensorsCheckpoint(checkpoint_folder(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"tokenizer_config\.json is not valid JSON"):
        checkpoint.write_tokenizer(tmp_path / "out.json")


@pytest.mark.parametrize(
    "line",
    [b"%%%% 256", b"YWJj", b"YWJj x", b"YWJj 256 7", b"YWJ 256", b"YWJj -1", b"==== 256", b"\x0a\x0e\x0a\x05<unk>"],
)
def test_lines_that_are_no_rank(tmp_path: Path, line: bytes) -> None:
    path = write_ranks(tmp_path / "tokenizer.model", TOKENS[:256])
    path.write_bytes(path.read_bytes() + b"\n" + line + b"\n")
    with pytest.raises(TokenizerError, match=r"line 25[89] is .*, expected base64 and a rank"):
        from_tiktoken(path, special_tokens(CONFIG))


def test_blank_lines_and_carriage_returns_are_no_error(tiny: tokenizers.Tokenizer, tmp_path: Path) -> None:
    path = write_ranks(tmp_path / "tokenizer.model", TOKENS)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    assert from_tiktoken(path, special_tokens(CONFIG)).to_str() == tiny.to_str()


def damage(path: Path, old: bytes, new: bytes) -> Path:
    raw = path.read_bytes()
    assert raw.count(old) == 1
    path.write_bytes(raw.replace(old, new))
    return path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b" 260\n", b" 259\n", "gives rank 259 a second time"),
        (b" 260\n", b" 9999\n", "260 is not among them"),
        (base64.b64encode(b"\xff") + b" 0\n", b"", "0 is not among them"),
        (base64.b64encode(b"the") + b" ", base64.b64encode(b"th") + b" ", "ranks 259 and 260 are the same token"),
        (base64.b64encode(b"A") + b" ", base64.b64encode(b"AA") + b" ", "1 of 256 bytes have no rank, first 0x41"),
    ],
)
def test_damaged_ranks(tmp_path: Path, old: bytes, new: bytes, message: str) -> None:
    path = damage(write_ranks(tmp_path / "tokenizer.model", TOKENS), old, new)
    with pytest.raises(TokenizerError, match=message):
        from_tiktoken(path, special_tokens(CONFIG))


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(TokenizerError, match="256 of 256 bytes have no rank"):
        from_tiktoken(tmp_path / "tokenizer.model", {})


@pytest.mark.parametrize("tokens", [[*TOKENS, b"one more"], TOKENS[:-1]])
def test_special_tokens_that_do_not_follow_the_ranks(tmp_path: Path, tokens: list[bytes]) -> None:
    with pytest.raises(TokenizerError, match=f"special tokens from {len(TOKENS)} on, expected them to follow"):
        make_tiny(tokens, tmp_path / "tokenizer.model")


def test_special_token_that_is_a_rank(tmp_path: Path) -> None:
    config = {"added_tokens_decoder": {str(len(TOKENS)): {"content": "the"}}}
    told = f"special token {len(TOKENS)}, 'the', is also token {TOKENS.index(b'the')}"
    with pytest.raises(TokenizerError, match=told):
        from_tiktoken(write_ranks(tmp_path / "tokenizer.model", TOKENS), special_tokens(config))


def test_unknown_special_tokens(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"no special tokens; put the tokenizer_config\.json"):
        from_tiktoken(write_ranks(tmp_path / "tokenizer.model", TOKENS), special_tokens({}))


@pytest.mark.parametrize(
    "entries", [["<|user|>"], {"x": {"content": "a"}}, {"300": {}}, {"300": {"content": 5}}, {"300": "a"}, {"-1": {}}]
)
def test_special_tokens_of_another_form(entries: object) -> None:
    with pytest.raises(TokenizerError, match="expected an id with its content"):
        special_tokens({"added_tokens_decoder": entries})
