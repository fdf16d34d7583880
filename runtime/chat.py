"""Messages to prompt text, through the model's own Jinja template.

In: a template with the special tokens it may write; messages, tools and variables. Out: text, or marked text, in which
the special tokens that the template wrote are told from what messages only spell. Knows nothing about token ids.
Rendering follows huggingface/transformers (utils/chat_template_utils.py, 4.57.6): trim_blocks, lstrip_blocks, loop
controls, a tojson that leaves characters as they are, and None for the tools and documents that are not given.
Templates come with models, so they run in a sandbox.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edge.runtime.conventions import Convention
from edge.runtime.errors import PromptError, TokenizerError, shown
from edge.runtime.markup import GUARD, MarkedText, Markup, plain_text
from edge.runtime.messages import MessageLike, messages_from
from edge.runtime.tools import JsonObject, check_json, checked_tools
from edge.runtime.unicode import check_text

if TYPE_CHECKING:
    from edge.runtime.tokenizer import Tokenizer

NAMED_TOKENS = ("bos_token", "eos_token", "pad_token")  # what templates and tokenizer_config.json call them
_RESERVED = ("messages", "tools", "add_generation_prompt", "raise_exception", "strftime_now", *NAMED_TOKENS)


class ChatTemplate:
    """A compiled chat template. Raises TokenizerError when the template does not compile.

    markup: the special tokens of the model's tokenizer; without, all that is rendered is text. named_tokens: those that
    a template asks for by name.
    """

    def __init__(
        self, source: str, markup: Markup | None = None, named_tokens: Mapping[str, str] | None = None
    ) -> None:
        self._markup = markup or Markup()
        self._named_tokens = dict(named_tokens or {})
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = self._tojson
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
        try:
            self.convention = Convention.of(environment.parse(source))
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise TokenizerError(f"the chat template does not compile: {error}") from error

    def render(
        self,
        messages: Sequence[MessageLike],
        *,
        tools: Sequence[JsonObject] | None = None,
        add_generation_prompt: bool = True,
        variables: JsonObject | None = None,
    ) -> str:
        """The prompt as one reads it: special tokens and what only spells them look alike. Errors: `render_marked`."""
        marked = self.render_marked(
            messages, tools=tools, add_generation_prompt=add_generation_prompt, variables=variables
        )
        return plain_text(marked)

    def render_marked(
        self,
        messages: Sequence[MessageLike],
        *,
        tools: Sequence[JsonObject] | None = None,
        add_generation_prompt: bool = True,
        variables: JsonObject | None = None,
    ) -> MarkedText:
        """The prompt, for `Tokenizer.encode_marked`. variables: what else the template reads, values of JSON.

        Raises PromptError for messages and tools that are none, that the template has no place for or that it refuses.
        """
        adapted, given = self.convention.adapt(messages_from(messages), checked_tools(() if tools is None else tools))
        values = {
            "documents": None,
            **self._named_tokens,
            **self._markup.guard_value(_checked_variables(variables or {})),
            "messages": [self._guarded(message) for message in adapted],
            "tools": self._markup.guard_value(given),
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return self._markup.mark(self._template.render(values))
        except Exception as error:  # a template may do anything that a program may
            reason = self._markup.unguard(str(error)) or type(error).__name__
            raise PromptError(f"the chat template refused the messages: {reason}", param="messages") from error

    def _guarded(self, message: JsonObject) -> dict[str, Any]:
        """A message whose text stays text. Its role is one of ours, and templates make tags of it."""
        guarded = {key: item if key == "role" else self._markup.guard_value(item) for key, item in message.items()}
        if message["role"] == "observation" and not message["content"]:
            guarded["content"] = GUARD  # GLM-4's template leaves out what is empty; a call needs its result
        return guarded

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """JSON of the value as it was given, guarded as a whole: escapes may come in between."""
        plain = self._markup.unguard_value(value)
        text = json.dumps(plain, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        return self._markup.guard(text)


def open_template(source: str | None, tokenizer: Tokenizer, tokenizer_config: str | None) -> ChatTemplate | None:
    """The template of a bundle, of the contents of its files; None where it has none. Raises TokenizerError."""
    if source is None:
        return None
    try:
        config = json.loads(tokenizer_config or "{}")
        return ChatTemplate(source, tokenizer.markup, named_tokens(config))
    except (ValueError, AttributeError, RecursionError) as error:
        raise TokenizerError(
            f"tokenizer_config.json does not read as a JSON object ({error}); export the bundle again"
        ) from error


def named_tokens(tokenizer_config: JsonObject) -> dict[str, str]:
    """The special tokens that a tokenizer_config.json gives names to; older ones write a token with its properties."""
    found = {name: tokenizer_config.get(name) for name in NAMED_TOKENS}
    texts = {name: value.get("content") if isinstance(value, Mapping) else value for name, value in found.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _checked_variables(variables: JsonObject) -> JsonObject:
    """Raises PromptError."""
    if not isinstance(variables, Mapping):
        raise PromptError(
            f"the template's variables are {shown(variables)}, expected a mapping of names to values",
            param="template_variables",
        )
    for name, value in variables.items():
        check_text(name, "the name of a template's variable", param="template_variables")
        if name in _RESERVED:
            raise PromptError(
                f"the template variable {name!r} is set by edgeglm; choose among names other than "
                f"{', '.join(_RESERVED)}",
                param=f"template_variables.{name}",
            )
        check_json(value, f"template_variables.{name}")
    return variables


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
