"""Text to token ids and token ids to bytes, over a byte-level `tokenizer.json`.

In: the path of a tokenizer.json. Out: a `Tokenizer`. Knows nothing about chat or generation. Text is always encoded
without added special tokens: rendered chat text carries its own, and GLM's post-processor would add them twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from edge.runtime.errors import TokenizerError


class Tokenizer:
    """A byte-level BPE tokenizer: every token is a fixed run of bytes.

    Raises TokenizerError when the file cannot be read or decodes in another way.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises plain Exception
            raise TokenizerError(f"{path} does not read as a tokenizer.json ({error})") from error
        decoder = type(self._tokenizer.decoder).__name__
        if decoder != "ByteLevel":
            raise TokenizerError(f"{path} decodes with {decoder}, expected ByteLevel (GLM-4, GLM-Edge, GPT-2 style)")
        added = self._tokenizer.get_added_tokens_decoder()
        self._special: frozenset[int] = frozenset(i for i, token in added.items() if token.special)
        self._bytes_of: dict[int, bytes] = {}  # of the tokens seen so far
        self.num_tokens: int = max(self._tokenizer.get_vocab_size(with_added_tokens=True), max(added, default=-1) + 1)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; special tokens are recognised where they stand in it, and none is added."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

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
