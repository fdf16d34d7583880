"""Documents: text to calibrate compression with and to measure models by, from files that a user names.

In: a path. Out: `Document`s, of plain text or of messages. Knows nothing about tokens or models.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.runtime.errors import CalibrationError, PromptError, shown
from edge.runtime.files import read_file, shown_path
from edge.runtime.json_reader import parse_json

if TYPE_CHECKING:
    from edge.runtime.chat import ChatTemplate
    from edge.runtime.messages import MessageLike

UNKNOWN_LANGUAGE = "und"  # ISO 639-2, undetermined
MAX_FILE_BYTES = 200_000_000  # of text: 50 million tokens; in memory up to five times as much


@dataclass(frozen=True, slots=True)
class Document:
    """One text, or one conversation."""

    text: str  # of a conversation: the contents of its messages, one below the other
    language: str = UNKNOWN_LANGUAGE  # a label to report by, like "en" or "zh"
    messages: tuple[MessageLike, ...] = ()  # of a conversation
    origin: str = ""  # where it comes from, for errors: "chats.jsonl, line 3"

    def rendered(self, template: ChatTemplate | None) -> str:
        """The text as a model sees it: a conversation is rendered by the template, if there is one."""
        if template is None or not self.messages:
            return self.text
        try:
            return template.render(self.messages, add_generation_prompt=False)
        except PromptError as error:
            raise CalibrationError(f"{self.origin or 'a conversation'}: {error}") from error


def read_documents(path: str | Path) -> list[Document]:
    """The documents of a file: a UTF-8 text as one, or each line of a .jsonl as one.

    A line is {"text": "..."} or a conversation {"messages": [{"role": "user", "content": "..."}, ...]}, both with an
    optional "language". Raises CalibrationError, which names the line.
    """
    path = Path(path)
    name, advice = shown_path(path), "name a text or .jsonl file"
    raw = read_file(path, CalibrationError, advice, max_bytes=MAX_FILE_BYTES)
    try:
        content = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        looks = " (it looks like UTF-16)" if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else ""
        raise CalibrationError(
            f"{name}, line {line}: byte {error.start} is not UTF-8{looks}; save the file as UTF-8"
        ) from error
    if (zero := content.find("\0")) >= 0:
        line = content.count("\n", 0, zero) + 1
        raise CalibrationError(f"{name}, line {line}: a zero byte, so this is not text; {advice}")
    content = content.replace("\r\n", "\n").replace("\r", "\n")
    if path.suffix.lower() != ".jsonl":
        documents = [Document(content, origin=name)] if content.strip() else []
    else:  # not splitlines(): JSON strings may hold U+2028
        lines = enumerate(content.split("\n"), start=1)
        documents = [_from_json(line, f"{name}, line {number}") for number, line in lines if line.strip()]
    if not documents:
        raise CalibrationError(f"{name} holds no text; give a file with some")
    return documents


def _from_json(line: str, origin: str) -> Document:
    """One line of a .jsonl. Raises CalibrationError."""
    forms = '{"text": "..."} or {"messages": [{"role": "user", "content": "..."}]}'
    data = parse_json(line, origin, CalibrationError, f"expected {forms}")
    if not isinstance(data, dict) or ("text" in data) == ("messages" in data):
        raise CalibrationError(f"{origin}: expected an object {forms}, found {shown(data)}")
    language = data.get("language", UNKNOWN_LANGUAGE)
    if not isinstance(language, str) or not language:
        raise CalibrationError(f'{origin}: language is {shown(language)}, expected a string like "en"')
    if "text" in data:
        if not isinstance(data["text"], str):
            raise CalibrationError(f"{origin}: text is {shown(data['text'])}, expected a string")
        return Document(data["text"], language, origin=origin)
    messages = data["messages"]
    if not isinstance(messages, list) or not messages or not all(_is_message(message) for message in messages):
        raise CalibrationError(
            f"{origin}: messages are {shown(messages)}, expected a list of objects with a role and a content in text"
        )
    return Document("\n".join(message["content"] for message in messages), language, tuple(messages), origin)


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))
