"""Whatever may be continued, as a `Prompt`: text, token ids, a `Prompt`, or messages.

In: a value of a caller's. Out: a `Prompt`, with the rows of its pictures. Knows nothing about engines, or how rows and
ids are made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeGuard

from edge.runtime.chat_prompts import ChatPrompt, ChatPrompts
from edge.runtime.constraint_masks import Constraints
from edge.runtime.errors import PromptError, shown
from edge.runtime.messages import Message, MessageLike
from edge.runtime.prompt import Prompt
from edge.runtime.settings import GenerationSettings
from edge.runtime.tokenizer import Tokenizer
from edge.runtime.vision.progress import OnPicture
from edge.runtime.vision.prompts import PicturePrompts

PromptLike = str | Sequence[int] | Prompt | Sequence[MessageLike]


class Prompts:
    """Makes the prompts of one model. Raises PromptError for what is none."""

    def __init__(
        self, chats: ChatPrompts, tokenizer: Tokenizer, constraints: Constraints, pictures: PicturePrompts
    ) -> None:
        self._chats, self._tokenizer, self._constraints, self._pictures = chats, tokenizer, constraints, pictures

    def of(self, value: object, settings: GenerationSettings, on_picture: OnPicture | None = None) -> Prompt:
        """Return the prompt for a value."""
        if isinstance(value, Prompt):
            return value
        if isinstance(value, str):
            return Prompt(self._tokenizer.encode(value))
        if _are_messages(value):
            return self.of_chat(self._chats.prompt(value), settings, on_picture)
        if isinstance(value, bytes | Mapping) or not hasattr(value, "__iter__"):
            raise PromptError(
                f"the prompt is {shown(value)}, expected text, a list of token ids, an edge.Prompt, or messages",
                param="prompt",
            )
        return Prompt(value)  # type: ignore[arg-type]  # it checks what it is given

    def of_chat(self, found: ChatPrompt, settings: GenerationSettings, on_picture: OnPicture | None) -> Prompt:
        """Return the prompt of a conversation. What is wrong with it or its settings is told before a tower runs."""
        if not found.pictures:
            return Prompt(found.ids)
        if settings.constraint is not None:
            self._constraints.start(settings.constraint)
        return self._pictures.prompt(found, settings, on_picture)

    def of_prefix(self, value: object, settings: GenerationSettings, on_picture: OnPicture | None) -> Prompt:
        """Return the prompt for a prefix: of messages, what conversations that begin with them have in common."""
        if _are_messages(value):
            return self.of_chat(self._chats.prefix(value), settings, on_picture)
        return self.of(value, settings)

    def beginning(self, messages: Sequence[MessageLike]) -> Prompt:
        """Return what conversations that begin with these messages have in common, without rows of pictures."""
        spliced = self._chats.prefix(messages).spliced
        return Prompt(spliced.ids, spliced.keys)

    def close(self) -> None:
        """Free what makes them."""
        self._pictures.close()


def _are_messages(value: object) -> TypeGuard[Sequence[MessageLike]]:
    return isinstance(value, Sequence) and bool(value) and all(isinstance(part, Mapping | Message) for part in value)
