"""A conversation that keeps its token ids, so that no earlier turn is ever computed again.

In: an `LLM` and one user message after another. Out: chunks of the answers. A rendered and re-encoded history may give
other ids than the model produced; here, those ids stay, and only new text is encoded. What a user types is text,
whatever it looks like. Knows nothing about terminals.

A conversation that has filled the context is refused, or continues without its oldest turns. All that is kept, except
the system message, is then encoded and computed anew; half of the context is freed at once, so that this is rare.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Generator
from typing import Unpack

from edge.runtime.chunk import Chunk
from edge.runtime.llm import LLM
from edge.runtime.markup import MarkedText, mark_text, mark_token
from edge.runtime.rules import OneOf, check_value
from edge.runtime.settings import WHEN_FULL, GenerationOptions, WhenFull, generation_settings
from edge.runtime.stream import Stream

ANSWER_SHARE = 4  # a quarter of the context is kept free for an answer, or less if the answer is limited to less


class ChatSession:
    """The messages of one conversation, with their token ids."""

    def __init__(self, llm: LLM, system: str | None = None, *, when_full: WhenFull = "error") -> None:
        """when_full: "error" lets `send` raise ContextLengthError, "drop" lets it forget the oldest turns.

        The system message stays, and `dropped_turns` counts forgotten turns. Raises SettingsError.
        """
        self._llm = llm
        self._system = system
        self.drops = check_value("when_full", OneOf(WHEN_FULL), when_full) == "drop"
        self.reset()

    def reset(self) -> None:
        """Forget the conversation; the system message stays."""
        self.messages: list[dict[str, str]] = []
        if self._system is not None:
            self.messages.append({"role": "system", "content": self._system})
        self.dropped_turns = 0  # since the conversation began
        self._ids: list[int] = []
        self._rendered = MarkedText("")  # the text of _ids, without a closing stop id

    @property
    def num_tokens(self) -> int:
        """How many tokens the conversation has so far."""
        return len(self._ids)

    @property
    def num_turns(self) -> int:
        """How many answered user messages are remembered."""
        return len(self.messages) // 2  # with or without a system message

    def send(self, content: str, **options: Unpack[GenerationOptions]) -> Generator[Chunk, None, None]:
        """Answer one more user message; keywords and errors as in `LLM.generate`.

        Closing the iterator early keeps the answer so far. A refused message leaves no trace.
        """
        limit = generation_settings(**options).max_new_tokens
        messages = [*self.messages, {"role": "user", "content": content}]
        prompt = self._llm.chat_template.render_marked(messages)
        prompt_ids = self._continue(prompt)
        context = self._llm.engine.info.max_context
        if self.drops and len(prompt_ids) + min(limit or context, context // ANSWER_SHARE) > context:
            messages = self._shortened(messages, context // 2)
            prompt = self._llm.chat_template.render_marked(messages)
            prompt_ids = self._llm.tokenizer.encode_marked(prompt)
        stream = self._llm.generate(prompt_ids, **options)
        return self._answer(stream, messages, prompt, prompt_ids)

    def _shortened(self, messages: list[dict[str, str]], most: int) -> list[dict[str, str]]:
        """Drop the fewest oldest turns that leave at most `most` tokens; the last message always stays."""
        first = int(self._system is not None)

        def without(turns: int) -> list[dict[str, str]]:
            return [*messages[:first], *messages[first + 2 * turns :]]

        def fits(turns: int) -> bool:
            return len(self._llm.encode_chat(without(turns))) <= most

        return without(bisect_left(range(self.num_turns), True, key=fits))

    def _continue(self, prompt: MarkedText) -> list[int]:
        """Return ids of the prompt: those of the conversation so far, and those of the new text."""
        if not self._ids or not prompt.startswith(self._rendered):
            return self._llm.tokenizer.encode_marked(prompt)
        ids, new_text = self._ids, prompt[len(self._rendered) :]
        if ids[-1] in self._llm.stop_ids:
            closing = mark_token(self._llm.tokenizer.token_text(ids[-1]))
            if new_text.startswith(closing):
                new_text = new_text[len(closing) :]
            else:  # the model stopped with a different token from the template's
                ids = ids[:-1]
        return ids + self._llm.tokenizer.encode_marked(MarkedText(new_text))

    def _answer(
        self, stream: Stream, messages: list[dict[str, str]], prompt: MarkedText, prompt_ids: list[int]
    ) -> Generator[Chunk, None, None]:
        shown = ""
        ids: list[int] = []
        try:
            for chunk in stream:
                shown += chunk.text
                ids += chunk.token_ids
                yield chunk
        finally:
            stream.close()
            self._remember(messages, prompt, prompt_ids, shown, ids)

    def _remember(
        self, messages: list[dict[str, str]], prompt: MarkedText, prompt_ids: list[int], shown: str, ids: list[int]
    ) -> None:
        if not ids:
            return
        self.dropped_turns += (len(self.messages) + 1 - len(messages)) // 2
        rendered = MarkedText(prompt + mark_text(shown))
        # GLM's template writes the newline with which its model begins, so content may have to omit it.
        for content in (shown, shown.removeprefix("\n"), shown.strip()):
            self.messages = [*messages, {"role": "assistant", "content": content}]
            again = self._llm.chat_template.render_marked(self.messages, add_generation_prompt=False)
            if again.startswith(rendered):
                break
        exact = self._llm.tokenizer.decode(ids) == shown  # not after a stop string, or inside a character
        self._ids, self._rendered = (prompt_ids + ids, rendered) if exact else ([], MarkedText(""))
