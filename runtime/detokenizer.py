"""Token ids to text, piece by piece.

In: ids one at a time. Out: text that can be shown at once. The law: all pieces joined equal
`Tokenizer.decode(all ids)`, and no piece ends inside a character. Knows nothing about stop strings or chat.
"""

from __future__ import annotations

import codecs

from edge.runtime.tokenizer import Tokenizer


class Detokenizer:
    """Incremental UTF-8 decoding of the tokens' bytes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """Return the text that this token completes; empty while a character is incomplete."""
        return self._utf8.decode(self._tokenizer.token_bytes(token_id))

    def finish(self) -> str:
        """Return U+FFFD for an incomplete character, if there is one; the detokenizer can then start anew."""
        tail = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return tail
