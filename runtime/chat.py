"""Messages to prompt text, through the model's own Jinja template.

In: a template and messages. Out: text that already holds the model's special tokens. Knows nothing about token ids.
Rendering follows huggingface/transformers (utils/chat_template_utils.py, 4.57.6): trim_blocks, lstrip_blocks, loop
controls, and a tojson that leaves characters as they are. Templates come with models, so they run in a sandbox.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edge.runtime.errors import PromptError, TokenizerError

Message = Mapping[str, Any]  # {"role": ..., "content": ...} and what else the template reads


class ChatTemplate:
    """A compiled chat template. Raises TokenizerError when the template does not compile."""

    def __init__(self, source: str) -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise TokenizerError(f"the chat template does not compile: {error}") from error

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The prompt text. Raises PromptError when the template refuses the messages."""
        if not messages:
            raise PromptError("no messages; give at least one, like {'role': 'user', 'content': 'Hello'}")
        for message in messages:
            if not isinstance(message, Mapping) or "role" not in message:
                raise PromptError(
                    f"message {message!r} is no mapping with a 'role'; give {{'role': ..., 'content': ...}}"
                )
        try:
            return self._template.render(messages=list(messages), add_generation_prompt=add_generation_prompt)
        except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
            raise PromptError(f"the chat template refused the messages: {error}") from error


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
