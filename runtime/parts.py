"""What the content of a message is made of: pieces of text, and pictures.

In: part objects, or mappings like `{"type": "image", "path": "photo.jpg"}`. Out: checked parts. Knows nothing about
messages, or what is in a picture: no file is opened here. All errors are PromptErrors whose `param` is the path of the
value, like "messages[1].content[0]".
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge.runtime.errors import PictureError, PromptError, in_words, not_expected, shown
from edge.runtime.extras import check_installed
from edge.runtime.tools.declared import JsonObject
from edge.runtime.unicode import check_text

_TEXTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}  # type -> its key
IMAGE = "image"
_SOURCES = ("path", "data", "image")  # of a picture
_EXAMPLE = "{'type': 'image', 'path': 'photo.jpg'}"


@dataclass(frozen=True, slots=True)
class TextPart:
    """A piece of a message's text."""

    text: str

    def to_dict(self) -> JsonObject:
        """Return it in OpenAI's form."""
        return {"type": "text", "text": self.text}


@dataclass(frozen=True, slots=True)
class ImagePart:
    """A picture in a message: a file, by its path or its content. Exactly one of the two is given."""

    path: Path | None = None
    data: bytes | None = None  # of a file, as it would be on a disk

    def to_dict(self) -> JsonObject:
        """Return it as `messages_from` takes it; only a path survives JSON."""
        path = None if self.path is None else str(self.path)
        given = {"path": path, "data": self.data}
        return {"type": IMAGE, **{key: value for key, value in given.items() if value is not None}}

    def __repr__(self) -> str:
        given = f"data=<{len(self.data):,} bytes>" if isinstance(self.data, bytes) else f"path={str(self.path)!r}"
        return f"ImagePart({given})"


Part = TextPart | ImagePart  # of a message's content


def part_from(given: object, path: str, role: str) -> Part:
    """Return a part of a message with this role, checked. Raises PromptError."""
    if isinstance(given, TextPart | ImagePart):
        given = given.to_dict()
    if not isinstance(given, Mapping):
        raise not_expected(path, given, "a part like {'type': 'text', 'text': 'Hello'}")
    kind = given.get("type")
    if kind == IMAGE:
        if role != "user":
            raise PictureError(
                f"{path} is a picture in a message of the role {shown(role)}; only messages of the role 'user' hold "
                "pictures",
                param=path,
            )
        return _picture(given, path)
    if not isinstance(kind, str) or kind not in _TEXTS:
        expected = f"'text', or 'image' for a picture as in {_EXAMPLE}; nothing else in a message can be read"
        raise not_expected(f"{path}.type", kind, expected)
    key = _TEXTS[kind]
    return TextPart(check_text(given.get(key), f"{path}.{key}", param=f"{path}.{key}"))


def _picture(given: Mapping[str, Any], path: str) -> ImagePart:
    named = [key for key in _SOURCES if given.get(key) is not None]
    if len(named) != 1:
        found = " and ".join(named) or "none of them"
        raise PromptError(
            f"{path} is a picture with {found}, expected exactly one of path, data (the bytes of its file) and image "
            f"(a PIL image or an array), as in {_EXAMPLE}",
            param=path,
        )
    (key,) = named
    value, where = given[key], f"{path}.{key}"
    if key == "image":
        return ImagePart(data=_file_of(value, where))
    if key == "data":
        if not isinstance(value, bytes | bytearray | memoryview) or not len(value):
            raise not_expected(where, value, "the bytes of a picture's file")
        return ImagePart(data=bytes(value))
    if not isinstance(value, str | os.PathLike) or not str(value):
        raise not_expected(where, value, "the path of a picture's file")
    return ImagePart(Path(check_text(os.fspath(value), where, param=where)))


def _file_of(picture: Any, path: str) -> bytes:  # Any: what libraries hold pixels in
    """Return a picture that is in memory as the content of a file, without loss. Raises PromptError."""
    check_installed("PIL", needed="vision")
    from PIL import Image

    try:
        if not isinstance(picture, Image.Image):
            is_array = isinstance(picture, np.ndarray) and picture.ndim == 3 and picture.shape[2:] == (3,)
            if not is_array or picture.dtype != np.uint8:
                raise not_expected(path, picture, "a PIL image, or an array of (rows, columns, 3) with uint8")
            picture = Image.fromarray(picture)
        file = io.BytesIO()
        picture.save(file, "PNG", compress_level=1)
    except (ValueError, TypeError, OSError, MemoryError) as error:
        raise PictureError(
            f"{path} cannot be taken as a picture ({in_words(error)}); save it to a file and give its path", param=path
        ) from error
    return file.getvalue()
