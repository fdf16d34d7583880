"""Towers of checkpoints: the numbers that a configuration gives, where weights are, and what is wrong with others."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from members import LAYOUTS, MEMBERS, PIXELS_41V
from safetensors.torch import load_file, save_file

from edge.export.architectures.doubts import doubts
from edge.export.architectures.registry import describe, describe_tower, has_tower
from edge.export.checkpoint.checkpoint import open_checkpoint
from edge.export.checkpoint.fields import Fields
from edge.export.vision.names import canonical_shapes, stages_of
from edge.export.vision.source import TowerWeights
from edge.runtime.errors import ConfigError, TensorError
from tests import tiny_pictures

FOUR_V, FOUR_1V = MEMBERS["glm-4v-9b"], MEMBERS["GLM-4.1V-9B-Thinking"]


def published(config: Mapping[str, Any]) -> Any:
    """A checkpoint of which there are only its configuration, names and shapes."""
    return SimpleNamespace(
        path=Path("checkpoint"),
        format="safetensors",
        architecture=config["model_type"],
        config=Fields(config, "config.json"),
        shapes=dict(LAYOUTS[config["model_type"]].tensors(config)),
        check_readable=lambda _names: None,
        picture_config=lambda: Fields(PIXELS_41V, "preprocessor_config.json"),
    )


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    tiny_pictures.make_4v(folder / "4v")
    tiny_pictures.make_glm4v(folder / "glm4v")
    return folder


def copied(folder: Path, out: Path) -> Path:
    """A copy, to be changed."""
    return Path(shutil.copytree(folder, out / folder.name))


@pytest.fixture(params=["4v", "glm4v"])
def checkpoint(request: pytest.FixtureRequest, checkpoints: Path, tmp_path: Path) -> Path:
    """A copy of each."""
    return copied(checkpoints / request.param, tmp_path)


@pytest.fixture
def glm4v(checkpoints: Path, tmp_path: Path) -> Path:
    return copied(checkpoints / "glm4v", tmp_path)


def tower_of(folder: Path) -> TowerWeights:
    opened = open_checkpoint(folder)
    found = describe_tower(opened, describe(opened)[0])
    assert found is not None
    return found


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_sums_of_glm_4v_are_the_published_ones() -> None:
    opened = published(FOUR_V)
    text, weights = describe(opened)
    tower = describe_tower(opened, text)
    assert tower is not None
    assert text.num_parameters == 9_399_951_360
    assert sum(map(math.prod, canonical_shapes(tower.spec).values())) == 4_506_369_536
    parts = [part for parts in tower.parts.values() for part in parts]
    assert len(parts) == len({part.name for part in parts}) == 770
    taken = {name for names in weights.sources.values() for name in names} | {part.name for part in parts}
    assert opened.shapes.keys() - taken == {"transformer.rotary_pos_emb.inv_freq"}


def test_sums_of_glm_41v_are_the_published_ones() -> None:
    opened = published(FOUR_1V)
    text, weights = describe(opened)
    tower = describe_tower(opened, text)
    assert tower is not None
    assert sum(map(math.prod, canonical_shapes(tower.spec).values())) == 892_498_432
    assert text.num_parameters == 9_399_951_360 + 40 * 2 * 4096
    taken = {name for names in (*weights.sources.values(), *tower.sources.values()) for name in names}
    assert opened.shapes.keys() == taken


def test_what_glm_4v_says_of_itself(shared: Path) -> None:
    config = json.loads((shared / "configs" / "glm-4v-9b.json").read_text())
    opened = published(config)
    text = describe(opened)[0]
    tower = describe_tower(opened, text)
    assert tower is not None
    spec = tower.spec
    assert (text.rope_theta, text.rms_norm_eps, text.rope_sections) == (10_000, 1.5625e-07, ())
    assert (spec.kind, spec.num_layers, spec.hidden_size, spec.intermediate_size) == ("eva", 63, 1792, 15360)
    assert (spec.head_dim, spec.side, spec.patch_values, spec.scale, spec.max_pictures) == (112, 80, 588, 8, 1)
    assert (spec.out_size, spec.merger_size, spec.norm_eps, spec.merger_eps) == (4096, 13696, 1e-6, 1e-5)
    assert (spec.begin_id, spec.placeholder_id, spec.end_id) == (151339, 151329, 151340)
    assert doubts(opened, text) == ()


def test_what_glm_41v_says_of_itself() -> None:
    opened = published(FOUR_1V)
    text = describe(opened)[0]
    tower = describe_tower(opened, text)
    assert tower is not None
    spec = tower.spec
    assert (text.rotary_dim, text.rope_sections, text.output_norms, text.qkv_bias) == (64, (8, 12, 12), True, True)
    assert (spec.kind, spec.num_layers, spec.hidden_size, spec.intermediate_size) == ("glm4v", 24, 1536, 4096)
    assert (spec.head_dim, spec.side, spec.patch_values, spec.scale, spec.max_pictures) == (128, 24, 1176, 1, 0)
    assert (spec.out_size, spec.merger_size, spec.min_pixels, spec.max_pixels) == (4096, 13696, 12544, 9633792)
    assert (spec.begin_id, spec.placeholder_id, spec.end_id) == (151339, 151343, 151340)
    assert doubts(opened, text) == ()


@pytest.mark.parametrize("form", ["transformers 5", "without text_config"])
def test_other_places_of_the_same_keys(form: str) -> None:
    """transformers 5 has all of a rotary embedding in rope_parameters; the first files had no text_config."""
    text = dict(FOUR_1V["text_config"])
    if form == "transformers 5":
        sections = text.pop("rope_scaling")["mrope_section"]
        text["rope_parameters"] = {
            "mrope_section": sections,
            "partial_rotary_factor": text.pop("partial_rotary_factor"),
            "rope_theta": text.pop("rope_theta"),
            "rope_type": "default",
        }
        config = {**FOUR_1V, "text_config": text}
    else:
        config = {**text, **{key: value for key, value in FOUR_1V.items() if key != "text_config"}}
    changed = published(FOUR_1V)
    changed.config = Fields(config, "config.json")
    assert describe(changed)[0] == describe(published(FOUR_1V))[0]


def test_weights_are_those_of_the_tensors(checkpoint: Path) -> None:
    tower, tensors = tower_of(checkpoint), load_file(checkpoint / "model.safetensors")
    for name, shape in canonical_shapes(tower.spec).items():
        assert tower.read(name).shape == shape
    if checkpoint.name == "4v":
        kernel, gate, up = "conv.weight", "linear_proj.gate_proj.weight", "linear_proj.dense_h_to_4h.weight"
        prefix, patches = "transformer.vision.", "patch_embedding.proj.weight"
    else:
        kernel, gate, up = "downsample.weight", "merger.gate_proj.weight", "merger.up_proj.weight"
        prefix, patches = "model.visual.", "patch_embed.proj.weight"
    width = tower.spec.merger_size
    np.testing.assert_array_equal(tower.read("vision.adapter.gate_up.weight")[:width], tensors[prefix + gate].numpy())
    np.testing.assert_array_equal(tower.read("vision.adapter.gate_up.weight")[width:], tensors[prefix + up].numpy())
    by_channel = tensors[prefix + kernel].numpy()  # (out, channel, row, column)
    found = tower.read("vision.merge.weight").reshape(by_channel.shape)
    np.testing.assert_array_equal(found, by_channel)
    np.testing.assert_array_equal(
        tower.read("vision.patches.weight"), tensors[prefix + patches].numpy().reshape(tower.spec.hidden_size, -1)
    )


def test_stages_bring_every_weight_once_in_order(checkpoints: Path) -> None:
    for name in ("4v", "glm4v"):
        spec = tower_of(checkpoints / name).spec
        assert [name for stage in stages_of(spec) for name in stage.own(spec)] == list(canonical_shapes(spec))


def test_wrong_tensors_are_named(checkpoint: Path) -> None:
    prefix = "transformer.vision." if checkpoint.name == "4v" else "model.visual."
    victim = max(name for name in load_file(checkpoint / "model.safetensors") if name.startswith(prefix))
    change(checkpoint, lambda tensors: tensors.update({f"{prefix}another": torch.ones(3)}))
    with pytest.raises(TensorError, match=r"tensor .*another is unexpected; .* --pictures none"):
        tower_of(checkpoint)
    change(checkpoint, lambda tensors: (tensors.pop(f"{prefix}another"), tensors.update({victim: torch.ones(3, 5)})))
    with pytest.raises(TensorError, match=rf"{victim} \[3, 5\], expected .*; config and weights disagree"):
        tower_of(checkpoint)
    change(checkpoint, lambda tensors: tensors.pop(victim))
    with pytest.raises(TensorError, match=rf"tensor {victim} is missing; the picture tower is incomplete"):
        tower_of(checkpoint)


WRONG: list[tuple[str, str, object, str]] = [
    ("4v", "vision_config.num_positions", 18, "num_positions is 18, .* patches of 14 pixels has 17"),
    ("4v", "vision_config.hidden_act", "gelu_new", "hidden_act is 'gelu_new', supported: 'gelu'"),
    ("4v", "vision_config.num_heads", 7, "heads do not divide hidden_size"),
    ("4v", "vision_config.num_hidden_layers", 10**8, "a picture tower of 100000000 layers"),
    ("4v", "boi_token_id", 320, r"begin of image 320\) are beyond the 320 rows"),
    ("4v", "eoi_token_id", None, "eoi_token_id is missing"),
    ("glm4v", "vision_config.attention_bias", True, "attention_bias is True, supported: False"),
    ("glm4v", "vision_config.out_hidden_size", 64, "out_hidden_size is 64, and the text model's hidden_size 128"),
    ("glm4v", "vision_config.image_size", 50, "heads do not divide hidden_size, or patches image_size"),
    ("glm4v", "vision_config", "none", "vision_config is 'none', expected an object"),
    ("glm4v", "text_config.rope_scaling.mrope_section", [1, 1, 1], r"mrope_section is \[1, 1, 1\], expected three"),
    ("glm4v", "text_config.rope_scaling.mrope_section", "8", "mrope_section is '8', expected three whole numbers"),
    ("glm4v", "text_config.rope_scaling.mrope_section", None, "rope_scaling.mrope_section is missing"),
    ("glm4v", "image_token_id", 151343, r"placeholder 151343\) are beyond the 320 rows"),
]


@pytest.mark.parametrize(("name", "key", "value", "message"), WRONG, ids=[f"{w[0]} {w[1]} {w[2]}" for w in WRONG])
def test_wrong_configurations(name: str, key: str, value: object, message: str, checkpoints: Path) -> None:
    opened = open_checkpoint(checkpoints / name)
    *path, last = key.split(".")
    changed = json.loads(json.dumps(opened.config.values))
    inner = changed
    for part in path:
        inner = inner[part]
    inner[last] = value
    opened.config = Fields(changed, "config.json")
    with pytest.raises(ConfigError, match=message):
        describe_tower(opened, describe(opened)[0])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("image_mean", [0.5], "image_mean is .*, expected three numbers, of red, green and blue"),
        ("rescale_factor", 1.0, "rescale_factor is 1.0, supported"),
        ("patch_size", 16, "patch_size is 16, supported: 14"),
        ("size", {}, "size.shortest_edge is missing"),
    ],
)
def test_pixels_that_are_made_otherwise(key: str, value: object, message: str, glm4v: Path) -> None:
    (glm4v / "preprocessor_config.json").write_text(json.dumps({**PIXELS_41V, key: value}))
    with pytest.raises(ConfigError, match=message):
        tower_of(glm4v)


def test_how_pictures_become_values_may_be_in_the_processors_file(glm4v: Path) -> None:
    expected, own = tower_of(glm4v).spec, glm4v / "preprocessor_config.json"
    (glm4v / "processor_config.json").write_text(json.dumps({"image_processor": json.loads(own.read_text())}))
    own.unlink()
    assert tower_of(glm4v).spec == expected
    (glm4v / "processor_config.json").unlink()
    with pytest.raises(ConfigError, match=r"preprocessor_config.json is missing.*--pictures none"):
        tower_of(glm4v)


def test_a_tower_without_a_configuration_is_doubted(checkpoints: Path) -> None:
    opened = open_checkpoint(checkpoints / "4v")
    opened.config = Fields({k: v for k, v in opened.config.values.items() if k != "vision_config"}, "config.json")
    spec = describe(opened)[0]
    assert not has_tower(opened)
    assert describe_tower(opened, spec) is None
    (doubt,) = doubts(opened, spec)
    assert doubt.startswith("the picture tower (50 tensors) is left out, because config.json has no vision_config")
