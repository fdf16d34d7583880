"""Messages to prompt text, through the model's own Jinja template.

In: a template with the special tokens it may write; messages, tools and variables. Out: text, or marked text, which
distinguishes special tokens that the template wrote from text that only looks like them. Knows nothing about token ids.
Rendering follows huggingface/transformers (utils/chat_template_utils.py, 4.57.6): trim_blocks, lstrip_blocks, loop
controls, `generation` tags, a tojson that leaves characters as they are, and None for missing tools and documents.
Templates come with models, so they run in a sandbox with a limited budget: `template_sandbox.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

import jinja2

from edge.runtime.continuing import END_OF_TEXT, check_continues, up_to_the_end
from edge.runtime.conventions import Convention
from edge.runtime.errors import EXPORT_AGAIN, PictureError, PromptError, TokenizerError, in_words, shown
from edge.runtime.json_reader import parse_json
from edge.runtime.markup import GUARD, MarkedText, Markup, plain_text
from edge.runtime.messages import MessageLike, messages_from
from edge.runtime.template_sandbox import Sandbox, render
from edge.runtime.tools.declared import JsonObject, check_json, checked_tools
from edge.runtime.unicode import check_text

if TYPE_CHECKING:
    from edge.runtime.tokenizer import Tokenizer

# Names of special tokens in templates and tokenizer_config.json; MORE_TOKENS is a list of further ones.
MORE_TOKENS = "additional_special_tokens"
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_RESERVED = (
    "messages",
    "tools",
    "add_generation_prompt",
    "raise_exception",
    "strftime_now",
    *NAMED_TOKENS,
    MORE_TOKENS,
)
_MOST_INDENT = 64  # of JSON; also the most characters between its items
_MOST_FORMAT = 200  # characters of a date's format
_PROBE = "probe"  # a text that no template writes itself


class ChatTemplate:
    """A compiled chat template. Raises TokenizerError when the template does not compile.

    markup: the special tokens of the model's tokenizer; without it, all that is rendered is text. named_tokens: the
    ones that a template asks for by name.
    """

    def __init__(
        self, source: str, markup: Markup | None = None, named_tokens: Mapping[str, str | list[str]] | None = None
    ) -> None:
        self.source = source
        self._markup = markup or Markup()
        self.named_tokens = dict(named_tokens or {})
        sandbox = Sandbox({"tojson": self._tojson}, {"raise_exception": _refuse, "strftime_now": _now})
        try:
            tree, self._template = sandbox.compile_text(source.removeprefix("\ufeff"))
            self.convention = Convention.of(tree)
        except Exception as error:  # also from Python, which compiles jinja2's output
            raise TokenizerError(
                f"the chat template does not compile: {in_words(error) or type(error).__name__}"
            ) from error

    def render(
        self,
        messages: Sequence[MessageLike],
        *,
        tools: Sequence[JsonObject] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: JsonObject | None = None,
    ) -> str:
        """Return the prompt for reading: special tokens and text like them look the same. Errors: `render_marked`."""
        marked = self.render_marked(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            variables=variables,
        )
        return plain_text(marked)

    def render_marked(
        self,
        messages: Sequence[MessageLike],
        *,
        tools: Sequence[JsonObject] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: JsonObject | None = None,
        picture: str | None = None,
    ) -> MarkedText:
        """Return the prompt for `Tokenizer.encode_marked`. variables: further values of JSON for the template.

        continue_final_message: end it after the text of the last message, which is the assistant's, in place of what
        begins a new one. picture: the special tokens that stand for one. A template that takes content in parts writes
        them itself; others find them before the text of the message, as GLM-4V's own code puts them.

        Raises PromptError for messages and tools that are invalid, or that the template does not support or refuses.
        """
        checked = messages_from(messages)
        adapted, given = self.convention.adapt(checked, checked_tools(() if tools is None else tools))
        guarded = [self._guarded(message, picture) for message in adapted]
        if continue_final_message:
            check_continues(checked)
            guarded[-1]["content"] += END_OF_TEXT
        values = {
            "documents": None,
            **self.named_tokens,
            **self._markup.guard_value(_checked_variables(variables or {})),
            "messages": guarded,
            "tools": self._markup.guard_value(given),
            "add_generation_prompt": add_generation_prompt and not continue_final_message,
        }
        try:
            text = render(self._template, values)
            rendered = self._markup.mark(up_to_the_end(text) if continue_final_message else text)
        except Exception as error:  # a template may do anything that a program may
            reason = in_words(self._markup.unguard(str(error))) or type(error).__name__
            raise PromptError(f"the chat template refused the messages: {reason}", param="messages") from error
        check_text(rendered, "what the chat template made of the messages", param="messages")
        return rendered

    @cached_property
    def frame(self) -> tuple[MarkedText, MarkedText]:
        """What the template writes before and after the text of an answer, from the end of the prompt on.

        GLM-4's writes a newline before it, since its models begin with one; others close the message after it.
        """
        question: JsonObject = {"role": "user", "content": _PROBE}
        try:
            prompt = self.render_marked([question])
            whole = self.render_marked(
                [question, {"role": "assistant", "content": _PROBE}], add_generation_prompt=False
            )
        except PromptError:
            return MarkedText(""), MarkedText("")
        if not whole.startswith(prompt):
            return MarkedText(""), MarkedText("")
        before, _, after = whole[len(prompt) :].partition(_PROBE)
        return MarkedText(before), MarkedText(after)

    def _guarded(self, message: JsonObject, picture: str | None) -> dict[str, Any]:
        """Return a message whose text stays text. Its role is not guarded: it is one of ours, and becomes a tag."""
        guarded = {key: item if key == "role" else self._markup.guard_value(item) for key, item in message.items()}
        if message["role"] == "observation" and not message["content"]:
            guarded["content"] = GUARD  # GLM-4's template omits empty ones; a call needs its result
        if isinstance(parts := message["content"], list) and not self.convention.reads_pictures:
            if picture is None:
                raise PictureError("this model's chat template reads text and nothing else; leave the picture out")
            text = "".join(part.get("text", "") for part in parts)
            guarded["content"] = picture * sum("text" not in part for part in parts) + self._markup.guard(text)
        return guarded

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """Return the JSON of a value before it was guarded, guarded as a whole: escapes may come in between."""
        if (indent if isinstance(indent, int) else len(indent or "")) > _MOST_INDENT:
            raise ValueError(f"tojson indents by {shown(indent)}, expected at most {_MOST_INDENT}")
        if separators is not None and sum(map(len, separators)) > _MOST_INDENT:
            raise ValueError(f"tojson separates by {shown(separators)}, expected something shorter")
        plain = self._markup.unguard_value(value)
        text = json.dumps(plain, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        return self._markup.guard(text)


def open_template(source: str | None, tokenizer: Tokenizer, tokenizer_config: str | None) -> ChatTemplate | None:
    """Make a bundle's template from the contents of its files; None if it has none. Raises TokenizerError."""
    if source is None:
        return None
    return ChatTemplate(source, tokenizer.markup, tokens_named_in(tokenizer_config))


def tokens_named_in(tokenizer_config: str | None) -> dict[str, str | list[str]]:
    """Return the special tokens that a bundle's tokenizer_config.json names. Raises TokenizerError."""
    config = parse_json(tokenizer_config or "{}", "tokenizer_config.json", TokenizerError, EXPORT_AGAIN)
    if not isinstance(config, dict):
        raise TokenizerError(f"tokenizer_config.json holds {shown(config)}, expected a JSON object; {EXPORT_AGAIN}")
    return named_tokens(config)


def named_tokens(tokenizer_config: JsonObject) -> dict[str, str | list[str]]:
    """Return the special tokens that a tokenizer_config.json names; older ones write a token with its properties."""
    found = {name: token_text(tokenizer_config.get(name)) for name in NAMED_TOKENS}
    named: dict[str, str | list[str]] = {name: text for name, text in found.items() if text is not None}
    more = tokenizer_config.get(MORE_TOKENS)
    if isinstance(more, list) and more:
        named[MORE_TOKENS] = [text for text in map(token_text, more) if text is not None]
    return named


def token_text(value: object) -> str | None:
    """Return the text of a token in tokenizer_config.json, which is its text or a mapping with its properties."""
    text = value.get("content") if isinstance(value, Mapping) else value
    return text if isinstance(text, str) else None


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
                f"the template variable {name!r} is set by edgeglm; choose another name than {', '.join(_RESERVED)}",
                param=f"template_variables.{name}",
            )
        check_json(value, f"template_variables.{name}")
    return variables


def _refuse(message: object) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _now(pattern: object) -> str:
    if len(text := str(pattern)) > _MOST_FORMAT:
        raise ValueError(f"a date format has {len(text):,} characters, expected at most {_MOST_FORMAT}")
    return datetime.now().strftime(text)
