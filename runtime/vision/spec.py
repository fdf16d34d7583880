"""What a picture tower is, in numbers, and how its rows enter a text: one record for every kind of model.

In: plain values (from a checkpoint's config at export, from the manifest at run time). Out: one frozen `VisionSpec`.
Knows nothing about files, pixels or engines.

Two kinds are known. "eva" is GLM-4V-9B's: a fixed square of pixels, one learned place for each patch, norms after each
sublayer, learned rows around the patches, all patches at one position of the text. "glm4v" is that of GLM-4.1V and
GLM-4.6V: any grid, a table of places that is interpolated, rotation by row and column, norms before each sublayer,
patches at three positions each (time, row, column).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Literal

from edge.runtime.errors import EXPORT_AGAIN, BundleError
from edge.runtime.json_object import ObjectReader

TowerKind = Literal["eva", "glm4v"]
KINDS: tuple[TowerKind, ...] = ("eva", "glm4v")


@dataclass(frozen=True, slots=True)
class VisionSpec:
    """The shape of one tower, what pixels it takes, and where its rows are put."""

    kind: TowerKind
    num_layers: int
    hidden_size: int
    intermediate_size: int  # of each layer's MLP
    num_heads: int
    norm_eps: float  # of the layers
    patch_size: int  # pixels, of a side
    frames: int  # of a patch: a still picture is given as that many equal ones
    image_size: int  # pixels of a side: of every picture ("eva"), or of those that places were learned on
    merge_size: int  # patches of a side that become one row
    out_size: int  # hidden size of the text model
    merger_size: int  # width inside the adapter
    merger_eps: float
    scale: float  # rows are divided by it
    mean: tuple[float, ...]  # of red, green and blue
    std: tuple[float, ...]
    min_pixels: int  # of a picture, times `frames`; 0 where every picture has the same
    max_pixels: int
    begin_id: int  # token ids around a picture's placeholder in a prompt
    placeholder_id: int
    end_id: int
    max_pictures: int  # in one conversation; 0: any number

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def patch_values(self) -> int:
        """Values of one patch: colour, frame, row, column."""
        return 3 * self.frames * self.patch_size**2

    @property
    def side(self) -> int:
        """Patches of a side of what places were learned on."""
        return self.image_size // self.patch_size

    @property
    def is_fixed(self) -> bool:
        """Whether every picture is made the same size."""
        return self.kind == "eva"

    @property
    def has_ends(self) -> bool:
        """Whether a picture's first and last rows are learned, and replace the embeddings of begin_id and end_id."""
        return self.kind == "eva"

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: object, path: str = "manifest.json: vision.spec") -> VisionSpec:
        """Raises BundleError when a field is missing, unknown, of another type, or a number that no tower has."""
        read = ObjectReader(data, path, BundleError, EXPORT_AGAIN)
        read.has_only({field.name for field in fields(cls)})
        found = cls(
            kind=next(kind for kind in KINDS if kind == read.word("kind", "|".join(KINDS), " or ".join(KINDS))),
            num_layers=read.whole("num_layers", 1, 10_000),
            hidden_size=read.whole("hidden_size", 1, 1 << 20),
            intermediate_size=read.whole("intermediate_size", 1, 1 << 24),
            num_heads=read.whole("num_heads", 1, 1 << 12),
            norm_eps=read.number("norm_eps", 0, 1),
            patch_size=read.whole("patch_size", 1, 1 << 10),
            frames=read.whole("frames", 1, 16),
            image_size=read.whole("image_size", 1, 1 << 14),
            merge_size=read.whole("merge_size", 1, 16),
            out_size=read.whole("out_size", 1, 1 << 20),
            merger_size=read.whole("merger_size", 1, 1 << 24),
            merger_eps=read.number("merger_eps", 0, 1),
            scale=read.number("scale", 1e-6, 1e6),
            mean=read.numbers("mean", -1e3, 1e3),
            std=read.numbers("std", 1e-6, 1e3),
            min_pixels=read.whole("min_pixels", 0, 1 << 30),
            max_pixels=read.whole("max_pixels", 0, 1 << 30),
            begin_id=read.whole("begin_id", 0, 1 << 26),
            placeholder_id=read.whole("placeholder_id", 0, 1 << 26),
            end_id=read.whole("end_id", 0, 1 << 26),
            max_pictures=read.whole("max_pictures", 0, 1 << 20),
        )
        if len(found.mean) != 3 or len(found.std) != 3:
            raise BundleError(f"{path}: mean and std have to be of three colours; {EXPORT_AGAIN}")
        if found.hidden_size % found.num_heads or found.image_size % (found.patch_size * found.merge_size):
            raise BundleError(f"{path}: heads do not divide hidden_size, or patches image_size; {EXPORT_AGAIN}")
        return found
