"""The tokenizer of a checkpoint as a `tokenizer.json`.

In: the vocabulary, merges and token types that a GGUF file carries. Out: a `tokenizers.Tokenizer`. A checkpoint folder
that holds a tokenizer.json needs none of this. Knows nothing about models or bundles.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from edge.runtime.errors import TokenizerError


class TokenType(IntEnum):
    """`tokenizer.ggml.token_type` (ggml-org/llama.cpp include/llama.h, enum llama_token_type)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _single_digits() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


def _cl100k() -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(_CL100K), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


# `tokenizer.ggml.pre` -> how text is cut before merging (ggml-org/llama.cpp src/llama-vocab.cpp).
PRE_TOKENIZERS = {
    "gpt-2": _gpt2,
    "smollm": _single_digits,
    "llama-bpe": _cl100k,
    "chatglm-bpe": _cl100k,
    "glm4": _cl100k,
}
# Vocabularies in tiktoken's order take a whole word that is in the vocabulary before any merge.
_WHOLE_WORDS_FIRST = frozenset({"llama-bpe", "chatglm-bpe", "glm4"})


def from_gguf(
    model: str, pre: str, tokens: Sequence[str], token_types: Sequence[int], merges: Sequence[str]
) -> Tokenizer:
    """A byte-level BPE tokenizer from GGUF metadata.

    Raises TokenizerError for another kind of tokenizer, an unknown way to cut text, or a merge that is no pair.
    """
    advice = "put the model's tokenizer.json into the same folder as the GGUF file"
    if model != "gpt2":
        raise TokenizerError(f"tokenizer.ggml.model is {model!r}, expected 'gpt2' (byte-level BPE); {advice}")
    if pre not in PRE_TOKENIZERS:
        raise TokenizerError(f"tokenizer.ggml.pre is {pre!r}, known are {', '.join(PRE_TOKENIZERS)}; {advice}")
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) != len(tokens) or len(token_types) != len(tokens):
        raise TokenizerError(
            f"tokenizer.ggml.tokens: {len(tokens)} tokens, {len(vocab)} different, {len(token_types)} types; {advice}"
        )
    pairs = [tuple(merge.split(" ")) for merge in merges]
    if any(len(pair) != 2 for pair in pairs):
        raise TokenizerError(f"tokenizer.ggml.merges holds an entry that is not two tokens; {advice}")
    try:
        bpe = models.BPE(vocab, pairs, ignore_merges=pre in _WHOLE_WORDS_FIRST)
    except Exception as error:  # tokenizers raises plain Exception
        raise TokenizerError(f"tokenizer.ggml.merges do not fit the vocabulary ({error}); {advice}") from error
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[pre]()
    tokenizer.decoder = decoders.ByteLevel()
    added: dict[TokenType, list[AddedToken]] = {kind: [] for kind in (TokenType.CONTROL, TokenType.USER_DEFINED)}
    for token, kind in zip(tokens, token_types, strict=True):
        if kind in (TokenType.CONTROL, TokenType.USER_DEFINED):
            special = kind == TokenType.CONTROL
            added[TokenType(kind)].append(AddedToken(token, special=special, normalized=False))
    tokenizer.add_special_tokens(added[TokenType.CONTROL])
    tokenizer.add_tokens(added[TokenType.USER_DEFINED])
    return tokenizer
