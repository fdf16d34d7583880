"""Finds a call of a tool in an answer while it is written.

In: the text of an answer, piece by piece. Out: text to show and pieces of a call; together they are what came in,
without the newline with which GLM-4 begins plain text. Knows nothing about templates or tokens.

A call begins at the start of an answer, with the name of a declared tool and a newline; text is held back only while
it may become that. Under a grammar, what follows is the call's arguments, and they are passed on as they come. Without
one it may be anything, so it is held back until the answer ends: then it is a call if a JSON object begins there, and
text otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from edge.runtime.chunk import CallPiece
from edge.runtime.tools.format import RAW_ARGUMENTS


class Read(NamedTuple):
    """What can be shown of an answer after one more piece."""

    text: str = ""
    calls: tuple[CallPiece, ...] = ()
    is_call: bool = False  # at the end: whether the answer is a complete call
    reasoning: str = ""  # made by `ThinkingReader`


@dataclass(frozen=True, slots=True)
class CallForm:
    """What a reader looks for.

    tools: name -> whether its arguments are raw text. pads_names: blanks may come before the newline. held: a grammar
    holds the answer to it. lead: what the model writes before plain text, and is not shown.
    """

    tools: Mapping[str, bool]
    pads_names: bool = False
    held: bool = False
    lead: str = ""


class AnswerReader:
    """Reads one answer."""

    def __init__(self, form: CallForm, call_id: str) -> None:
        self._form, self._id = form, call_id
        self._state: Literal["start", "text", "json", "held json", "raw"] = "start"
        self._waiting = ""  # at the start: what may become a call or the lead
        self._name = ""
        self._pieces: list[str] = []  # of held JSON, after the name and its newline

    def push(self, text: str) -> Read:
        """Take a piece of the answer."""
        if self._state == "start":
            self._waiting += text
            return self._begin()
        return self._continue(text)

    def finish(self, *, was_cut: bool) -> Read:
        """Take the end. was_cut: the answer did not end by itself, so a call in it is not complete."""
        state = self._state
        if state == "start":
            self._state = "text"
            return Read(self._waiting)
        if state == "raw":
            return Read(calls=() if was_cut else (self._piece('"}'),), is_call=not was_cut)
        if state == "held json":
            return self._finish_held(was_cut=was_cut)
        return Read(is_call=state == "json" and not was_cut)

    def _begin(self) -> Read:
        """Decide what the answer is, as soon as that is known."""
        waiting, lead = self._waiting, self._form.lead
        if lead and waiting.startswith(lead):
            self._state = "text"
            return Read(waiting[len(lead) :])
        name, newline, rest = waiting.partition("\n")
        if newline:
            name = self._name_in(name)
            if name in self._form.tools:
                return self._begin_call(name, waiting[: len(waiting) - len(rest)], rest)
        elif lead.startswith(waiting) or self._may_become_name(waiting):
            return Read()
        self._state = "text"
        return Read(waiting)

    def _begin_call(self, name: str, head: str, rest: str) -> Read:
        self._name = name
        start: tuple[CallPiece, ...] = ()
        if self._form.tools[name]:
            self._state = "raw"
            start = (self._piece(name=name), self._piece(f'{{"{RAW_ARGUMENTS[name]}": "'))
        elif self._form.held:
            self._state = "json"
            start = (self._piece(name=name),)
        else:
            self._state, self._waiting = "held json", head
        return Read(calls=(*start, *self._continue(rest).calls))

    def _continue(self, text: str) -> Read:
        if not text:
            return Read()
        match self._state:
            case "json":
                return Read(calls=(self._piece(text),))
            case "raw":
                return Read(calls=(self._piece(json.dumps(text, ensure_ascii=False)[1:-1]),))
            case "held json":
                self._pieces.append(text)
                return Read()
        return Read(text)

    def _finish_held(self, *, was_cut: bool) -> Read:
        """Decide whether what came after a name is the arguments of a call."""
        text = "".join(self._pieces)
        begin = len(text) - len(text.lstrip())
        start = self._piece(name=self._name)
        try:
            arguments, end = json.JSONDecoder().raw_decode(text, begin)
        except (ValueError, RecursionError):
            if was_cut and text[begin : begin + 1] == "{":
                return Read(calls=(start, self._piece(text[begin:])))
            return Read(self._waiting + text)
        if not isinstance(arguments, dict):
            return Read(self._waiting + text)
        after = text[end:] if text[end:].strip() else ""
        return Read(after, (start, self._piece(text[begin:end])), is_call=not (was_cut and after))

    def _name_in(self, head: str) -> str:
        return head.rstrip(" ") if self._form.pads_names and head not in self._form.tools else head

    def _may_become_name(self, text: str) -> bool:
        if any(name.startswith(text) for name in self._form.tools):
            return True
        return self._form.pads_names and self._name_in(text) in self._form.tools

    def _piece(self, arguments: str = "", name: str = "") -> CallPiece:
        return CallPiece(0, self._id, name, arguments)
