"""Where the rows of pictures stand in a text, and what else its tokens then have: keys and positions.

In: ids of a text in which each picture is three tokens (begin, placeholder, end), and how many rows each picture has.
Out: the ids with one for each row, cache keys, positions, and later a `Prompt`. Knows nothing about messages, pixels or
where rows come from.

Two pictures have the same ids, so a row's key is made from what its picture is. All numbers that are no token's id are
larger than any: 2**32 or more.

Positions are those that the models were trained with. GLM-4V ("eva") gives all patches one position between those of
the two ends. GLM-4.1V ("glm4v") gives each row three: time, row and column, counted from the position after the text
before; the text behind goes on after the largest (huggingface/transformers, models/glm4v/modeling_glm4v.py,
get_rope_index, 4.57.6). Text has the same number three times.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge.runtime.arrays import Hidden, Ids
from edge.runtime.engines.engine import Embedding
from edge.runtime.prompt import FIRST_KEY, Prompt
from edge.runtime.vision.geometry import Grid, num_rows
from edge.runtime.vision.spec import VisionSpec

_END_KEY = 2**63
_AXES = 3  # positions of a row: time, row and column


@dataclass(frozen=True, slots=True)
class Insert:
    """A picture as a text needs it."""

    key: bytes  # what its rows are made of, as a hash
    grid: Grid  # its patches


@dataclass(frozen=True, slots=True, eq=False)
class Spliced:
    """A text with its pictures: one id for each row."""

    ids: list[int]
    keys: list[int]
    positions: Ids | None  # as a `Prompt` has them
    places: tuple[range, ...]  # indices of each picture's rows

    @property
    def end(self) -> int:
        """The index behind the last row of a picture; 0 without any."""
        return self.places[-1].stop if self.places else 0

    def up_to(self, end: int) -> Spliced:
        """Return its first tokens, which end behind a picture or before it."""
        positions = None if self.positions is None else self.positions[..., :end]
        places = tuple(place for place in self.places if place.stop <= end)
        return Spliced(self.ids[:end], self.keys[:end], positions, places)

    def prompt(self, rows: Sequence[Hidden]) -> Prompt:
        """Return the prompt, with the rows of each picture."""
        embeddings = tuple(Embedding(place.start, found) for place, found in zip(self.places, rows, strict=True))
        return Prompt(self.ids, self.keys, self.positions, embeddings)


def find_pictures(ids: Sequence[int], spec: VisionSpec) -> list[int]:
    """Return where a text has the three tokens of a picture: the index of each first one."""
    tokens = [spec.begin_id, spec.placeholder_id, spec.end_id]
    begins = (i for i, token_id in enumerate(ids) if token_id == spec.begin_id)
    return [i for i in begins if list(ids[i : i + len(tokens)]) == tokens]


def splice(ids: Sequence[int], pictures: Sequence[Insert], spec: VisionSpec) -> Spliced:
    """Put pictures in the place of the three tokens of each. There have to be as many as `find_pictures` finds."""
    found: list[int] = []
    keys: list[int] = []
    positions: list[npt.NDArray[np.int64]] = []
    places: list[range] = []
    at = 0  # index in ids
    position = 0  # of the next token

    def add_text(end: int) -> None:
        nonlocal at, position
        found.extend(ids[at:end])
        keys.extend(ids[at:end])
        positions.append(np.broadcast_to(np.arange(position, position + end - at), (_AXES, end - at)))
        at, position = end, position + end - at

    for begin, picture in zip(find_pictures(ids, spec), pictures, strict=True):
        count = num_rows(picture.grid, spec)
        add_text(begin if spec.has_ends else begin + 1)
        places.append(range(len(found), len(found) + count))
        ends = ([spec.begin_id], [spec.end_id]) if spec.has_ends else ([], [])
        found += [*ends[0], *[spec.placeholder_id] * (count - len(ends[0]) - len(ends[1])), *ends[1]]
        keys += row_keys(picture.key, count)
        inside = _offsets(picture.grid, spec)
        positions.append(position + inside)
        at, position = at + (3 if spec.has_ends else 1), position + int(inside.max()) + 1
    add_text(len(ids))
    if not places:
        return Spliced(found, keys, None, ())
    rows = np.concatenate(positions, axis=1)
    return Spliced(found, keys, rows[0] if spec.kind == "eva" else rows, tuple(places))


def row_keys(key: bytes, count: int) -> list[int]:
    """Return the cache keys of a picture's rows; those of its first rows do not depend on how many there are."""
    raw = np.frombuffer(hashlib.shake_256(key).digest(8 * count), "<u8")
    keys: list[int] = (raw % np.uint64(_END_KEY - FIRST_KEY) + np.uint64(FIRST_KEY)).tolist()
    return keys


def _offsets(grid: Grid, spec: VisionSpec) -> npt.NDArray[np.int64]:
    """Return the positions of a picture's rows (3, rows), counted from that of its first."""
    rows, columns = grid.rows // spec.merge_size, grid.columns // spec.merge_size
    if spec.kind == "eva":
        one = np.array([0, *[1] * (rows * columns), 2], np.int64)
        return np.broadcast_to(one, (_AXES, one.size))
    row, column = np.divmod(np.arange(rows * columns, dtype=np.int64), columns)
    return np.stack([np.zeros_like(row), row, column])
