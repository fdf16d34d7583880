"""Tells what a reasoning model thinks from what it answers, while the two are written.

In: the text of an answer, piece by piece. Out: its reasoning and the rest, apart; without the tags between them, and
without white space around them. Knows nothing about templates or tokens, except which tags a tokenizer has.

An answer is thought over if it begins with `<think>`, after white space at most, or if the prompt ends with that tag.
What follows is reasoning up to `</think>`, or up to the end: an answer that was cut may have nothing else. Only models
that know the tag are read in this way; for all others it is text. GLM-4.1V also puts an answer between `<answer>` and
`</answer>`, and its result into a box; these tags are not shown either. Like a stop string, a tag is held back exactly
as long as it may still become one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from edge.runtime.stops import open_prefix
from edge.runtime.tools.reader import AnswerReader, Read

OPENING, CLOSING = "<think>", "</think>"
_ANSWER, _ANSWER_END = "<answer>", "</answer>"
_BOX = ("<|begin_of_box|>", "<|end_of_box|>")

TokenId = Callable[[str], int | None]  # the id of a token with exactly this text, or none


@dataclass(frozen=True, slots=True)
class ThinkingForm:
    """What to look for in an answer."""

    looks: bool = False  # whether it may begin with the opening tag
    begun: bool = False  # whether the prompt has written that tag
    boxes: tuple[str, ...] = ()  # tags that are not shown
    wraps: bool = False  # whether an answer may be between tags of its own

    @classmethod
    def of(cls, token_id: TokenId) -> ThinkingForm:
        """Return the form of a model's answers, from its tokenizer."""
        if token_id(OPENING) is None or token_id(CLOSING) is None:
            return cls()
        boxes = tuple(tag for tag in _BOX if token_id(tag) is not None)
        return cls(looks=True, boxes=boxes, wraps=token_id(_ANSWER) is not None)


class Split(NamedTuple):
    """What is known of an answer after one more piece."""

    reasoning: str = ""
    text: str = ""


class ThinkingSplitter:
    """Splits one answer."""

    def __init__(self, form: ThinkingForm) -> None:
        self._form = form
        self._state: Literal["start", "inside", "after", "text"]
        self._state = "inside" if form.begun else "start" if form.looks else "text"
        self._held = ""  # may become a tag, or is white space that may be around one
        self._hidden = form.boxes
        self._has_reasoning = False
        self.has_thought = form.begun  # whether there was, or is, any thinking

    def push(self, text: str) -> Split:
        """Take a piece of the answer."""
        if self._state == "text" and not self._hidden:
            return Split(text=text)
        self._held += text
        return self._advance()

    def finish(self) -> Split:
        """Take the end; what was held back is no tag."""
        held, self._held = self._held, ""
        if self._state == "inside":
            return Split(self._reasoning(held))
        return Split(text="" if self._state == "after" and not held.strip() else held)

    def _advance(self) -> Split:
        if self._state == "start":
            begun = self._held.lstrip()
            if OPENING.startswith(begun) and begun != OPENING:
                return Split()
            if not begun.startswith(OPENING):
                self._state = "text"
                return Split(text=self._shown())
            self._state, self.has_thought, self._held = "inside", True, begun[len(OPENING) :]
        reasoning = ""
        if self._state == "inside":
            before, tag, after = self._held.partition(CLOSING)
            if not tag:
                kept = open_prefix(before, CLOSING)
                return Split(self._reasoning(before[: len(before) - kept], before[len(before) - kept :]))
            reasoning = self._reasoning(before)
            self._state, self._held = "after", after
        return Split(reasoning, self._shown())

    def _reasoning(self, text: str, kept: str = "") -> str:
        """Return the reasoning of a text without white space at its end, which is held with what else is kept."""
        if not self._has_reasoning:
            text = text.lstrip()
        shown = text.rstrip()
        self._has_reasoning = self._has_reasoning or bool(shown)
        self._held = text[len(shown) :] + kept
        return shown

    def _shown(self) -> str:
        """Return what can be shown of the answer's text."""
        shown = ""
        while True:
            if self._state == "after" and not self._begin():
                return shown
            found = [(index, tag) for tag in self._hidden if (index := self._held.find(tag)) >= 0]
            if not found:
                kept = max((open_prefix(self._held, tag) for tag in self._hidden), default=0)
                shown += self._held[: len(self._held) - kept]
                self._held = self._held[len(self._held) - kept :]
                return shown
            index, tag = min(found)
            shown += self._held[:index]
            self._held = self._held[index + len(tag) :]

    def _begin(self) -> bool:
        """Pass over what comes before an answer; returns whether the answer has begun."""
        self._held = self._held.lstrip()
        tags = (*self._form.boxes, *((_ANSWER,) if self._form.wraps else ()))
        while (tag := next((tag for tag in tags if self._held.startswith(tag)), None)) is not None:
            if tag == _ANSWER:
                self._hidden = (*self._hidden, _ANSWER_END)
            self._held = self._held[len(tag) :].lstrip()
        if any(tag.startswith(self._held) for tag in ("", *tags)):
            return False
        self._state = "text"
        return True


class ThinkingReader:
    """Reads an answer as an `AnswerReader` does, its reasoning apart: a call of a tool may follow it."""

    def __init__(self, form: ThinkingForm, reader: AnswerReader) -> None:
        self._splitter, self._reader = ThinkingSplitter(form), reader

    @property
    def has_thought(self) -> bool:
        """Whether there was any thinking, so that the answer is not what the model wrote."""
        return self._splitter.has_thought

    def push(self, text: str) -> Read:
        """Take a piece of the answer."""
        return self._read(self._splitter.push(text))

    def finish(self, *, was_cut: bool) -> Read:
        """Take the end; see `AnswerReader`."""
        split = self._splitter.finish()
        read, last = self._read(split), self._reader.finish(was_cut=was_cut)
        return Read(read.text + last.text, read.calls + last.calls, last.is_call, read.reasoning)

    def _read(self, split: Split) -> Read:
        return self._reader.push(split.text)._replace(reasoning=split.reasoning)
