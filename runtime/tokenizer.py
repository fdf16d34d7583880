"""Text to token ids and token ids to bytes, over a byte-level `tokenizer.json`.

In: a tokenizer.json. Out: a `Tokenizer`. Knows nothing about chat or generation. Text is always encoded without adding
special tokens: rendered chat text has its own, and GLM's post-processor would add them twice.

The library is told once not to recognise special tokens in text, and text is split at them here. In the library, this
is a property of the whole tokenizer, so threads would have to take turns changing it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Self, TypeVar

import tokenizers

from edge.runtime.errors import PromptError, TokenizerError, in_words, shown, telling_line
from edge.runtime.files import read_file
from edge.runtime.markup import MarkedText, Markup, split_marked
from edge.runtime.tokenizer_json import ADVICE, check_tokenizer_json
from edge.runtime.unicode import check_text

T = TypeVar("T")

MAX_TEXT = 50_000_000  # characters of a text; a context of a million tokens has about 4 million

# What Rust's \s matches: the white space that a token with lstrip or rstrip takes. str.strip() would take more.
_WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
# Some tokenizers have these as special tokens, others as words; they are part of the text in both.
_SHOWN = frozenset(["<think>", "</think>", "<answer>", "</answer>"])
_MOST_PADDING = 10_000  # rows of an embedding without a token; it is usually padded to a multiple of some number
MOST_IDS = 10_000_000  # of tokens
_LONG_TEXT = 10_000  # characters
_PANICS = "pyo3_runtime"  # module of the exceptions that Rust's panics become


class Tokenizer:
    """A byte-level BPE tokenizer: every token is a fixed run of bytes.

    num_rows: rows of the model's embedding; ids beyond them do not belong to the model, and `num_tokens` and `to_json`
    omit them. Truncation, padding and dropout in the file are for training, and are ignored. Raises TokenizerError when
    the file cannot be read or does not decode bytes, and when `check_tokenizer_json` refuses it.
    """

    def __init__(self, path: Path, num_rows: int | None = None) -> None:
        self._open(_decoded(read_file(path, TokenizerError, ADVICE), str(path)), str(path), num_rows)

    @classmethod
    def from_text(cls, tokenizer_json: str | bytes, num_rows: int | None = None) -> Self:
        """Make a tokenizer from the content of a tokenizer.json."""
        self = cls.__new__(cls)
        self._open(_decoded(tokenizer_json, "the text"), "the text", num_rows)
        return self

    def _open(self, text: str, name: str, num_rows: int | None) -> None:
        check_tokenizer_json(text, name)
        self._tokenizer: Any = _trusted(
            lambda: tokenizers.Tokenizer.from_str(text), f"{name} cannot be read as a tokenizer.json"
        )
        decoder = type(self._tokenizer.decoder).__name__
        if decoder != "ByteLevel":
            raise TokenizerError(f"{name} decodes with {decoder}, expected ByteLevel (GLM-4, GLM-Edge, GPT-2 style)")
        _for_use(self._tokenizer)
        self._tokenizer.encode_special_tokens = True  # the library then treats them as text
        self._name, self._num_rows = name, num_rows
        added = self._tokenizer.get_added_tokens_decoder()
        self._special: frozenset[int] = frozenset(i for i, token in added.items() if token.special)
        self._special_ids: dict[str, int] = {added[i].content: i for i in self._special}
        self._shown = {i for i in self._special if added[i].content in _SHOWN}
        self._takes_left = {token.content for token in added.values() if token.special and token.lstrip}
        self._takes_right = {token.content for token in added.values() if token.special and token.rstrip}
        first = [token for token in added.values() if not token.normalized]  # found before normalization
        odd = any(token.lstrip or token.rstrip or token.single_word for token in first)
        self._plain = not odd and not any(token.special and token.normalized for token in added.values())
        self.markup = Markup(self._special_ids, [token.content for token in first if not token.special])
        self._bytes_of: dict[int, bytes] = {}  # token id -> its bytes, for tokens seen so far
        self.num_tokens: int = self._last_id(num_rows) + 1  # ids that a model may be given, and may choose

    def _last_id(self, num_rows: int | None) -> int:
        """Return the largest id of a token, below `num_rows` if given."""
        if num_rows is not None:  # search from above: listing all of GLM-4's tokens takes 0.1 s
            above = range(num_rows - 1, max(num_rows - _MOST_PADDING, 0) - 1, -1)
            if (found := next((i for i in above if self._tokenizer.id_to_token(i) is not None), None)) is not None:
                return found
        ids = self._tokenizer.get_vocab(with_added_tokens=True).values()
        return max((i for i in ids if num_rows is None or i < num_rows), default=-1)

    def to_json(self) -> str:
        """Return this tokenizer as the content of a tokenizer.json."""
        return self._text if self._num_rows is None else _below(self._text, self._num_rows)

    @property
    def _text(self) -> str:
        """The whole tokenizer as JSON. The library counts up to the largest id, so its size is checked."""
        largest = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
        if largest > MOST_IDS:
            raise TokenizerError(f"{self._name} has the id {largest:,}, expected at most {MOST_IDS:,}; {ADVICE}")
        text: str = self._tokenizer.to_str()
        return text

    def encode(self, text: str, *, parse_special: bool = True) -> list[int]:
        """Return the ids of `text`, and no others. Raises PromptError for anything but valid Unicode text.

        parse_special: recognise special tokens in it; otherwise, all of it is text.
        """
        _check_length(check_text(text, "the text"))
        if not parse_special:
            return self._encode_text(text)
        if not self._plain:
            return _encoded(self._seeing_special, text, self._name)
        return self._join(self.markup.split(text))

    def encode_marked(self, text: MarkedText) -> list[int]:
        """Return ids of a rendered conversation: its marked special tokens, the rest as text. Raises PromptError."""
        _check_length(check_text(text, "the text"))
        return self._join(self._without_taken(list(split_marked(text))))

    def _without_taken(self, pieces: Sequence[tuple[str, bool]]) -> Iterator[tuple[str, bool]]:
        """Yield the pieces without the white space that special tokens take from the text beside them."""
        tokens = [piece if special else "" for piece, special in pieces]
        for (piece, special), before, after in zip(pieces, ["", *tokens], [*tokens[1:], ""], strict=False):
            left = not special and before in self._takes_right
            right = not special and after in self._takes_left
            text = piece.lstrip(_WHITE_SPACE) if left else piece
            yield text.rstrip(_WHITE_SPACE) if right else text, special

    def _join(self, pieces: Iterable[tuple[str, bool]]) -> list[int]:
        ids: list[int] = []
        for piece, special in pieces:
            if special:
                ids.append(self._special_ids[piece])
            else:
                ids += self._encode_text(piece)
        return ids

    def _encode_text(self, text: str) -> list[int]:
        """Return ids of text, none of them special."""
        ids = _encoded(self._tokenizer, text, self._name)
        if self._special.isdisjoint(ids):
            return ids
        # A special token that is also in the vocabulary can result from text like any other word.
        bounds = [0, *self.markup.seams(text), len(text)]
        parts = [text[a:b] for a, b in pairwise(bounds)]
        ids = [i for part in parts for i in _encoded(self._tokenizer, part, self._name)]
        if found := self._special.intersection(ids):
            token = self.token_text(min(found))
            raise PromptError(
                f"the text holds {shown(token)}, which this tokenizer can only write as a special token; remove it"
            )
        return ids

    @cached_property
    def _seeing_special(self) -> Any:
        """The library's own search for special tokens, for tokenizers whose rules `Markup` does not know."""
        text = self._text
        return _trusted(lambda: tokenizers.Tokenizer.from_str(text), f"{self._name} has two tokens of one id, or worse")

    @cached_property
    def added_ids(self) -> list[int]:
        """What the tokenizer puts before a text by itself, and `encode` never does."""
        failure = f"{self._name} is a tokenizer.json that fails on a text"
        encoded = _trusted(lambda: self._tokenizer.encode("a", add_special_tokens=True), failure)
        added = next(i for i, is_added in enumerate(encoded.special_tokens_mask) if not is_added)
        return list(encoded.ids[:added])

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, without special tokens but those around reasoning.

        Bytes that are not UTF-8 become U+FFFD.
        """
        parts: list[str] = []
        begin = 0
        for end in [i for i, token_id in enumerate(ids) if token_id in self._shown] if self._shown else ():
            parts += [self._decode(ids[begin:end]), self.token_text(ids[end])]
            begin = end + 1
        return "".join([*parts, self._decode(ids[begin:])])

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of a token; empty for special tokens that `decode` leaves out, and for ids without one."""
        if token_id not in self._bytes_of:
            self._bytes_of[token_id] = self._find_bytes(token_id)
        return self._bytes_of[token_id]

    def _find_bytes(self, token_id: int) -> bytes:
        if token_id in self._special and token_id not in self._shown:
            return b""
        token: str | None = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        table = self._byte_of_char
        if all(char in table for char in token):
            return bytes(table[char] for char in token)
        return token.encode("utf-8")  # an added token in plain text

    def token_id(self, token: str) -> int | None:
        """Return the id of a token with exactly this text, or None."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def token_text(self, token_id: int) -> str:
        """Return a token as the vocabulary writes it, also a special one; empty for ids without a token."""
        return self._tokenizer.id_to_token(token_id) or ""

    def is_special(self, token_id: int) -> bool:
        """Whether a token is markup and never part of the text."""
        return token_id in self._special

    @cached_property
    def _byte_of_char(self) -> dict[str, int]:
        return byte_of_character()


def _decoded(content: str | bytes, name: str) -> str:
    """Return text without a byte-order mark. Raises TokenizerError."""
    try:
        return content.decode("utf-8-sig") if isinstance(content, bytes) else content.removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{name} is not UTF-8 at byte {error.start}; {ADVICE}") from error


def _trusted(call: Callable[[], T], failure: str) -> T:
    """Return what a call of the library returns. Raises TokenizerError for all that it raises, even panics of Rust."""
    try:
        return call()
    except BaseException as error:  # a PanicException is not an Exception
        if not isinstance(error, Exception) and type(error).__module__ != _PANICS:
            raise
        raise TokenizerError(f"{failure} ({in_words(telling_line(error))})") from error


def _encoded(tokenizer: Any, text: str, name: str) -> list[int]:
    failure = f"{name} is a tokenizer.json that fails on a text"
    if len(text) < _LONG_TEXT:
        found = _trusted(lambda: tokenizer.encode(text, add_special_tokens=False), failure)
    else:  # a batch of one: `encode` holds the interpreter's lock, a second a megabyte, and all threads wait
        (found,) = _trusted(lambda: tokenizer.encode_batch([text], add_special_tokens=False), failure)
    ids: list[int] = found.ids
    return ids


def _for_use(tokenizer: Any) -> None:
    """Make it encode a whole text, without adding anything, and always in the same way."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if getattr(tokenizer.model, "dropout", None) is not None:
        tokenizer.model.dropout = None


def _check_length(text: str) -> None:
    """Raises PromptError."""
    if len(text) > MAX_TEXT:
        raise PromptError(f"the text has {len(text):,} characters, expected at most {MAX_TEXT:,}; give it in parts")


def _below(tokenizer_json: str, num_rows: int) -> str:
    """Return a tokenizer.json without the tokens whose ids are `num_rows` or more."""
    content = json.loads(tokenizer_json)
    model, added = content["model"], content["added_tokens"]
    vocab = model["vocab"] if isinstance(model["vocab"], dict) else {}
    gone = {token for token, i in vocab.items() if i >= num_rows}
    kept = [token for token in added if token["id"] < num_rows]
    if not gone and len(kept) == len(added):
        return tokenizer_json
    content["added_tokens"] = kept
    # The library numbers added tokens after the vocabulary, which is smaller now; those within it keep their ids.
    model["vocab"] = {token: i for token, i in vocab.items() if token not in gone}
    if gone:
        model["vocab"] |= {token["content"]: token["id"] for token in kept}
    if "merges" in model:
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        model["merges"] = [pair for pair in pairs if gone.isdisjoint((*pair, "".join(pair)))]
    return json.dumps(content, ensure_ascii=False)


def byte_of_character() -> dict[str, int]:
    """Return the byte for each of GPT-2's printable stand-ins (openai/gpt-2 src/encoder.py, bytes_to_unicode)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(hidden)}
