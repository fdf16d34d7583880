"""The tokenizer of a checkpoint as a `tokenizer.json`.

In: the vocabulary, merges and token types that a GGUF file carries, or tiktoken's ranks and the special tokens beside
them, as GLM-4 was first published. Out: a `tokenizers.Tokenizer`. A checkpoint folder that holds a tokenizer.json needs
none of this. Knows nothing about models or bundles.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from enum import IntEnum
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models

from edge.export.checkpoint.pre_tokenizers import PRE_TOKENIZERS, cl100k
from edge.runtime.errors import TokenizerError, shown
from edge.runtime.tokenizer import byte_of_character
from edge.runtime.tokenizer_json import ADVICE, MAX_TOKEN


class TokenType(IntEnum):
    """`tokenizer.ggml.token_type` (ggml-org/llama.cpp include/llama.h, enum llama_token_type)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def from_gguf(
    model: str, pre: str, tokens: Sequence[str], token_types: Sequence[int], merges: Sequence[str]
) -> Tokenizer:
    """A byte-level BPE tokenizer from GGUF metadata.

    Raises TokenizerError for another kind of tokenizer, an unknown way to cut text, or a merge that is not a pair.
    """
    advice = "put the model's tokenizer.json into the same folder as the GGUF file"
    if model != "gpt2":
        raise TokenizerError(f"tokenizer.ggml.model is {model!r}, expected 'gpt2' (byte-level BPE); {advice}")
    if pre not in PRE_TOKENIZERS:
        raise TokenizerError(f"tokenizer.ggml.pre is {pre!r}, known are {', '.join(PRE_TOKENIZERS)}; {advice}")
    for key, texts in (("tokens", tokens), ("merges", merges)):
        if odd := [text for text in texts if not isinstance(text, str)]:
            raise TokenizerError(f"tokenizer.ggml.{key} holds {shown(odd[0])}, expected texts; {advice}")
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) != len(tokens) or len(token_types) != len(tokens):
        raise TokenizerError(
            f"tokenizer.ggml.tokens: {len(tokens)} tokens, {len(vocab)} different, {len(token_types)} types; {advice}"
        )
    pairs = [tuple(merge.split(" ")) for merge in merges]
    if any(len(pair) != 2 for pair in pairs):
        raise TokenizerError(f"tokenizer.ggml.merges holds an entry that is not two tokens; {advice}")
    try:
        bpe = models.BPE(vocab, pairs, ignore_merges=PRE_TOKENIZERS[pre].whole_words_first)
    except Exception as error:  # tokenizers raises plain Exception
        raise TokenizerError(
            f"tokenizer.ggml.merges do not fit the vocabulary ({shown(str(error))}); {advice}"
        ) from error
    tokenizer = Tokenizer(bpe)
    if (normalizer := PRE_TOKENIZERS[pre].normalizer) is not None:
        tokenizer.normalizer = normalizer()
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[pre].cut()
    tokenizer.decoder = decoders.ByteLevel()
    added: dict[TokenType, list[AddedToken]] = {kind: [] for kind in (TokenType.CONTROL, TokenType.USER_DEFINED)}
    for token, kind in zip(tokens, token_types, strict=True):
        if kind in (TokenType.CONTROL, TokenType.USER_DEFINED):
            special = kind == TokenType.CONTROL
            added[TokenType(kind)].append(AddedToken(token, special=special, normalized=False))
    check_added([*added[TokenType.CONTROL], *added[TokenType.USER_DEFINED]])
    tokenizer.add_special_tokens(added[TokenType.CONTROL])
    tokenizer.add_tokens(added[TokenType.USER_DEFINED])
    return tokenizer


# GLM-4's special tokens, in the order of their ids, which follow the ranks.
_GLM4_RANKS = 151_329
_GLM4_SPECIAL = (
    "<|endoftext|>",
    "[MASK]",
    "[gMASK]",
    "[sMASK]",
    "<sop>",
    "<eop>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
    "<|begin_of_image|>",
    "<|end_of_image|>",
    "<|begin_of_video|>",
    "<|end_of_video|>",
)
_FLAGS = ("special", "normalized", "lstrip", "rstrip", "single_word")


def special_tokens(tokenizer_config: Mapping[str, object]) -> dict[int, AddedToken]:
    """What `added_tokens_decoder` of a tokenizer_config.json says: id -> token; empty where it says nothing.

    Raises TokenizerError for an entry without an id or text.
    """
    entries = tokenizer_config.get("added_tokens_decoder") or {}
    found: dict[int, AddedToken] = {}
    for key, entry in entries.items() if isinstance(entries, Mapping) else [("added_tokens_decoder", entries)]:
        known = entry if isinstance(entry, Mapping) else {}
        text = known.get("content")
        if not (isinstance(text, str) and text and key.isdecimal()):
            raise TokenizerError(
                f"tokenizer_config.json: {shown(key)} is {shown(entry)}, expected an id with its content; download it "
                "again"
            )
        found[int(key)] = added_token(known)
    return found


def check_added(tokens: Sequence[AddedToken]) -> None:
    """Raises TokenizerError for a token so long that the library would take minutes to look for it."""
    if longest := next((token.content for token in tokens if len(token.content) > MAX_TOKEN), None):
        raise TokenizerError(
            f"the special token {shown(longest)} has {len(longest):,} characters, expected at most {MAX_TOKEN:,}; "
            f"{ADVICE}"
        )


def added_token(entry: Mapping[str, object]) -> AddedToken:
    """The token that a mapping describes: its text as `content`, and properties."""
    return AddedToken(str(entry["content"]), **{flag: entry[flag] is True for flag in _FLAGS if flag in entry})


def from_tiktoken(path: Path, special: Mapping[int, AddedToken]) -> Tokenizer:
    """A byte-level BPE tokenizer from tiktoken's ranks, one `base64 rank` a line, and tokens beyond them by id.

    Without `special`, GLM-4's own are taken where the number of ranks is GLM-4's. Text is cut as GLM-4 cuts it.
    Raises TokenizerError for a file that is not such a list, and for special tokens that do not fit it.
    """
    tokens = _read_ranks(path)
    if not special and len(tokens) == _GLM4_RANKS:
        special = {
            _GLM4_RANKS + i: AddedToken(text, special=True, normalized=False) for i, text in enumerate(_GLM4_SPECIAL)
        }
    if not special:
        raise TokenizerError(
            f"{path}: {len(tokens)} ranks and no special tokens; put the tokenizer_config.json with "
            "added_tokens_decoder, or a tokenizer.json, into the same folder"
        )
    if min(special) != len(tokens):
        raise TokenizerError(
            f"{path}: ranks 0 to {len(tokens) - 1}, special tokens from {min(special)} on, expected them to follow; "
            "tokenizer.model or tokenizer_config.json is truncated or of another model, download both again"
        )
    shown = {byte: character for character, byte in byte_of_character().items()}
    names = [token.decode("latin-1").translate(shown) for token in tokens]
    vocab = {name: rank for rank, name in enumerate(names)}
    for i in sorted(special):
        if (first := vocab.setdefault(special[i].content, i)) != i:
            raise TokenizerError(
                f"{path}: special token {i}, {special[i].content!r}, is also token {first}; download "
                "tokenizer_config.json again"
            )
    tokenizer = Tokenizer(models.BPE(vocab, [(names[a], names[b]) for a, b in _merges(tokens)], ignore_merges=True))
    tokenizer.pre_tokenizer = cl100k()
    tokenizer.decoder = decoders.ByteLevel()
    check_added(list(special.values()))
    tokenizer.add_tokens([special[i] for i in sorted(special)])
    return tokenizer


def _read_ranks(path: Path) -> list[bytes]:
    """The tokens in the order of their ranks."""
    advice = "download it again, or put the model's tokenizer.json into the same folder"
    by_rank: dict[int, bytes] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            text, digits = line.split()
            token, rank = base64.b64decode(text, validate=True), int(digits)
        except ValueError:
            token, rank = b"", 0
        if not token or rank < 0:
            raise TokenizerError(f"{path}: line {number} is {line[:60]!r}, expected base64 and a rank; {advice}")
        if rank in by_rank:
            raise TokenizerError(f"{path}: line {number} gives rank {rank} a second time; {advice}")
        by_rank[rank] = token
    if missing := [rank for rank in range(len(by_rank)) if rank not in by_rank]:
        raise TokenizerError(f"{path}: {len(by_rank)} ranks, and {missing[0]} is not among them; {advice}")
    tokens = [by_rank[rank] for rank in range(len(by_rank))]
    rank_of = {token: rank for rank, token in enumerate(tokens)}
    if len(rank_of) != len(tokens):
        rank = next(rank for rank, token in enumerate(tokens) if rank_of[token] != rank)
        raise TokenizerError(f"{path}: ranks {rank} and {rank_of[tokens[rank]]} are the same token; {advice}")
    if absent := [byte for byte in range(256) if bytes([byte]) not in rank_of]:
        raise TokenizerError(f"{path}: {len(absent)} of 256 bytes have no rank, first {absent[0]:#04x}; {advice}")
    return tokens


def _merges(tokens: Sequence[bytes]) -> list[tuple[int, int]]:
    """For each token, in the order of ranks, the two tokens that tiktoken makes it from.

    tiktoken merges the neighbours whose bytes together have the lowest rank, the leftmost first. Inside the bytes of a
    token that comes out, these steps are the same whatever surrounds them, so there is one last pair for each
    token, and BPE over these pairs takes tiktoken's steps. That pair may hold higher ranks than its own. A token whose
    bytes end as something else has no pair: it is found only as a whole word, which ignore_merges does.
    """
    rank_of = {token: rank for rank, token in enumerate(tokens)}
    pairs = (_last_pair(token, rank_of) for token in tokens if len(token) > 1)
    return [(rank_of[pair[0]], rank_of[pair[1]]) for pair in pairs if pair is not None]


def _last_pair(token: bytes, rank_of: Mapping[bytes, int]) -> tuple[bytes, bytes] | None:
    never = len(rank_of)
    parts = [token[i : i + 1] for i in range(len(token))]
    ranks = [rank_of.get(token[i : i + 2], never) for i in range(len(token) - 1)]  # of each part with its successor
    while len(parts) > 2:
        lowest = min(ranks)
        if lowest == never:
            return None
        i = ranks.index(lowest)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
        del ranks[i]
        if i > 0:
            ranks[i - 1] = rank_of.get(parts[i - 1] + parts[i], never)
        if i < len(ranks):
            ranks[i] = rank_of.get(parts[i] + parts[i + 1], never)
    return parts[0], parts[1]
