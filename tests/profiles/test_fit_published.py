"""Predictions against published figures of GLM-4-9B on Intel GPUs, none of which went into them."""

from __future__ import annotations

import pytest

from edge.export.compress.recipes import find_recipe
from edge.profiles.devices.table import device_profiles
from edge.profiles.fit.figures import factor_between
from edge.profiles.fit.places import place_of
from edge.profiles.fit.predict import Prediction, predict
from edge.profiles.fit.published import GLM4, GPU, MODELS, NPU, Published, efficiency, efficiency_of
from edge.profiles.fit.subject import Subject

TOKENIZER = 19_967_863  # bytes of GLM-4's tokenizer.json


def prediction(one: Published) -> Prediction:
    planned = Subject(one.model, MODELS[one.model]).planned(find_recipe(one.recipe))
    assert planned is not None
    return predict(planned, place_of(device_profiles()[one.device]), one.prompt_tokens + 64, tokenizer_bytes=TOKENIZER)


@pytest.mark.parametrize("one", GLM4, ids=lambda one: f"{one.device}-{one.recipe}")
def test_speed_and_memory_of_glm4_9b_follow_from_other_models(one: Published) -> None:
    found = prediction(one)
    assert found.decode.value == pytest.approx(one.tok_s, rel=0.35)
    assert found.ttft is not None
    assert one.ttft_s is not None
    assert factor_between(found.ttft.value, one.ttft_s) <= 2
    assert one.memory_mib is not None
    assert found.memory.value / 2**20 == pytest.approx(one.memory_mib, rel=0.2)
    assert found.runs


@pytest.mark.parametrize("one", GLM4, ids=lambda one: f"{one.device}-{one.recipe}")
def test_what_is_published_is_within_the_stated_error(one: Published) -> None:
    found = prediction(one)
    assert found.decode.low <= one.tok_s <= found.decode.high
    assert found.ttft is not None
    assert one.ttft_s is not None
    assert found.ttft.low <= one.ttft_s <= found.ttft.high
    assert one.memory_mib is not None
    assert found.memory.low <= one.memory_mib * 2**20 <= found.memory.high


def test_no_figure_of_glm4_went_into_the_gpus_efficiency() -> None:
    assert all(one.model != "GLM-4-9B" for one in (*GPU, *NPU))
    assert 0.3 < efficiency("gpu").value < 0.7
    assert not efficiency("gpu").about
    assert efficiency("npu").about
    assert efficiency("cpu").about
    assert efficiency("cpu").factor >= 2


@pytest.mark.parametrize("one", GPU, ids=lambda one: f"{one.model}-{one.device}")
def test_an_efficiency_is_a_share(one: Published) -> None:
    assert 0.05 < efficiency_of(one, "gpu") < 1
    assert one.source
    assert one.device in device_profiles()
