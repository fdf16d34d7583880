"""How byte-level tokenizers cut text before they merge, by the names that GGUF files have for it.

In: `tokenizer.ggml.pre`. Out: a record of what to give the tokenizers library. Adding a tokenizer is adding a record.
Knows nothing about vocabularies, files or models.

Sources: src/llama-vocab.cpp of ggml-org/llama.cpp for the names and expressions; Qwen2Converter in
convert_slow_tokenizer.py of huggingface/transformers 4.57.6 for Qwen's normalizer, which llama.cpp leaves out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tokenizers import Regex, normalizers, pre_tokenizers


@dataclass(frozen=True)
class PreTokenizer:
    """What happens to text before merges."""

    cut: Callable[[], pre_tokenizers.PreTokenizer]
    whole_words_first: bool = False  # a word that is in the vocabulary is taken before any merge, as tiktoken does
    normalizer: Callable[[], normalizers.Normalizer] | None = None


_EXPRESSION = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CL100K = _EXPRESSION % r"\p{N}{1,3}"
QWEN2 = _EXPRESSION % r"\p{N}"  # digits one by one


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _single_digits() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


def _by_expression(expression: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(expression), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def cl100k() -> pre_tokenizers.PreTokenizer:
    """As GPT-4, Llama 3 and GLM-4 cut."""
    return _by_expression(CL100K)


PRE_TOKENIZERS = {
    "gpt-2": PreTokenizer(_gpt2),
    "smollm": PreTokenizer(_single_digits),
    "llama-bpe": PreTokenizer(cl100k, whole_words_first=True),
    "chatglm-bpe": PreTokenizer(cl100k, whole_words_first=True),
    "glm4": PreTokenizer(cl100k, whole_words_first=True),
    "qwen2": PreTokenizer(lambda: _by_expression(QWEN2), normalizer=normalizers.NFC),
}
