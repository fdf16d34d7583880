"""What goes to llama.cpp and comes back from it: GGUF files of other weights, log-probabilities, printed figures."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from llamacpp import Scores, parse_scores, read_base, scored_rows, write_base
from make_gguf import write_like
from transformers import LlamaConfig, LlamaForCausalLM

from edge.export.architectures.registry import describe
from edge.export.checkpoint.checkpoint import open_checkpoint
from edge.export.weights.names import canonical_shapes
from edge.export.weights.source import Weights
from edge.runtime.spec import ModelSpec
from tests.export.test_reference import write_llama_gguf, write_plain_gguf
from tests.tiny import TINIES, Tiny, make

# As llama-perplexity prints it, with figures that are easy to follow. A line of the table is longer than ours may be.
HEAD = "chunk             PPL               ln(PPL(Q)/PPL(base))          KL Divergence              Δp RMS"
LINE = "   {}     {} ±    0.3968       {} ±    0.00383      {} ±    0.00221    16.025 ±  0.001 %    {} ±  0.030 %"
SAID = "\n".join(
    [
        "0.28.317.233 I kl_divergence: 2.76 seconds per pass - ETA 1.83 minutes",
        f"{HEAD}            Same top p",
        LINE.format(1, " 8.0000", " 0.20000", "0.10000", "82.353"),
        LINE.format(2, " 7.5000", "-0.10000", "0.30000", "80.196"),
        LINE.format(3, "17.2500", " 0.00000", "0.25000", "81.196"),
        "",
        "====== Perplexity statistics ======",
        "Mean PPL(Q)                   :   7.250000 ±   0.702100",
        "Mean    KLD:   0.250000 ±   0.022140",
        "Same top p: 81.196 ± 1.766 %",
    ]
)


@dataclass(frozen=True)
class Other:
    """Random weights under canonical names."""

    spec: ModelSpec

    def read(self, name: str) -> np.ndarray:
        shapes = canonical_shapes(self.spec)
        rng = np.random.default_rng(list(shapes).index(name))
        return rng.standard_normal(shapes[name], np.float32)


@pytest.fixture(params=["llama", "chatglm", "glm4", "glm4 in parts", "qwen3"])
def like(request: pytest.FixtureRequest, tmp_path: Path) -> Weights:
    """A GGUF's weights: a tied head and q, k, v apart, or an untied one and q, k, v together."""
    if request.param == "llama":
        sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
        config = LlamaConfig(vocab_size=320, num_hidden_layers=2, tie_word_embeddings=True, **sizes)
        write_llama_gguf(LlamaForCausalLM(config), path := tmp_path / "llama.gguf")
    elif request.param == "qwen3":  # rows in halves
        path = write_plain_gguf(make(TINIES[-1], tmp_path / "qwen3"), tmp_path, "qwen3")
    else:
        name, split = request.param.split(" ")[0], "parts" in request.param
        tiny = Tiny("tiny", architecture="glm4" if name == "glm4" else "glm")
        path = write_plain_gguf(make(tiny, tmp_path / "glm"), tmp_path, name, not split, split)
    return describe(open_checkpoint(path))[1]


def test_same_weights_and_tokenizer(like: Weights, tmp_path: Path) -> None:
    write_like(tmp_path / "out.gguf", like, like)
    checkpoint = open_checkpoint(tmp_path / "out.gguf")
    spec, weights = describe(checkpoint)
    assert spec == like.spec
    assert all(np.array_equal(weights.read(name), like.read(name)) for name in canonical_shapes(spec))
    for key in ("tokens", "token_type", "merges", "eos_token_id"):
        assert checkpoint.config.find(f"tokenizer.ggml.{key}") == like.checkpoint.config.find(f"tokenizer.ggml.{key}")
    assert checkpoint.config.find("tokenizer.ggml.add_bos_token") is False


def test_other_weights_with_a_head_of_their_own(like: Weights, tmp_path: Path) -> None:
    other = Other(replace(like.spec, tied_embeddings=False))
    write_like(tmp_path / "out.gguf", like, other)
    spec, weights = describe(open_checkpoint(tmp_path / "out.gguf"))
    assert spec == other.spec
    assert all(np.array_equal(weights.read(name), other.read(name)) for name in canonical_shapes(spec))
    stored = {tensor.tensor_type for tensor in gguf.GGUFReader(tmp_path / "out.gguf").tensors}
    assert stored == {gguf.GGMLQuantizationType.F32}


@pytest.mark.parametrize("vocab", [6, 7])
def test_log_probabilities_to_16_bits(vocab: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, vocab, (2, 16))
    logits = (4 * rng.standard_normal((2, len(scored_rows(16)), vocab))).astype(np.float32)
    logits[0, 0] = 1.5  # nothing to scale
    logits[1, 0, 2] = logits[1, 0].max() - 30  # clipped
    write_base(tmp_path / "base", ids, vocab, iter(logits))
    back = list(read_base(tmp_path / "base"))
    assert len(back) == 2
    for (read_ids, read), row_ids, of_window in zip(back, ids, logits, strict=True):
        assert np.array_equal(read_ids, row_ids)
        exact = of_window.astype(np.float64)
        exact -= np.log(np.exp(exact).sum(axis=1, keepdims=True))
        exact = np.maximum(exact, exact.max(axis=1, keepdims=True) - 16)
        # Half of one of 65535 steps over at most 16 nats, and float32 roundings of numbers up to 32.
        assert np.abs(read - exact).max() <= 16 / 65535 / 2 + 32 * 2**-22


def test_a_base_file_is_what_llama_perplexity_reads(tmp_path: Path) -> None:
    """Byte by byte, as in tools/perplexity/perplexity.cpp."""
    logits = np.array([[0.0, math.log(3)]], np.float32)
    write_base(tmp_path / "base", np.array([[5, 6, 7, 8]]), 2, [logits])
    data = (tmp_path / "base").read_bytes()
    assert data[:8] == b"_logits_"
    assert np.frombuffer(data[8:36], "<i4").tolist() == [4, 2, 1, 5, 6, 7, 8]
    scale, low = np.frombuffer(data[36:44], "<f4")
    assert np.frombuffer(data[44:], "<u2").tolist() == [0, 65535]
    assert low == pytest.approx(math.log(1 / 4), rel=1e-6)
    assert low + 65535 * scale == pytest.approx(math.log(3 / 4), rel=1e-5)


def test_running_means_become_the_windows_own() -> None:
    scores = parse_scores(SAID)
    assert scores.window_kld == pytest.approx([0.1, 0.5, 0.15])
    assert scores.window_log_ppl_ratio == pytest.approx([0.2, -0.4, 0.2])
    assert scores == Scores(scores.window_kld, scores.window_log_ppl_ratio, 0.81196)


def test_no_table() -> None:
    with pytest.raises(OSError, match="no table"):
        parse_scores("llama_model_load: error loading model")
