"""Whatever may be continued, as a `Prompt`: text, token ids, a `Prompt`, or messages.

In: a value of a caller's. Out: a `Prompt`. Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from edge.runtime.errors import PromptError, shown
from edge.runtime.messages import Message, MessageLike
from edge.runtime.prompt import Prompt
from edge.runtime.tokenizer import Tokenizer

PromptLike = str | Sequence[int] | Prompt | Sequence[MessageLike]


def prompt_of(value: object, tokenizer: Tokenizer, encode_chat: Callable[[Sequence[MessageLike]], list[int]]) -> Prompt:
    """Return the prompt. Raises PromptError for anything else."""
    if isinstance(value, Prompt):
        return value
    if isinstance(value, str):
        return Prompt(tokenizer.encode(value))
    if isinstance(value, Sequence) and value and all(isinstance(part, Mapping | Message) for part in value):
        return Prompt(encode_chat(value))
    if isinstance(value, bytes | Mapping) or not hasattr(value, "__iter__"):
        raise PromptError(
            f"the prompt is {shown(value)}, expected text, a list of token ids, an edge.Prompt, or messages",
            param="prompt",
        )
    return Prompt(value)  # type: ignore[arg-type]  # it checks what it is given
