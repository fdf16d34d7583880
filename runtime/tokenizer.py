"""Text to token ids and token ids to bytes, over a byte-level `tokenizer.json`.

In: a tokenizer.json. Out: a `Tokenizer`. Knows nothing about chat or generation. Text is always encoded without added
special tokens: rendered chat text carries its own, and GLM's post-processor would add them twice.

The library is told once to see no special tokens in text, and text is split at them here: whether it sees them is a
property of the whole tokenizer there, which threads would have to take turns with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import tokenizers

from edge.runtime.errors import PromptError, TokenizerError
from edge.runtime.markup import MarkedText, Markup, split_marked
from edge.runtime.unicode import check_text

# What Rust's \s matches, and so what tokens that take the white space beside them take; str.strip() takes more.
_WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


class Tokenizer:
    """A byte-level BPE tokenizer: every token is a fixed run of bytes.

    Raises TokenizerError when the file cannot be read or decodes in another way.
    """

    def __init__(self, path: Path) -> None:
        self._open(lambda: tokenizers.Tokenizer.from_file(str(path)), str(path))

    @classmethod
    def from_text(cls, tokenizer_json: str | bytes) -> Self:
        """Of the content of a tokenizer.json."""
        self = cls.__new__(cls)
        read = tokenizers.Tokenizer.from_str if isinstance(tokenizer_json, str) else tokenizers.Tokenizer.from_buffer
        self._open(lambda: read(tokenizer_json), "the text")
        return self

    def _open(self, read: Callable[[], Any], name: str) -> None:
        try:
            self._tokenizer: Any = read()
        except Exception as error:  # tokenizers raises plain Exception
            raise TokenizerError(f"{name} does not read as a tokenizer.json ({error})") from error
        decoder = type(self._tokenizer.decoder).__name__
        if decoder != "ByteLevel":
            raise TokenizerError(f"{name} decodes with {decoder}, expected ByteLevel (GLM-4, GLM-Edge, GPT-2 style)")
        self._tokenizer.encode_special_tokens = True  # what looks like one in a text is text
        added = self._tokenizer.get_added_tokens_decoder()
        self._special: frozenset[int] = frozenset(i for i, token in added.items() if token.special)
        self._special_ids: dict[str, int] = {added[i].content: i for i in self._special}
        self._takes_left = {token.content for token in added.values() if token.special and token.lstrip}
        self._takes_right = {token.content for token in added.values() if token.special and token.rstrip}
        first = [token for token in added.values() if not token.normalized]  # found in the text as it is
        odd = any(token.lstrip or token.rstrip or token.single_word for token in first)
        self._plain = not odd and not any(token.special and token.normalized for token in added.values())
        self.markup = Markup(self._special_ids, [token.content for token in first if not token.special])
        self._bytes_of: dict[int, bytes] = {}  # of the tokens seen so far
        self.num_tokens: int = max(self._tokenizer.get_vocab_size(with_added_tokens=True), max(added, default=-1) + 1)

    def to_json(self) -> str:
        """The content of a tokenizer.json of the same tokenizer."""
        text: str = self._tokenizer.to_str()
        return text

    def encode(self, text: str, *, parse_special: bool = True) -> list[int]:
        """Ids of `text`; none is added. Raises PromptError for what is no text, or no valid Unicode.

        parse_special: special tokens are recognised where they stand in it. Else all of it is text.
        """
        check_text(text, "the text")
        if not parse_special:
            return self._encode_text(text)
        if not self._plain:
            ids: list[int] = self._seeing_special.encode(text, add_special_tokens=False).ids
            return ids
        return self._join(self.markup.split(text))

    def encode_marked(self, text: MarkedText) -> list[int]:
        """Ids of a rendered conversation: its marked special tokens, and everything else as text."""
        check_text(text, "the text")
        return self._join(self._without_taken(list(split_marked(text))))

    def _without_taken(self, pieces: Sequence[tuple[str, bool]]) -> Iterator[tuple[str, bool]]:
        """The pieces, less the white space that a special token takes from the text beside it."""
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
        """Ids of text, none of them special."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        if self._special.isdisjoint(ids):
            return ids
        # Special tokens that are words of the vocabulary as well come about like any word.
        bounds = [0, *self.markup.seams(text), len(text)]
        parts = [text[a:b] for a, b in pairwise(bounds)]
        ids = [i for part in parts for i in self._tokenizer.encode(part, add_special_tokens=False).ids]
        if found := self._special.intersection(ids):
            token = self.token_text(min(found))
            raise PromptError(f"the text holds {token!r}, which this tokenizer cannot write but as a special token")
        return ids

    @cached_property
    def _seeing_special(self) -> Any:
        """The library's own way to find special tokens, for tokenizers with other rules than the plain ones."""
        return tokenizers.Tokenizer.from_str(self.to_json())

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, without special tokens; bytes that are no UTF-8 become U+FFFD."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for; empty for special tokens and for ids without a token."""
        if token_id not in self._bytes_of:
            self._bytes_of[token_id] = self._find_bytes(token_id)
        return self._bytes_of[token_id]

    def _find_bytes(self, token_id: int) -> bytes:
        if token_id in self._special:
            return b""
        token: str | None = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        table = self._byte_of_char
        if all(char in table for char in token):
            return bytes(table[char] for char in token)
        return token.encode("utf-8")  # an added token in plain text

    def token_id(self, token: str) -> int | None:
        """Id of a token by its exact text."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def token_text(self, token_id: int) -> str:
        """A token as it stands in the vocabulary, special tokens included; empty for ids without a token."""
        return self._tokenizer.id_to_token(token_id) or ""

    def is_special(self, token_id: int) -> bool:
        """Whether a token is markup and never part of the text."""
        return token_id in self._special

    @cached_property
    def _byte_of_char(self) -> dict[str, int]:
        return byte_of_character()


def byte_of_character() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes (openai/gpt-2 src/encoder.py, bytes_to_unicode)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(hidden)}
