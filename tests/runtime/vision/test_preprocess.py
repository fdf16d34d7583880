"""What a tower is given equals what the original models' own code makes of a picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from edge.runtime.vision.geometry import Grid, grid_of
from edge.runtime.vision.picture import Picture
from edge.runtime.vision.preprocess import (
    coordinates,
    interpolated_places,
    numbered_places,
    patches_of,
    rotation,
    tower_inputs,
)
from tests.runtime.vision.files import pixels
from tests.runtime.vision.specs import EVA, GLM4V, MEAN, STD

SIZES = [(640, 480), (31, 45), (28, 28), (200, 1500), (28, 5600), (336, 336), (1700, 1500)]


@pytest.mark.parametrize("size", [(133, 77), (1120, 1120), (1, 1), (2, 3000)])
def test_pixels_of_a_fixed_tower_are_bit_by_bit_those_of_torchvision(size: tuple[int, int]) -> None:
    """Its Resize calls Pillow's where it is given a picture of Pillow's; ToTensor divides, Normalize is two steps."""
    given = pixels(*size)
    resized = torch.from_numpy(np.array(Image.fromarray(given).resize((1120, 1120), Image.Resampling.BICUBIC)))
    values = resized.permute(2, 0, 1).to(torch.float32).div(255)
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    values = values.sub(mean).div(std)
    order = [
        (row + below, column + right)
        for row in range(0, 80, 2)
        for column in range(0, 80, 2)
        for below in (0, 1)
        for right in (0, 1)
    ]
    patches = [values[:, 14 * r : 14 * r + 14, 14 * c : 14 * c + 14].reshape(-1) for r, c in order]
    found = tower_inputs(Picture.of(given), EVA)
    assert found["patches"].dtype == np.float32
    assert np.array_equal(found["patches"], torch.stack(patches).numpy())
    assert found["places"].dtype == np.int64
    assert found["places"].tolist() == [1 + 80 * row + column for row, column in order]


@pytest.mark.parametrize("size", SIZES)
def test_pixels_of_any_grid_are_bit_by_bit_those_of_transformers(size: tuple[int, int]) -> None:
    from transformers.models.glm4v.image_processing_glm4v import Glm4vImageProcessor

    bounds = {"shortest_edge": GLM4V.min_pixels, "longest_edge": GLM4V.max_pixels}
    given = pixels(*size)
    expected = Glm4vImageProcessor(size=bounds)(Image.fromarray(given), return_tensors="np")
    found = tower_inputs(Picture.of(given), GLM4V)
    grid = grid_of(*size, GLM4V)
    assert expected["image_grid_thw"].tolist() == [[1, grid.rows, grid.columns]]
    assert np.array_equal(found["patches"], expected["pixel_values"])


def test_both_kinds_know_places_and_patches_in_the_same_order() -> None:
    """A patch whose first value tells its number."""
    grid = Grid(4, 6)
    numbered = np.zeros((4 * 14, 6 * 14, 3), np.uint8)
    numbered[::14, ::14, 0] = np.arange(24).reshape(4, 6)
    rows, columns = coordinates(grid, GLM4V)
    for spec in (EVA, GLM4V):
        first = patches_of(numbered, spec)[:, 0] * np.float32(STD[0]) + np.float32(MEAN[0])
        assert np.rint(first * 255).astype(int).tolist() == (rows * 6 + columns).tolist()
    assert (rows * 6 + columns)[:8].tolist() == [0, 1, 6, 7, 2, 3, 8, 9]
    assert numbered_places(grid, EVA).tolist() == (1 + 80 * rows + columns).tolist()


@pytest.fixture(scope="module")
def original() -> Any:  # Any: a class of transformers
    from transformers.models.glm4v.configuration_glm4v import Glm4vVisionConfig
    from transformers.models.glm4v.modeling_glm4v import Glm4vVisionModel

    torch.manual_seed(0)
    return Glm4vVisionModel(
        Glm4vVisionConfig(
            depth=1,
            hidden_size=GLM4V.hidden_size,
            num_heads=GLM4V.num_heads,
            image_size=GLM4V.image_size,
            out_hidden_size=64,
            intermediate_size=64,
        )
    )


@pytest.mark.parametrize("grid", [Grid(2, 2), Grid(24, 24), Grid(34, 46), Grid(400, 2), Grid(8, 106)], ids=str)
def test_rotation_is_that_of_the_original(original: Any, grid: Grid) -> None:
    """Of equal angles: two good cosines differ by a rounding of values up to 1, that is 2**-24, and ours is exact."""
    angles, places = original.rot_pos_emb(torch.tensor([[1, grid.rows, grid.columns]]))
    rows, columns = coordinates(grid, GLM4V)
    assert places.tolist() == np.stack([rows, columns], axis=1).tolist()
    cos, sin = rotation(grid, GLM4V)
    assert cos.dtype == sin.dtype == np.float32
    assert cos.shape == sin.shape == (grid.patches, GLM4V.head_dim // 2)
    exact = angles.numpy().astype(np.float64)
    assert np.array_equal(cos, np.cos(exact).astype(np.float32))
    assert np.array_equal(sin, np.sin(exact).astype(np.float32))
    assert np.abs(cos - angles.cos().numpy()).max() <= 2**-23
    assert np.abs(sin - angles.sin().numpy()).max() <= 2**-23


@pytest.mark.parametrize("grid", [Grid(2, 2), Grid(24, 24), Grid(34, 46), Grid(400, 2), Grid(8, 106)], ids=str)
def test_places_are_interpolated_as_the_original_does(original: Any, grid: Grid) -> None:
    """Both sum 16 products of float32, in another order: 16 roundings of values up to the table's largest.

    A processor without fused instructions rounds where a patch lies once more: 24 * 2**-24 in units of a place, which
    changes a weight by as much (the slope of the curve is below 1.5) and so 16 products.
    """
    table = original.embeddings.position_embedding.weight.detach()
    rows, columns = (torch.from_numpy(values) for values in coordinates(grid, GLM4V))
    shape = torch.tensor([[1, grid.rows, grid.columns]])
    with torch.no_grad():
        nothing = torch.zeros(grid.patches, GLM4V.hidden_size)
        expected = original.embeddings(nothing, [grid.patches], shape, rows, columns).numpy()
    weights = interpolated_places(grid, GLM4V)
    assert weights.dtype == np.float32
    assert weights.shape == (grid.patches, GLM4V.side**2)
    largest = float(table.abs().max())
    assert np.abs(weights @ table.numpy() - expected).max() < 16 * (2**-24 + 1.5 * 24 * 2**-24) * largest
    assert np.abs(weights.sum(axis=1) - 1).max() < 16 * 2**-23


def test_a_grid_that_places_were_learned_on_takes_them_as_they_are() -> None:
    """Patch and place lie on each other, up to the rounding of where they lie."""
    weights = interpolated_places(Grid(24, 24), GLM4V)
    rows, columns = coordinates(Grid(24, 24), GLM4V)
    expected = np.zeros_like(weights)
    expected[np.arange(24 * 24), rows * 24 + columns] = 1
    assert np.abs(weights - expected).max() < 24 * 2**-22
