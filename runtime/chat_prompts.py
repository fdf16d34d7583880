"""Conversations to token ids, and back from an answer to the conversation that continues it.

In: messages with their tools; later the ids of an answer to them. Out: a `ChatPrompt`. What an answer was made of is
remembered (`produced_ids`), so that a conversation with it starts from the same ids. Knows nothing about engines.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from edge.runtime.chat import ChatTemplate
from edge.runtime.errors import EdgeError, PromptError
from edge.runtime.kv.prefix import common_prefix
from edge.runtime.markup import MarkedText, mark_text
from edge.runtime.messages import Message, MessageLike, messages_from
from edge.runtime.produced_ids import ProducedIds
from edge.runtime.tokenizer import Tokenizer
from edge.runtime.tools.declared import JsonObject, checked_tools

PROBES = ("a", "\n7", "“是的”")  # user messages with no common beginning, to find what conversations share
_LAST_IDS = 16  # of an answer, that may belong to a character or a stop text which was not shown

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation as a prompt."""

    messages: tuple[Message, ...]
    tools: tuple[JsonObject, ...]  # given beside the messages
    variables: JsonObject
    text: MarkedText
    ids: list[int]
    continues: bool  # whether an answer continues the last message
    memory: ProducedIds  # where its ids were looked for, and those of its answer will be

    @property
    def declared(self) -> list[JsonObject]:
        """All tools, wherever they were declared."""
        return [*self.tools, *(tool for message in self.messages for tool in message.tools)]


class ChatPrompts:
    """Makes prompts for one model. Raises PromptError in every method if the model has no chat template."""

    def __init__(
        self, template: ChatTemplate | None, tokenizer: Tokenizer, stop_ids: Collection[int], memory: ProducedIds
    ) -> None:
        """memory: of all conversations that do not have their own."""
        self._template, self._tokenizer, self._stop_ids = template, tokenizer, stop_ids
        self._memory = memory

    @property
    def template(self) -> ChatTemplate:
        """The model's chat template."""
        if self._template is None:
            raise PromptError(
                "this model has no chat template (a base model?); load it with one as chat_template, or use a raw "
                "prompt instead"
            )
        return self._template

    @property
    def lead(self) -> str:
        """White space with which the model begins plain text, because its template writes it there."""
        before, _ = self.template.frame
        return before if before.isspace() else ""

    def prompt(
        self,
        messages: Sequence[MessageLike],
        tools: Sequence[JsonObject] | None = None,
        variables: JsonObject | None = None,
        memory: ProducedIds | None = None,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> ChatPrompt:
        """Render and encode a conversation; answers of this model in it get the ids they were made of."""
        checked = messages_from(messages)
        declared = checked_tools(() if tools is None else tools)
        text = self.template.render_marked(
            checked,
            tools=declared,
            variables=variables,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )
        memory = self._memory if memory is None else memory
        ids = memory.encode(text, self._tokenizer.encode_marked)
        return ChatPrompt(checked, declared, variables or {}, text, ids, continue_final_message, memory)

    def remember(self, prompt: ChatPrompt, written: str, ids: Sequence[int], answer: Message) -> None:
        """Remember what an answer was made of.

        written: its text as the model wrote it. answer: the message that a client will send for it.
        """
        kept = self._spelling(written, ids) if prompt.memory.max_entries else ()
        if not kept:
            return
        messages = [*prompt.messages, answer]
        if prompt.continues:
            last = prompt.messages[-1]
            messages[-2:] = [replace(last, content=last.text + answer.text)]
        try:
            again = self.template.render_marked(
                messages, tools=prompt.tools, variables=prompt.variables, add_generation_prompt=False
            )
        except EdgeError as error:  # the template refuses such an answer, and so there is nothing to find again
            logger.debug("an answer is not remembered: %s", error)
            return
        if not again.startswith(prompt.text):
            return
        text = MarkedText(prompt.text + mark_text(written))
        if not again.startswith(text):
            if prompt.continues:  # it trims texts, and so the two are not one
                return
            # A call that the template writes in its own way.
            text = MarkedText(again.removesuffix(self.template.frame[1]))
        prompt.memory.remember(text, [*prompt.ids, *kept])

    def _spelling(self, written: str, ids: Sequence[int]) -> Sequence[int]:
        """Return the ids whose text is exactly what was written; none if there are no such ids."""
        if ids and ids[-1] in self._stop_ids:  # the template writes the next tag itself
            ids = ids[:-1]
        for end in range(len(ids), max(len(ids) - _LAST_IDS, 0), -1):
            if self._tokenizer.decode(ids[:end]) == written:
                return ids[:end]
        return ()

    def system_prefix(self, system: str) -> list[int]:
        """Return the ids that every conversation with this system message begins with."""
        message = {"role": "system", "content": system}
        all_ids = [self.prompt([message, {"role": "user", "content": probe}]).ids for probe in PROBES]
        return all_ids[0][: min(common_prefix(all_ids[0], other) for other in all_ids[1:])]
