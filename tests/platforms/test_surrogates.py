"""Text that cannot be UTF-8 is one clear error at every door of the Python API."""

from __future__ import annotations

import os
import subprocess
import sys
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


@pytest.mark.skipif(sys.platform != "linux", reason="Windows gives text and not bytes, macOS always UTF-8")
def test_an_argument_is_utf8_where_the_locale_is_ascii() -> None:
    """Python hands its bytes on as stand-ins, and they were said not to be UTF-8."""
    script = (
        "import sys; from edge.commands.options import argument_or_stdin\n"
        "sys.stdout.buffer.write(argument_or_stdin(sys.argv[1], 'PROMPT').encode())"
    )
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command: list[str | bytes] = [sys.executable, "-c", script, "你好".encode()]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.stdout.decode() == "你好", done.stderr
