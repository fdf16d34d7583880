"""Text that cannot be UTF-8 is one clear error at every door of the Python API."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import edge
from edge.runtime.engines.scripted import noise
from edge.runtime.errors import PromptError
from edge.runtime.llm import LLM
from edge.runtime.session import ChatSession

BYTE, HALF = "caf\udce9", "\ud800 half"
DOORS: dict[str, Callable[[LLM, str], object]] = {
    "generate": lambda llm, text: llm.generate(text),
    "chat": lambda llm, text: llm.chat([{"role": "user", "content": text}]),
    "part": lambda llm, text: llm.chat([{"role": "user", "content": [{"type": "text", "text": text}]}]),
    "session": lambda llm, text: ChatSession(llm).send(text),
    "system": lambda llm, text: ChatSession(llm, text).send("hi"),
    "render": lambda llm, text: llm.render([{"role": "user", "content": text}]),
    "pin": lambda llm, text: llm.prefixes.pin(text),
    "document": lambda llm, text: llm.add_document(text),
    "encode": lambda llm, text: llm.tokenizer.encode(text),
}


@pytest.mark.parametrize("door", DOORS)
def test_half_a_character_and_a_stray_byte_are_prompt_errors(door: str) -> None:
    with edge.scripted_llm(noise(), num_blocks=16, max_context=64) as llm:
        with pytest.raises(PromptError, match="is not UTF-8: byte 0xE9 at position 3; convert it to UTF-8"):
            DOORS[door](llm, BYTE)
        with pytest.raises(PromptError, match=r"half a character \(surrogate U\+D800\) at position 0; remove it"):
            DOORS[door](llm, HALF)
