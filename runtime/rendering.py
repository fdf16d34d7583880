"""What a model with a chat template makes of messages before anything is computed: text and ids.

In: messages with tools. Out: prompt text for reading, and the ids that `LLM.chat` sends. Knows nothing about engines.
"""

from __future__ import annotations

from collections.abc import Sequence

from edge.runtime.chat import ChatTemplate
from edge.runtime.chats import Chats
from edge.runtime.markup import plain_text
from edge.runtime.messages import MessageLike
from edge.runtime.tools.declared import JsonObject
from edge.runtime.tools.format import ToolFormat


class Rendering:
    """The part of an `LLM` that needs no engine. Every member raises PromptError if there is no chat template."""

    _chats: Chats

    def render(
        self,
        messages: Sequence[MessageLike],
        *,
        tools: Sequence[JsonObject] | None = None,
        template_variables: JsonObject | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> str:
        """Return messages as prompt text, for reading: only `encode_chat` tells special tokens from text like them.

        continue_final_message: as in `chat`. Raises PromptError for an invalid message, and when the template refuses
        them.
        """
        marked = self._chats.prompts.render(
            messages,
            tools=tools,
            variables=template_variables,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )
        return plain_text(marked)

    def encode_chat(
        self,
        messages: Sequence[MessageLike],
        *,
        tools: Sequence[JsonObject] | None = None,
        template_variables: JsonObject | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> list[int]:
        """Return messages as token ids, as `chat` sends them; errors as in `render`.

        A picture is as many ids as it has rows, all alike: `generate` takes the messages instead, which have it.
        """
        prompt = self._chats.prompts.prompt(
            messages,
            tools,
            template_variables,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )
        return prompt.spliced.ids

    @property
    def chat_template(self) -> ChatTemplate:
        """The model's chat template."""
        return self._chats.prompts.template

    @property
    def tool_format(self) -> ToolFormat:
        """How this model calls tools."""
        return self.chat_template.convention.tool_format

    def system_prefix(self, system: str) -> list[int]:
        """Return the ids that every conversation with this system message begins with."""
        return self._chats.prompts.system_prefix(system)
