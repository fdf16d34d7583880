"""The law: pieces joined equal decode(all ids), and no piece ends inside a character."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge.runtime.detokenizer import Detokenizer
from edge.runtime.errors import TokenizerError
from edge.runtime.tokenizer import Tokenizer

TEXTS = {
    "Chinese": "智谱 AI 推出的 GLM-4，在语义、数学、推理和知识等方面表现优异。𠮷野家",
    "Japanese": "吾輩は猫である。名前はまだ無い。ガギグゲゴ",
    "Korean": "동해 물과 백두산이 마르고 닳도록 하느님이 보우하사",
    "Arabic": "السَّلامُ عَلَيْكُمْ ورحمة الله وبركاته",
    "emoji with joiners": "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇫🇷 e\u0301 ❤️‍🔥 family",
    "code": "def f(x):\n\treturn {k: v for k, v in x.items()}  # \u2192 done\r\n\n\n    if a != b: ...",
    "spaces": " a ,b  . 3 3   \n \n\t x",
    "markup": "<|user|>\nHi<|im_end|>[gMASK]<sop> <|endoftext|>x",
}


@pytest.fixture(scope="module", params=["glm4", "demo"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "glm4":
        return Tokenizer(request.getfixturevalue("shared") / "glm4-tokenizer" / "tokenizer.json")
    return Tokenizer(request.getfixturevalue("demo_bundle") / "tokenizer.json")


def check_law(tokenizer: Tokenizer, ids: list[int]) -> None:
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push(i) for i in ids]
    tail = detokenizer.finish()
    whole = tokenizer.decode(ids)
    assert "".join(pieces) + tail == whole
    if "\ufffd" not in whole:
        assert tail == ""
        assert all("\ufffd" not in piece for piece in pieces), "a piece ended inside a character"


@pytest.mark.parametrize("name", TEXTS)
def test_hard_texts(tokenizer: Tokenizer, name: str) -> None:
    ids = tokenizer.encode(TEXTS[name])
    check_law(tokenizer, ids)
    if name != "markup":
        assert tokenizer.decode(ids) == TEXTS[name]


def test_random_ids_are_random_bytes(tokenizer: Tokenizer) -> None:
    """Tokens in no sensible order break characters in every way; special and unused ids are among them."""
    rng = random.Random(1)
    for _ in range(200):
        check_law(tokenizer, [rng.randrange(tokenizer.num_tokens) for _ in range(50)])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=80))
def test_any_text(tokenizer: Tokenizer, text: str) -> None:
    check_law(tokenizer, tokenizer.encode(text))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_ids(tokenizer: Tokenizer, data: st.DataObject) -> None:
    check_law(tokenizer, data.draw(st.lists(st.integers(0, tokenizer.num_tokens - 1), max_size=40)))


def test_detokenizer_starts_anew_after_finish(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("🇫🇷")
    detokenizer = Detokenizer(tokenizer)
    detokenizer.push(ids[0])
    detokenizer.finish()
    assert "".join(detokenizer.push(i) for i in ids) + detokenizer.finish() == "🇫🇷"


def test_encodings_equal_the_golden_ones(shared: Path) -> None:
    """tiktoken's ids for ten languages and code."""
    tokenizer = Tokenizer(shared / "glm4-tokenizer" / "tokenizer.json")
    golden = json.loads((shared / "glm4-tokenizer" / "golden_encodings.json").read_text())
    for case in golden.values():
        assert tokenizer.encode(case["text"]) == case["ids"]
        assert tokenizer.decode(case["ids"]) == case["text"]
    assert tokenizer.encode("[gMASK]<sop><|user|>\n你好<|assistant|>") == [151331, 151333, 151336, 198, 109377, 151337]
    assert tokenizer.num_tokens == 151343, "padding rows behind the last token are no tokens"


def test_other_decoders_are_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Plain
    from tokenizers import decoders, models

    plain = Plain(models.BPE())
    plain.decoder = decoders.Metaspace()
    plain.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TokenizerError, match="decodes with Metaspace, expected ByteLevel"):
        Tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match=r"cannot be read as a tokenizer\.json"):
        Tokenizer(tmp_path / "tokenizer.json")
