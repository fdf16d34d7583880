"""Log-probabilities in the lists of /v1/completions, of an echoed prompt and of the answer after it.

In: what the runtime tells of tokens, whole or as it comes. Out: JSON: tokens, their log-probabilities and those of the
best ones, and where each begins in the choice's text. Knows nothing about requests.

Unlike a text, these lists have special tokens in an echo, and the stop id of an answer: programs that score texts count
one entry for every token that they sent, and one for each that was made.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edge.runtime.chunk import PromptLogprobs
from edge.runtime.logprobs import TokenLogprob
from edge.runtime.tokenizer import Tokenizer
from edge.wire.logprobs import Entry, JsonBody


@dataclass(frozen=True, slots=True)
class Echo:
    """What a choice begins with."""

    text: str
    ids: Sequence[int]


def echo_of(prompt: str | Sequence[int], tokenizer: Tokenizer) -> Echo:
    """Return the echo of a prompt, special tokens included."""
    if isinstance(prompt, str):
        return Echo(prompt, tokenizer.encode(prompt))
    return Echo(text_of(prompt, tokenizer), prompt)


def text_of(ids: Iterable[int], tokenizer: Tokenizer) -> str:
    """Return ids as text, with special tokens as the vocabulary writes them."""
    return b"".join(shown_bytes(token_id, tokenizer) for token_id in ids).decode("utf-8", "replace")


def shown_bytes(token_id: int, tokenizer: Tokenizer) -> bytes:
    """Return the bytes of a token, and of a special one what the vocabulary calls it."""
    if tokenizer.is_special(token_id):
        return tokenizer.token_text(token_id).encode()
    return tokenizer.token_bytes(token_id)


class OldLists:
    """The lists of one choice, which may come in parts."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._begin_at(0)

    def prompt(self, echo: Echo, found: PromptLogprobs) -> JsonBody:
        """Return those of an echo, which are empty if there are no log-probabilities; the answer's come after it."""
        tokens = zip(echo.ids[: len(found)], found, strict=True)
        lists = self._lists([(i, entry, shown_bytes(i, self._tokenizer)) for i, entry in tokens])
        self._begin_at(len(echo.text))
        return lists

    def answer(self, entries: Sequence[Entry]) -> JsonBody:
        """Return those of the answer's next tokens."""
        return self._lists([(entry.token_id, entry, data) for entry, data in entries])

    def _begin_at(self, offset: int) -> None:
        self._offset = offset  # in the choice's text, in characters
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")  # several tokens may spell a character

    def _lists(self, tokens: Sequence[tuple[int, TokenLogprob | None, bytes]]) -> JsonBody:
        offsets = list[int]()
        for _, _, data in tokens:
            offsets.append(self._offset)
            self._offset += len(self._decoder.decode(data))
        return {
            "tokens": [self._name(token_id) for token_id, _, _ in tokens],
            "token_logprobs": [None if entry is None else entry.logprob for _, entry, _ in tokens],
            "top_logprobs": [None if entry is None else self._best(entry) for _, entry, _ in tokens],
            "text_offset": offsets,
        }

    def _best(self, entry: TokenLogprob) -> JsonBody:
        """Return the best tokens, and this one too; of several with one name, the best."""
        found: JsonBody = {}
        for token_id, logprob in (*entry.top, (entry.token_id, entry.logprob)):
            found.setdefault(self._name(token_id), logprob)
        return found

    def _name(self, token_id: int) -> str:
        """Return what the lists call a token: its text, or as OpenAI has it, the bytes of a part of a character."""
        data = shown_bytes(token_id, self._tokenizer)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def joined_lists(first: JsonBody, second: JsonBody) -> JsonBody:
    """Return the lists of consecutive tokens as one."""
    return {name: first[name] + second[name] for name in first}
