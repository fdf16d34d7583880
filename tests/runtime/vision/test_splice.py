"""Rows of pictures in a text: ids, keys and positions, against transformers' own numbering and GLM-4V's rule."""

from __future__ import annotations

import hashlib
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import Glm4vConfig
from transformers.models.glm4v.modeling_glm4v import Glm4vModel

from edge.runtime.prompt import FIRST_KEY
from edge.runtime.vision.geometry import Grid, num_rows
from edge.runtime.vision.spec import VisionSpec
from edge.runtime.vision.splice import Insert, find_pictures, row_keys, splice
from tests.runtime.vision.seeing import BEGIN_ID, END_ID, IMAGE_ID, spec_with_ids

EVA, GLM4V = spec_with_ids("eva"), spec_with_ids("glm4v")


def key(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def transformers_positions(ids: list[int], grids: list[Grid]) -> tuple[np.ndarray, int]:
    """What the original numbers a text with, whose placeholders are already as many as rows; and the next position."""
    config = Glm4vConfig(
        image_token_id=IMAGE_ID, video_start_token_id=300, video_end_token_id=301,
        vision_config={"spatial_merge_size": GLM4V.merge_size},
    )  # fmt: skip

    model = SimpleNamespace(config=config)
    grid = torch.tensor([[1, grid.rows, grid.columns] for grid in grids]) if grids else None
    found, delta = Glm4vModel.get_rope_index(model, torch.tensor([ids]), grid)
    return found[:, 0].numpy(), int(delta[0, 0]) + len(ids)


def test_positions_are_those_of_transformers() -> None:
    """Over random texts with up to four pictures of random grids, also without text between them."""
    rng = random.Random(5)
    for _ in range(60):
        ids: list[int] = [rng.randrange(256) for _ in range(rng.randrange(4))]
        pictures = []
        for number in range(rng.randrange(1, 5)):
            pictures.append(Insert(key(str(number)), Grid(2 * rng.randint(1, 5), 2 * rng.randint(1, 5))))
            ids += [BEGIN_ID, IMAGE_ID, END_ID, *(rng.randrange(256) for _ in range(rng.randrange(5)))]
        found = splice(ids, pictures, GLM4V)
        expected, following = transformers_positions(found.ids, [picture.grid for picture in pictures])
        assert found.positions is not None
        np.testing.assert_array_equal(found.positions, expected)
        prompt = found.prompt([np.zeros((len(place), 8), np.float32) for place in found.places])
        assert prompt.next_position == following
        for place, picture in zip(found.places, pictures, strict=True):
            assert len(place) == num_rows(picture.grid, GLM4V)
            assert {found.ids[i] for i in place} == {IMAGE_ID}
            assert (found.ids[place.start - 1], found.ids[place.stop]) == (BEGIN_ID, END_ID)


def test_glm_4v_has_all_patches_at_one_position() -> None:
    """Begin at b, patches at b + 1, end at b + 2, and so on: the answer begins at KV length - (patches - 1)."""
    grid = Grid(8, 8)  # 16 rows of patches, and two of the ends
    found = splice([7, 8, BEGIN_ID, EVA.placeholder_id, END_ID, 9, 10], [Insert(key("a"), grid)], EVA)
    assert found.ids == [7, 8, BEGIN_ID, *[EVA.placeholder_id] * 16, END_ID, 9, 10]
    assert found.positions is not None
    assert found.positions.tolist() == [0, 1, 2, *[3] * 16, 4, 5, 6]
    assert found.places == (range(2, 20),)
    prompt = found.prompt([np.zeros((18, 8), np.float32)])
    assert prompt.next_position == len(found.ids) - 15
    assert [(start, len(rows)) for start, rows in prompt.embeddings] == [(2, 18)], "the ends are rows of the tower"


@pytest.mark.parametrize("spec", [EVA, GLM4V])
def test_keys_tell_pictures_apart_and_text_stays_ids(spec: VisionSpec) -> None:
    text = [1, 2, BEGIN_ID, spec.placeholder_id, END_ID, 3]
    one, same, other = (splice(text, [Insert(key(name), Grid(8, 8))], spec) for name in ("a", "a", "b"))
    (place,) = one.places
    assert one.keys == same.keys
    assert one.ids == other.ids
    for i, (mine, theirs) in enumerate(zip(one.keys, other.keys, strict=True)):
        if i in place:
            assert FIRST_KEY <= mine < 2**63
            assert mine != theirs
        else:
            assert mine == theirs == one.ids[i]
    assert len({one.keys[i] for i in place}) == len(place), "rows of one picture differ, too"


def test_a_rows_key_does_not_depend_on_how_many_there_are() -> None:
    assert row_keys(key("a"), 1602)[:40] == row_keys(key("a"), 40)


def test_only_all_three_tokens_are_a_picture() -> None:
    ids = [BEGIN_ID, IMAGE_ID, 5, BEGIN_ID, BEGIN_ID, IMAGE_ID, END_ID, IMAGE_ID, END_ID, BEGIN_ID, IMAGE_ID]
    assert find_pictures(ids, GLM4V) == [4]


def test_a_text_without_pictures_stays_as_it_is() -> None:
    found = splice([1, 2, 3], [], GLM4V)
    assert (found.ids, found.keys, found.positions, found.end) == ([1, 2, 3], [1, 2, 3], None, 0)
