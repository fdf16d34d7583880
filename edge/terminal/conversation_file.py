"""A conversation in a file: OpenAI's messages as a JSON list, which a server and `edge run --messages` take, too.

In: a path and messages. Out: the file, or the messages of one. Knows nothing about models and terminals.

A file is written whole or not at all, only its owner may read it, and it never takes the place of a file that is
something else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from edge.runtime.atomic import write_atomically
from edge.runtime.errors import OutputError, PromptError, shown
from edge.runtime.files import SMALL_BYTES, read_file, shown_path
from edge.runtime.json_reader import parse_json
from edge.runtime.messages import Message, messages_from

_ADVICE = "give a file that /save wrote, or another JSON list of messages"


def read_conversation(path: Path) -> tuple[Message, ...]:
    """Return the messages of a file. Raises PromptError."""
    content = read_file(path, PromptError, _ADVICE, max_bytes=SMALL_BYTES)
    values = parse_json(content, shown_path(path), PromptError, _ADVICE)
    if not isinstance(values, list):
        raise PromptError(f"{shown_path(path)} holds {shown(values)}, expected a list of messages; {_ADVICE}")
    try:
        return messages_from(values)
    except PromptError as error:
        raise PromptError(f"{shown_path(path)}: {error}", param=error.param) from error


def write_conversation(path: Path, messages: Sequence[Message]) -> None:
    """Write messages to a file that is new, or holds a conversation. Raises OutputError."""
    check_place(path)
    text = json.dumps([message.to_dict() for message in messages], ensure_ascii=False, indent=1)
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
