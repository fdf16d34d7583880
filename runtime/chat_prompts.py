"""Conversations to token ids, and back from an answer to the conversation that continues it.

In: messages with their tools; later the ids of an answer to them. Out: a `ChatPrompt`. What an answer was made of is
remembered (`produced_ids`), so that a conversation with it starts from the same ids. Knows nothing about engines.

A picture is three special tokens in a prompt's text, whatever it shows. Only these are encoded and remembered: two
conversations with the same words have the same `ids`, and differ in the cache keys of what was `spliced` in.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from edge.runtime.chat import ChatTemplate
from edge.runtime.errors import EXPORT_AGAIN, EdgeError, PictureError, PromptError, TokenizerError
from edge.runtime.kv.prefix import common_prefix
from edge.runtime.markup import MarkedText, mark_text, split_marked
from edge.runtime.messages import Message, MessageLike, messages_from
from edge.runtime.parts import ImagePart, TextPart
from edge.runtime.produced_ids import ProducedIds
from edge.runtime.tokenizer import Tokenizer
from edge.runtime.tools.declared import JsonObject, checked_tools
from edge.runtime.vision.geometry import grid_of
from edge.runtime.vision.picture import Picture
from edge.runtime.vision.source import PictureSource
from edge.runtime.vision.spec import VisionSpec
from edge.runtime.vision.splice import Insert, Spliced, find_pictures, splice

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
    ids: list[int]  # of the text, with three for each picture
    pictures: tuple[Picture, ...]
    spliced: Spliced  # what is computed: an id for each row of a picture
    continues: bool  # whether an answer continues the last message
    memory: ProducedIds  # where its ids were looked for, and those of its answer will be

    @property
    def declared(self) -> list[JsonObject]:
        """All tools, wherever they were declared."""
        return [*self.tools, *(tool for message in self.messages for tool in message.tools)]


class ChatPrompts:
    """Makes prompts for one model. Raises PromptError in every method if the model has no chat template."""

    def __init__(
        self,
        template: ChatTemplate | None,
        tokenizer: Tokenizer,
        stop_ids: Collection[int],
        memory: ProducedIds,
        pictures: PictureSource | None = None,
    ) -> None:
        """memory: of all conversations that do not have their own. Raises TokenizerError if it has no tokens for
        pictures."""
        self._template, self._tokenizer, self._stop_ids = template, tokenizer, stop_ids
        self._memory, self._pictures = memory, pictures
        self._picture_tokens = () if pictures is None else _picture_tokens(pictures.spec, tokenizer)

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
        text = self._rendered(
            checked,
            tools=declared,
            variables=variables,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )
        memory = self._memory if memory is None else memory
        ids = memory.encode(text, self._tokenizer.encode_marked)
        if self._pictures is not None and len(find_pictures(ids, self._pictures.spec)) != len(_parts(checked)):
            ids = self._tokenizer.encode_marked(text)  # an answer wrote the three tokens itself
        pictures = tuple(self._open(part, path) for part, path in _parts(checked))
        spliced = self._spliced(ids, pictures)
        return ChatPrompt(
            checked, declared, variables or {}, text, ids, pictures, spliced, continue_final_message, memory
        )

    def render(
        self,
        messages: Sequence[MessageLike],
        *,
        tools: Sequence[JsonObject] | None = None,
        variables: JsonObject | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> MarkedText:
        """Render a conversation. Raises PictureError for pictures that the model, or its template, does not take."""
        return self._rendered(
            messages_from(messages),
            tools=tools,
            variables=variables,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )

    def _rendered(
        self,
        checked: Sequence[Message],
        *,
        tools: Sequence[JsonObject] | None,
        variables: JsonObject | None,
        add_generation_prompt: bool,
        continue_final_message: bool,
    ) -> MarkedText:
        template, parts = self.template, _parts(checked)
        self._check_number(parts)
        text = template.render_marked(
            checked,
            tools=tools,
            variables=variables,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            picture="".join(self._picture_tokens) or None,
        )
        if parts and (written := _count_of(self._picture_tokens, text)) != len(parts):
            raise PictureError(
                f"the chat template drops pictures (the messages have {len(parts)}, the prompt {written}); load the "
                "model with the chat template that it came with",
                param=parts[0][1],
            )
        return text

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
            again = self.render(messages, tools=prompt.tools, variables=prompt.variables, add_generation_prompt=False)
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
        return self.prefix([{"role": "system", "content": system}]).ids

    def prefix(self, messages: Sequence[MessageLike]) -> ChatPrompt:
        """Return what every conversation begins with that begins with these messages.

        A question at their end may go on, so this ends within its text, or behind its picture.
        """
        checked = messages_from(messages)
        first, *others = [self.prompt(_going_on(checked, probe)) for probe in PROBES]
        ids = first.ids[: min(common_prefix(first.ids, other.ids) for other in others)]
        end = min(common_prefix(first.spliced.keys, other.spliced.keys) for other in others)
        return replace(first, messages=checked, ids=ids, spliced=first.spliced.up_to(end))

    def _check_number(self, parts: Sequence[tuple[ImagePart, str]]) -> None:
        """Raises PictureError for a model without eyes, and for more pictures than it takes."""
        if not parts:
            return
        if self._pictures is None:
            raise PictureError(
                f"{parts[0][1]} is a picture, and this model reads text and nothing else; leave it out, or load a "
                "model for pictures, such as GLM-4V-9B",
                param=parts[0][1],
            )
        most = self._pictures.spec.max_pictures
        if most and len(parts) > most:
            number = "one picture" if most == 1 else f"{most} pictures"
            raise PictureError(
                f"{parts[most][1]} is picture {most + 1} of the conversation, and this model takes {number} in one; "
                "start a new conversation, or leave the earlier picture out",
                param=parts[most][1],
            )

    def _open(self, part: ImagePart, path: str) -> Picture:
        assert self._pictures is not None
        try:
            return self._pictures.open(part)
        except PictureError as error:
            error.param = error.param or path
            raise

    def _spliced(self, ids: list[int], pictures: Sequence[Picture]) -> Spliced:
        if self._pictures is None or not pictures:
            return Spliced(ids, ids, None, ())
        spec = self._pictures.spec
        inserts = [
            Insert(self._pictures.key(picture), grid_of(picture.width, picture.height, spec)) for picture in pictures
        ]
        return splice(ids, inserts, spec)


def _parts(messages: Sequence[Message]) -> list[tuple[ImagePart, str]]:
    """Return the pictures of a conversation, each with its path in the messages."""
    return [
        (part, f"messages[{i}].content[{k}]")
        for i, message in enumerate(messages)
        for k, part in enumerate(message.content)
        if isinstance(part, ImagePart)
    ]


def _picture_tokens(spec: VisionSpec, tokenizer: Tokenizer) -> tuple[str, ...]:
    """Return the special tokens that stand for a picture. Raises TokenizerError if there are none of these ids."""
    ids = (spec.begin_id, spec.placeholder_id, spec.end_id)
    if missing := [i for i in ids if not tokenizer.is_special(i)]:
        raise TokenizerError(
            f"the tokenizer has no special token of id {missing[0]}, which stands for pictures; {EXPORT_AGAIN}"
        )
    return tuple(map(tokenizer.token_text, ids))


def _count_of(tokens: Sequence[str], text: MarkedText) -> int:
    """Return how often special tokens follow each other in a text."""
    written = [piece if special else None for piece, special in split_marked(text)]
    return sum(written[i : i + len(tokens)] == list(tokens) for i in range(len(written)))


def _going_on(messages: Sequence[Message], text: str) -> list[Message]:
    """Return messages with more text at the end: of a question, or else as the next one."""
    *before, last = messages
    if last.role != "user":
        return [*messages, Message("user", text)]
    content = last.content + text if isinstance(last.content, str) else (*last.content, TextPart(text))
    return [*before, replace(last, content=content)]
