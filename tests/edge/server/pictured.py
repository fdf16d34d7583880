"""A scripted model that sees pictures, as far as a server can tell, and looks at them as long as a test wants."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from edge.runtime.errors import PictureError
from edge.runtime.llm import LLM
from edge.runtime.messages import ImagePart
from edge.runtime.vision.progress import PictureProgress

PNG = b"\x89PNG\r\n\x1a\n"  # what a picture begins with here
LAYERS = 4
WAIT_S = 20.0


@dataclass
class FakePictures:
    """Reads what begins with PNG; looks at a picture in as many steps as a tower of four layers has."""

    spec: Any = field(default_factory=lambda: SimpleNamespace(max_pictures=1))
    opened: list[bytes] = field(default_factory=list)  # what was decoded
    seen: list[bytes] = field(default_factory=list)  # what was looked at, to the end
    ended: list[BaseException] = field(default_factory=list)  # what ended the looking earlier
    running: int = 0
    gate: threading.Event = field(default_factory=threading.Event)  # closed: the tower stays in front of a layer

    def open(self, part: ImagePart) -> bytes:
        assert part.path is None, "a client must not name files"
        assert part.data is not None
        if not part.data.startswith(PNG):
            raise PictureError("these bytes are not a picture that can be read; send a PNG or a JPEG")
        if part.data not in self.opened:
            self.opened.append(part.data)
        return part.data

    def kept(self, picture: bytes) -> bytes | None:
        return picture if picture in self.seen else None

    def look(self, picture: bytes, on_progress: Callable[[PictureProgress], None]) -> None:
        if picture in self.seen:
            on_progress(PictureProgress(LAYERS, LAYERS, 0.0, kept=True))
            return
        self.running += 1
        assert self.running == 1, "one at a time"
        try:
            for layer in range(LAYERS + 1):
                on_progress(PictureProgress(layer, LAYERS, None if layer == 0 else 2.5 * (LAYERS - layer)))
                while not self.gate.wait(0.01):
                    on_progress(PictureProgress(layer, LAYERS, 2.5 * (LAYERS - layer)))
            self.seen.append(picture)
        except BaseException as error:
            self.ended.append(error)
            raise
        finally:
            self.running -= 1

    def close(self) -> None:
        """Nothing is open."""


def seeing(llm: LLM, pictures: FakePictures) -> LLM:
    """Give a scripted model eyes: a picture becomes a text of its bytes after the first eight."""
    chat_samples, encode_chat = llm.chat_samples, llm.encode_chat

    def answered(messages: Sequence[Any], n: int, *, on_picture: Any = None, **options: Any) -> Any:
        for part in parts_of(messages):
            pictures.look(pictures.open(part), on_picture or (lambda _: None))
        return chat_samples(_described(messages), n, **options)

    def encoded(messages: Sequence[Any], **options: Any) -> list[int]:
        return encode_chat(_described(messages), **options)

    chosen: Any = llm
    chosen.pictures, chosen.chat_samples, chosen.encode_chat = pictures, answered, encoded
    return llm


def parts_of(messages: Sequence[Any]) -> list[ImagePart]:
    return [part for _, part in _contents(messages) if isinstance(part, ImagePart)]


def _contents(messages: Sequence[Any]) -> list[tuple[int, Any]]:
    lists = [(i, message["content"]) for i, message in enumerate(messages) if isinstance(message, dict)]
    return [(i, part) for i, content in lists if isinstance(content, list) for part in content]


def _described(messages: Sequence[Any]) -> list[Any]:
    def told(message: Any) -> Any:
        if not isinstance(message, dict) or not isinstance(message.get("content"), list):
            return message
        content = [
            {"type": "text", "text": f"[{(part.data or b'')[len(PNG) :].decode()}]"}
            if isinstance(part, ImagePart)
            else part
            for part in message["content"]
        ]
        return {**message, "content": content}

    return [told(message) for message in messages]
