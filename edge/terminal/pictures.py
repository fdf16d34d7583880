"""Pictures that somebody adds to a message: files by their paths, and what is said about each.

In: paths, and a loaded model. Out: parts of a message; names, sizes and numbers of tokens for people. Knows nothing
about pixels.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from edge.runtime.errors import PictureError
from edge.runtime.files import shown_path
from edge.runtime.llm import LLM
from edge.runtime.messages import ImagePart, Message, TextPart
from edge.runtime.terminal_text import on_one_line
from edge.runtime.vision.geometry import grid_of, num_rows

BLIND = "this model reads text alone; use one that sees pictures, such as GLM-4V-9B"


def picture_of(path: str | Path) -> ImagePart:
    """Return a file as a part of a message. Its path is whole, so that a saved conversation finds it from anywhere."""
    return ImagePart(path=Path(os.path.abspath(path)))  # noqa: PTH100  # Path.absolute keeps "..", and resolve follows links


def name_of(part: ImagePart) -> str:
    """Return how a picture is called in a line."""
    return "a picture" if part.path is None else on_one_line(part.path.name)


def pictures_in(messages: Iterable[Message]) -> list[ImagePart]:
    """Return the pictures of messages, in their order."""
    parts = (part for message in messages if isinstance(message.content, tuple) for part in message.content)
    return [part for part in parts if isinstance(part, ImagePart)]


def told_of(part: ImagePart, llm: LLM) -> tuple[str, int]:
    """Return what is said about a picture, like "1,024 x 768 PNG, 1,602 tokens", and that number.

    Raises PictureError, also for a model that sees none, and MissingPackageError.
    """
    if llm.pictures is None:
        raise PictureError(BLIND)
    picture, spec = llm.pictures.open(part), llm.pictures.spec
    tokens = num_rows(grid_of(picture.width, picture.height, spec), spec)
    return f"{picture.told}, {tokens:,} tokens", tokens


def with_pictures(pictures: Sequence[ImagePart], text: str) -> str | tuple[ImagePart | TextPart, ...]:
    """Return the content of a message: its pictures before its text."""
    return (*pictures, TextPart(text)) if pictures else text


def lost(pictures: Iterable[ImagePart]) -> list[str]:
    """Return the paths of pictures whose files are gone."""
    paths = (part.path for part in pictures if part.path is not None)
    return [shown_path(path) for path in paths if not os.path.exists(path)]  # noqa: PTH110  # raises for odd paths
