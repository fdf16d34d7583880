"""What gives rows for pictures: a protocol, so that prompts can be made and tested without a tower.

In: nothing. Out: `PictureSource`. Knows nothing about how rows are computed.
"""

from __future__ import annotations

from typing import Protocol

from edge.runtime.arrays import Hidden
from edge.runtime.parts import ImagePart
from edge.runtime.vision.picture import Picture
from edge.runtime.vision.progress import OnPicture
from edge.runtime.vision.spec import VisionSpec


class PictureSource(Protocol):
    """A model's tower, or what a test has in its place. Any thread may call it."""

    @property
    def spec(self) -> VisionSpec:
        """The tower's record."""

    def open(self, part: ImagePart) -> Picture:
        """Decode a picture. Raises PictureError."""

    def key(self, picture: Picture) -> bytes:
        """Return a hash of all that its rows depend on."""

    def kept(self, picture: Picture) -> Hidden | None:
        """Return its rows if they need not be computed."""

    def rows(self, picture: Picture, on_progress: OnPicture | None = None) -> Hidden:
        """Return its rows (m, out_size), which may take minutes."""

    def close(self) -> None:
        """Free the memory; nothing may be called afterwards."""
