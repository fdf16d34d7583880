"""How a model takes part in conversations: prompts for it, and what to look for in its answers.

In: messages with tools, and settings. Out: a prompt, the settings with what holds the answer to its tools, and how its
stream is to be read. Knows nothing about engines or when requests run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial

from edge.runtime.chat import ChatTemplate
from edge.runtime.chat_prompts import ChatPrompt, ChatPrompts
from edge.runtime.chat_stream import ChatStream
from edge.runtime.constraint_masks import Constraints
from edge.runtime.errors import SettingsError
from edge.runtime.markup import MARK
from edge.runtime.produced_ids import ProducedIds
from edge.runtime.request import Request
from edge.runtime.runner import Runner
from edge.runtime.settings import GenerationSettings
from edge.runtime.thinking import OPENING, ThinkingForm, ThinkingReader
from edge.runtime.tokenizer import Tokenizer
from edge.runtime.tools.choice import ToolChoiceLike, tool_choice_of
from edge.runtime.tools.grammar import ToolGrammars
from edge.runtime.tools.reader import AnswerReader
from edge.runtime.tools.turn import answer_form
from edge.runtime.vision.source import PictureSource

_TAIL = 64  # characters
ID_DIGITS = 24  # of a call's id, as OpenAI's have

Reading = Callable[[Request, Runner], ChatStream]


class Chats:
    """The conversations of one model."""

    def __init__(
        self,
        template: ChatTemplate | None,
        tokenizer: Tokenizer,
        stop_ids: Collection[int],
        constraints: Constraints,
        memory: ProducedIds,
        pictures: PictureSource | None = None,
    ) -> None:
        self.prompts = ChatPrompts(template, tokenizer, stop_ids, memory, pictures)
        self._grammars = ToolGrammars(constraints)
        self._thinking = ThinkingForm.of(tokenizer.token_id)

    def answering(
        self, prompt: ChatPrompt, tool_choice: ToolChoiceLike | None, settings: GenerationSettings
    ) -> tuple[GenerationSettings, Reading]:
        """Return the settings of an answer, and how to read it. Raises SettingsError and PromptError."""
        if prompt.continues:
            tool_choice = _choice_of_text(prompt, tool_choice)
        form, constraint = answer_form(
            prompt.declared,
            tool_choice,
            self.prompts.template.convention.tool_format,
            self._grammars,
            otherwise=settings.constraint,
            lead="" if prompt.continues else self.prompts.lead,
            thinks=self._thinking.looks or _ends_thinking(prompt.text),
        )
        # The same conversation gives the same id, and a longer one another.
        digest = hashlib.sha256(repr(prompt.spliced.keys).encode()).hexdigest()[:ID_DIGITS] if form.tools else ""
        remember = partial(self.prompts.remember, prompt)
        forced = settings.constraint is not None or tool_choice_of(tool_choice, prompt.declared).is_forced
        thinking = self._thinking_of(prompt, forced=forced)

        def read(request: Request, runner: Runner) -> ChatStream:
            reader = ThinkingReader(thinking, AnswerReader(form, f"call_{digest}"))
            return ChatStream(request, runner, reader, remember)

        return replace(settings, constraint=constraint), read

    def _thinking_of(self, prompt: ChatPrompt, *, forced: bool) -> ThinkingForm:
        """Return what to look for. forced: what the answer has to be begins with its first token."""
        if prompt.continues:
            return ThinkingForm()
        begun = not forced and _ends_thinking(prompt.text) and not _ends_thinking(prompt.messages[-1].text)
        return replace(self._thinking, begun=begun)


def _ends_thinking(text: str) -> bool:
    """Whether a text, marked or not, ends with the tag that begins thinking."""
    return text[-_TAIL:].rstrip(f" \n{MARK}").endswith(OPENING)


def _choice_of_text(prompt: ChatPrompt, tool_choice: ToolChoiceLike | None) -> ToolChoiceLike | None:
    """Return the choice for a message that has begun as text. Raises SettingsError for one that demands a call."""
    if tool_choice_of(tool_choice, prompt.declared).is_forced:
        raise SettingsError(
            "tool_choice demands a call, and continue_final_message continues a text; give one of the two",
            param="tool_choice",
        )
    return "none" if prompt.declared else None
