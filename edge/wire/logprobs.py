"""Log-probabilities of an answer's tokens, as /v1/chat/completions has them.

In: what the runtime tells of tokens, whole or as it comes. Out: the tokens whose text is shown, without a stop text,
and JSON for them; `old_logprobs` has the lists of /v1/completions. Knows nothing about requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edge.runtime.chunk import Answer, Chunk, StoppedBy
from edge.runtime.logprobs import TokenLogprob
from edge.runtime.tokenizer import Tokenizer

Entry = tuple[TokenLogprob, bytes]  # with the token's text
JsonBody = dict[str, Any]  # Any: JSON


class ShownEntries:
    """The tokens of one answer, each once its text is shown.

    Text may be held back, because a stop text may begin in it; so are its tokens.
    """

    def __init__(self, tokenizer: Tokenizer, *, with_stop_id: bool = False) -> None:
        """with_stop_id: as if the stop id were part of the text."""
        self._tokenizer, self._with_stop_id = tokenizer, with_stop_id
        self._waiting: list[Entry] = []
        self._bytes = 0  # of text that was shown, and not yet taken by tokens

    def push(self, chunk: Chunk) -> list[Entry]:
        """Return the tokens that a chunk shows."""
        self._waiting += [(entry, self._tokenizer.token_bytes(entry.token_id)) for entry in chunk.logprobs]
        self._bytes += len(chunk.text.encode())
        if chunk.finish_reason is not None:
            self._drop_unshown(chunk.stopped_by)
            return self._take(len(self._waiting))
        count, left = 0, self._bytes
        while count < len(self._waiting) and left > 0:
            left -= len(self._waiting[count][1])
            count += 1
        return self._take(count)

    def _drop_unshown(self, stopped_by: StoppedBy | None) -> None:
        """Forget the waiting tokens that are part of what stopped the answer."""
        if stopped_by is None:
            return
        if stopped_by.token_id is not None:
            if not self._with_stop_id:
                del self._waiting[-1:]
        elif stopped_by.text is not None:
            left = self._bytes
            for count, (_, data) in enumerate(self._waiting):
                if left <= 0:
                    del self._waiting[count:]
                    return
                left -= len(data)

    def _take(self, count: int) -> list[Entry]:
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        self._bytes -= sum(len(data) for _, data in taken)
        return taken


def shown_entries(answer: Answer, tokenizer: Tokenizer, *, with_stop_id: bool = False) -> list[Entry]:
    """Return the tokens of a whole answer whose text is shown."""
    whole = Chunk(
        answer.text, answer.token_ids, answer.logprobs, finish_reason=answer.finish_reason, stopped_by=answer.stopped_by
    )
    return ShownEntries(tokenizer, with_stop_id=with_stop_id).push(whole)


def chat_logprobs(entries: Sequence[Entry], tokenizer: Tokenizer) -> JsonBody:
    """Return them as /v1/chat/completions has them."""

    def of_token(data: bytes, logprob: float) -> JsonBody:
        return {"token": data.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(data)}

    content = [
        {
            **of_token(data, entry.logprob),
            "top_logprobs": [of_token(tokenizer.token_bytes(i), value) for i, value in entry.top],
        }
        for entry, data in entries
    ]
    return {"content": content, "refusal": None}
