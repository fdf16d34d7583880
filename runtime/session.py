"""A conversation: its messages, and one more of them at a time.

In: an `LLM`, and questions and results of tools one after another. Out: chunks of the answers. No earlier turn is
computed again: the model remembers what ids its answers were made of. What a user types is text, whatever it looks
like. Knows nothing about terminals, or how tools are run.

A conversation that has filled the context is refused, or continues without its oldest turns. All that is kept, except
the system message, is then encoded and computed anew; half of the context is freed at once, so that this is rare.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Unpack

from edge.runtime.chat_stream import ChatStream
from edge.runtime.chunk import Chunk
from edge.runtime.errors import PromptError, shown
from edge.runtime.fitting import fitting
from edge.runtime.llm import LLM
from edge.runtime.messages import Message, MessageLike, Part, ToolCall, messages_from, result_of
from edge.runtime.produced_ids import ProducedIds
from edge.runtime.rules import OneOf, check_value
from edge.runtime.settings import CONTEXT_POLICIES, ContextPolicy, GenerationOptions, generation_settings
from edge.runtime.tools.choice import ToolChoiceLike
from edge.runtime.tools.declared import JsonObject, checked_tools
from edge.runtime.turns import SYSTEM, turns_of
from edge.runtime.vision.progress import OnPicture

OWN_ENTRIES = 256  # answers of one conversation that are remembered if the model does not remember any


class ChatSession:
    """The messages of one conversation."""

    def __init__(
        self,
        llm: LLM,
        system: str | None = None,
        *,
        tools: Sequence[JsonObject] = (),
        tool_choice: ToolChoiceLike | None = None,
        template_variables: JsonObject | None = None,
        context_policy: ContextPolicy = "error",
    ) -> None:
        """tools, tool_choice and template_variables: as in `LLM.chat`, for every answer.

        context_policy: "error" lets `send` raise ContextLengthError, "drop-oldest" lets it forget the oldest turns;
        `last_dropped` and `dropped_messages` say so. Raises SettingsError and PromptError.
        """
        self.llm = llm
        self.tools = checked_tools(tools)
        self.tool_choice, self.template_variables = tool_choice, template_variables
        self.context_policy = check_value("context_policy", OneOf(CONTEXT_POLICIES), context_policy)
        self._system = system
        # Where bits count, a conversation remembers its own answers only.
        self._memory = ProducedIds(OWN_ENTRIES) if llm.engine.info.reproducible else None
        self.reset()

    def reset(self) -> None:
        """Forget the conversation; the system message stays."""
        self.messages: list[Message] = []
        self.num_tokens = 0  # of the conversation when its last answer ended
        self.dropped_messages = 0  # since the conversation began
        self.last_dropped: tuple[Message, ...] = ()  # by the last question or result
        if self._system is not None:
            self.messages.append(Message("system", self._system))

    def __repr__(self) -> str:
        of_tokens = f", {self.num_tokens} tokens" if self.num_tokens else ""
        return f"<ChatSession {len(self.messages)} messages{of_tokens} with {self.llm!r}>"

    def load(self, messages: Sequence[MessageLike]) -> None:
        """Continue another conversation. Raises PromptError and leaves this one as it is if its messages are invalid.

        Its system message, or none, takes the place of this one's.
        """
        loaded = messages_from(messages)
        first = loaded[0]
        self._system = first.text if first.role in SYSTEM and not first.tools else None
        self.reset()
        self.messages = list(loaded)

    @property
    def system(self) -> str | None:
        """The system message; setting it changes the conversation from its first token on."""
        return self._system

    @system.setter
    def system(self, text: str | None) -> None:
        rest = self.messages[1:] if self.messages and self.messages[0].role in SYSTEM else self.messages
        self._system = text
        self.messages = rest if text is None else [Message("system", text), *rest]

    @property
    def num_turns(self) -> int:
        """How many questions are remembered."""
        return len(turns_of(self.messages))

    @property
    def pending(self) -> tuple[ToolCall, ...]:
        """Calls of the last answer, for which `send_results` is to be called."""
        return self.messages[-1].tool_calls if self.messages else ()

    def send(
        self,
        content: str | Sequence[Part],
        *,
        tool_choice: ToolChoiceLike | None = None,
        on_picture: OnPicture | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Generator[Chunk, None, None]:
        """Answer one more user message: text, or parts with pictures; keywords and errors as in `LLM.chat`.

        Closing the iterator early keeps the answer so far. A refused message leaves no trace.
        """
        return self._ask([*self.messages, _question(content)], tool_choice, on_picture, options)

    def send_results(
        self,
        results: Sequence[tuple[ToolCall, str]],
        *,
        tool_choice: ToolChoiceLike | None = None,
        on_picture: OnPicture | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Generator[Chunk, None, None]:
        """Answer the results of the `pending` calls. Raises as `send`, and PromptError if one is missing."""
        if [call for call, _ in results] != list(self.pending):
            raise PromptError(
                f"results are for the calls {shown([call.name for call, _ in results])}, expected one for each of "
                f"{shown([call.name for call in self.pending])}, in this order"
            )
        told = [result_of(call, text) for call, text in results]
        return self._ask([*self.messages, *told], tool_choice, on_picture, options)

    def answer(
        self,
        *,
        tool_choice: ToolChoiceLike | None = None,
        on_picture: OnPicture | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Generator[Chunk, None, None]:
        """Answer the conversation as it is, after `load`. Raises as `send`."""
        return self._ask(self.messages, tool_choice, on_picture, options)

    def retry(
        self, *, on_picture: OnPicture | None = None, **options: Unpack[GenerationOptions]
    ) -> Generator[Chunk, None, None]:
        """Answer the last question again; the earlier answer is forgotten once the new one begins.

        Raises as `send`, and PromptError if there is no question.
        """
        end = self._last_question() + 1
        return self._ask(self.messages[:end], None, on_picture, options)

    def edit(
        self,
        content: str | Sequence[Part],
        *,
        on_picture: OnPicture | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Generator[Chunk, None, None]:
        """Ask something else in place of the last question. Raises as `retry`."""
        return self._ask([*self.messages[: self._last_question()], _question(content)], None, on_picture, options)

    def undo(self) -> bool:
        """Forget the last question with all that followed it; False if there is none."""
        if not any(message.role == "user" for message in self.messages):
            return False
        del self.messages[self._last_question() :]
        return True

    def _last_question(self) -> int:
        """Return the index of the last user message. Raises PromptError if there is none."""
        for i in reversed(range(len(self.messages))):
            if self.messages[i].role == "user":
                return i
        raise PromptError("the conversation has no question yet; send one first")

    def _ask(
        self,
        messages: list[Message],
        tool_choice: ToolChoiceLike | None,
        on_picture: OnPicture | None,
        options: GenerationOptions,
    ) -> Generator[Chunk, None, None]:
        messages = list(messages_from(messages))  # with parts, whatever they were given as
        limit = generation_settings(**options).max_new_tokens
        kept, dropped = self._fitting(messages, limit)
        (stream,) = self.llm.chat_samples(
            kept,
            1,
            tools=self.tools,
            tool_choice=self.tool_choice if tool_choice is None else tool_choice,
            template_variables=self.template_variables,
            memory=self._memory,
            on_picture=on_picture,
            **options,
        )
        return self._answer(stream, kept, dropped)

    def _fitting(self, messages: list[Message], limit: int | None) -> tuple[list[Message], tuple[Message, ...]]:
        """Return the messages without those that the policy drops, and the dropped ones."""
        if self.context_policy == "error":
            return messages, ()
        return fitting(self.llm, messages, limit, tools=self.tools, template_variables=self.template_variables)

    def _answer(
        self, stream: ChatStream, messages: list[Message], dropped: tuple[Message, ...]
    ) -> Generator[Chunk, None, None]:
        begun = False
        try:
            for chunk in stream:
                begun = begun or bool(chunk.token_ids)
                yield chunk
        finally:
            stream.close()
            if begun:
                self.messages = [*messages, stream.message]
                self.num_tokens = stream.num_tokens
                self.dropped_messages += len(dropped)
                self.last_dropped = dropped


def _question(content: str | Sequence[Part]) -> Message:
    """Return a user message; what is neither text nor parts is refused when it is rendered."""
    return Message("user", tuple(content) if isinstance(content, list) else content)  # type: ignore[arg-type]
