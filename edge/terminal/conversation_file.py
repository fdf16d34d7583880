"""A conversation in a file: OpenAI's messages as a JSON list, which a server and `edge run --messages` take, too.

In: a path and messages. Out: the file, or the messages of one. Knows nothing about models and terminals.

A file is written whole or not at all, only its owner may read it, and it never takes the place of a file that is
something else. Pictures are paths, or OpenAI's data URLs where there is no path; a server takes the latter alone.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge.runtime.atomic import write_atomically
from edge.runtime.errors import EdgeError, OutputError, PromptError, shown
from edge.runtime.files import SMALL_BYTES, read_file, shown_path
from edge.runtime.json_reader import parse_json
from edge.runtime.messages import ImagePart, Message, messages_from

_KINDS = {b"\xff\xd8": "jpeg", b"GIF8": "gif", b"RIFF": "webp", b"BM": "bmp", b"II": "tiff", b"MM": "tiff"}  # else PNG
_ADVICE = "give a JSON list of messages, as `/save` in `edge chat` writes it"


def read_conversation(path: Path) -> tuple[Message, ...]:
    """Return the messages of a file. Raises PromptError."""
    return conversation_of(read_file(path, PromptError, _ADVICE, max_bytes=SMALL_BYTES), shown_path(path))


def conversation_of(content: str | bytes, name: str) -> tuple[Message, ...]:
    """Return the messages of JSON: a list of them, or an object that has one under "messages". Raises PromptError."""
    found = parse_json(content, name, PromptError, _ADVICE)
    if isinstance(found, dict):
        others = sorted(found.keys() - {"messages"})
        if others or "messages" not in found:
            raise PromptError(f'{name} has {shown(others)}, expected "messages" and nothing else; {_ADVICE}')
        found = found["messages"]
    if not isinstance(found, list):
        raise PromptError(f"{name} holds {shown(found)}, expected a list of messages; {_ADVICE}")
    try:
        return messages_from(_with_pictures(found))
    except EdgeError as error:
        raise PromptError(f"{name}: {error}", param=getattr(error, "param", None)) from error


def write_conversation(path: Path, messages: Sequence[Message]) -> None:
    """Write messages to a file that is new, or holds a conversation. Raises OutputError."""
    check_place(path)
    text = json.dumps([_as_json(message) for message in messages], ensure_ascii=False, indent=1)
    write_atomically(path, [text.encode(), b"\n"])


def check_place(path: Path) -> bool:
    """Return whether a conversation is there already. Raises OutputError if something else is, or nothing can be."""
    if os.path.isdir(path):  # noqa: PTH112  # Path.is_dir raises for a path that is too long
        raise OutputError(f"{shown_path(path)} is a folder; name a file in it")
    if not os.path.lexists(path):
        folder = os.path.dirname(path) or "."  # noqa: PTH120
        if not os.path.isdir(folder):  # noqa: PTH112
            raise OutputError(f"{shown_path(path)} cannot be written (no such folder); name a file in one that exists")
        return False
    try:
        if os.path.isfile(path) and not os.path.getsize(path):  # noqa: PTH113, PTH202
            return False
        read_conversation(path)
    except (PromptError, OSError) as error:
        raise OutputError(f"{shown_path(path)} exists and is not a saved conversation; choose another name") from error
    return True


def _with_pictures(messages: list[Any]) -> list[Any]:  # Any: JSON
    """Return messages whose data URLs are pictures. Raises EdgeError for other URLs."""
    if not any(_has_url(message) for message in messages):
        return messages
    from edge.wire.pictures import with_pictures

    taken, _ = with_pictures([message if _has_url(message) else None for message in messages], sees=True)
    return [message if new is None else new for message, new in zip(messages, taken, strict=True)]


def _has_url(message: Any) -> bool:  # Any: JSON
    parts = message.get("content") if isinstance(message, dict) else None
    return isinstance(parts, list) and any(isinstance(p, dict) and p.get("type") == "image_url" for p in parts)


def _as_json(message: Message) -> dict[str, Any]:  # Any: JSON
    given = dict(message.to_dict())
    if isinstance(message.content, tuple):
        given["content"] = [
            _url(part.data) if isinstance(part, ImagePart) and part.data is not None else part.to_dict()
            for part in message.content
        ]
    return given


def _url(data: bytes) -> dict[str, Any]:  # Any: JSON
    kind = next((kind for begin, kind in _KINDS.items() if data.startswith(begin)), "png")
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{base64.b64encode(data).decode()}"}}
