"""A chat template from a file that a user names, in place of the one that a model comes with, or of none.

In: a path. Out: its text; or a template that has been compiled and has rendered a question once, so that what is wrong
with it is said before a model is loaded. All errors are SettingsErrors of one line. Knows nothing
about what else a bundle holds.
"""

from __future__ import annotations

from pathlib import Path

from edge.runtime import bundle as bundles
from edge.runtime.bundle import Bundle
from edge.runtime.chat import ChatTemplate, open_template, tokens_named_in
from edge.runtime.errors import EdgeError, PromptError, SettingsError, TokenizerError
from edge.runtime.files import read_file
from edge.runtime.rules import FilePath, check_value
from edge.runtime.tokenizer import Tokenizer

SETTING = "chat_template"
MAX_BYTES = 10_000_000
_ADVICE = "give a Jinja template of messages, as models have one in chat_template.jinja"
_QUESTION = "which zebra lives in house 42"


def read_template(path: Path, kind: type[EdgeError], advice: str) -> str:
    """The text of a template's file, with \\n as line ends. Raises an error of this kind."""
    try:
        text = read_file(path, kind, advice, max_bytes=MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise kind(f"{path} is not UTF-8 at byte {error.start}; {advice}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_chosen(path: str | Path) -> str:
    """The text of a template that somebody has chosen, which compiles. Raises SettingsError."""
    check_value(SETTING, FilePath(), path)
    text = read_template(Path(path), SettingsError, _ADVICE)
    _compiled(text, path)
    return text


def template_of(bundle: Bundle, tokenizer: Tokenizer, chosen: str | Path | None) -> ChatTemplate | None:
    """A bundle's template, or the chosen one in its place. Raises as `open_chosen` and `open_template`."""
    config = bundle.text(bundles.TOKENIZER_CONFIG)
    if chosen is not None:
        return open_chosen(chosen, tokenizer, config)
    return open_template(bundle.text(bundles.CHAT_TEMPLATE), tokenizer, config)


def open_chosen(path: str | Path, tokenizer: Tokenizer, tokenizer_config: str | None) -> ChatTemplate:
    """The template, after it has rendered a question. Raises SettingsError, and TokenizerError for a wrong config."""
    text = read_chosen(path)
    template = ChatTemplate(text, tokenizer.markup, tokens_named_in(tokenizer_config))
    try:
        rendered = template.render([{"role": "user", "content": _QUESTION}])
    except PromptError as error:
        raise _refused(path, str(error)) from error
    if _QUESTION not in rendered:
        raise _refused(path, "it does not write the text of a message")
    return template


def _compiled(text: str, path: str | Path) -> None:
    try:
        ChatTemplate(text)
    except TokenizerError as error:
        raise _refused(path, str(error)) from error


def _refused(path: str | Path, why: str) -> SettingsError:
    return SettingsError(f"{path}: {why}; {_ADVICE}", param=SETTING)
