"""Grids are those of the original models, whatever the size of a picture."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge.runtime.errors import PictureError
from edge.runtime.vision.geometry import Grid, grid_of, num_rows, resized
from edge.runtime.vision.spec import VisionSpec
from tests.runtime.vision.specs import EVA, GLM4V

SIDES = st.one_of(st.integers(1, 60), st.integers(1, 3000), st.integers(1, 65_500))
SPECS = (GLM4V, replace(GLM4V, max_pixels=11_760_000), replace(GLM4V, min_pixels=10**6))


def check_as_transformers(width: int, height: int, spec: VisionSpec) -> None:
    from transformers.models.glm4v.image_processing_glm4v import smart_resize

    bounds = {"min_pixels": spec.min_pixels, "max_pixels": spec.max_pixels}
    try:
        expected = smart_resize(num_frames=2, height=height, width=width, temporal_factor=2, factor=28, **bounds)
    except ValueError:
        with pytest.raises(PictureError, match=f"the picture has {width:,} x {height:,} pixels, and this model takes"):
            resized(width, height, spec)
        return
    assert resized(width, height, spec) == expected[::-1]
    grid = grid_of(width, height, spec)
    assert grid == Grid(expected[0] // 14, expected[1] // 14)
    assert num_rows(grid, spec) * 4 == grid.patches == grid.rows * grid.columns


@settings(max_examples=200)
@given(SIDES, SIDES, st.sampled_from(SPECS))
@example(28, 28, GLM4V)
@example(27, 28, GLM4V)
@example(28, 5600, GLM4V)
@example(28, 5601, GLM4V)
@example(65_500, 328, GLM4V)
def test_sizes_are_those_of_transformers(width: int, height: int, spec: VisionSpec) -> None:
    check_as_transformers(width, height, spec)


def test_sizes_of_usual_pictures_are_those_of_transformers() -> None:
    random = Random(0)
    for _ in range(10_000):
        check_as_transformers(random.randint(20, 6000), random.randint(20, 6000), random.choice(SPECS))


def test_a_fixed_tower_has_the_same_rows_for_every_picture() -> None:
    grids = {grid_of(width, height, EVA) for width, height in ((1, 1), (1, 65_500), (1120, 1120), (9000, 20))}
    assert grids == {Grid(80, 80)}
    assert num_rows(Grid(80, 80), EVA) == 1602


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((27, 500), "the picture has 27 x 500 pixels, and this model takes 28 or more on each side; enlarge it"),
        (
            (30, 6001),
            "has 30 x 6,001 pixels, and this model takes none more than 200 times as long as wide; give a part",
        ),
    ],
)
def test_sides_that_a_model_cannot_take_are_said(size: tuple[int, int], words: str) -> None:
    with pytest.raises(PictureError, match=words):
        grid_of(*size, GLM4V)
