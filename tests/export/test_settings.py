"""The record of an export's choices takes what can be and refuses everything else in one form."""

from __future__ import annotations

import contextlib
import inspect
import json
import math
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.export.compress.recipes import DEFAULT
from edge.export.pipeline import export
from edge.export.settings import ExportSettings, Limits
from edge.runtime.errors import EdgeError, RecipeError, SettingsError

NAMES = [field.name for field in fields(ExportSettings)]
HUGE = 10**400  # no float holds it


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("recipe", 5, f"a name like {DEFAULT}"),
        ("recipe", "", f"a name like {DEFAULT}"),
        ("format", "tflite", "openvino, onnx or both"),
        ("format", ["onnx"], "openvino, onnx or both"),
        ("embedding", 4, "a precision like int4-asym-g128"),
        ("head", {}, "a precision like int4-asym-g128"),
        ("adapter", 5, "a path"),
        ("adapter", "", "a path"),
        ("calibration", b"text.txt", "a path"),
        ("calibration", "a\0b", "a path"),
        ("rope_theta", "x", "a number above 0, like 10000"),
        ("rope_theta", math.nan, "a number above 0, like 10000"),
        ("rope_theta", -1, "a number above 0, like 10000"),
        ("rope_theta", True, "a number above 0, like 10000"),
        ("max_bytes", "2GB", "a number of bytes of at least 1, like 5.2e9"),
        ("max_bytes", 0, "a number of bytes of at least 1, like 5.2e9"),
        ("max_bytes", math.nan, "a number of bytes of at least 1, like 5.2e9"),
        ("max_bytes", 1j, "a number of bytes of at least 1, like 5.2e9"),
        ("max_kld", -1.0, "a number of nats/token above 0, like 0.05"),
        ("max_kld", math.inf, "a number of nats/token above 0, like 0.05"),
        ("device", "TPU", "CPU, GPU or NPU"),
        ("force", "yes", "true or false"),
        ("force", 1, "true or false"),
    ],
)
def test_what_cannot_be_is_refused_in_one_form(name: str, value: Any, expected: str) -> None:
    with pytest.raises(SettingsError) as error:
        ExportSettings(**{name: value})
    assert str(error.value) == f"{name} is {value!r}, expected {expected}"


def test_a_long_value_is_cut() -> None:
    with pytest.raises(SettingsError, match=r"^max_bytes is 1000000\d+…, expected a number of bytes"):
        ExportSettings(max_bytes=HUGE)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"recipe": "int3"}, f"recipe 'int3' is unknown, expected a name like {DEFAULT}; "),
        ({"head": "int3-asym-g64"}, "precision 'int3-asym-g64' is unknown"),
        ({"embedding": "int4-asym-g" + "9" * 5000}, "is unknown"),
        ({"recipe": "int8-asym", "max_bytes": 1e9}, "recipe int8-asym and a budget are given"),
        ({"device": "CPU", "calibration": "text.txt"}, f"recipe {DEFAULT} takes no calibration text"),
        ({"calibration": "text.txt"}, f"recipe {DEFAULT} takes no calibration text"),
        ({"recipe": "int8-asym", "calibration": "text.txt"}, "recipe int8-asym takes no calibration text"),
    ],
)
def test_what_cannot_be_together_or_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        ExportSettings(**settings)


def test_none_is_the_default() -> None:
    nothing: dict[str, Any] = dict.fromkeys(NAMES)
    assert ExportSettings(**nothing) == ExportSettings()
    with pytest.raises(FrozenInstanceError):
        ExportSettings().force = True  # type: ignore[misc]


def test_limits_are_those_of_a_budget() -> None:
    assert ExportSettings("int8-asym").limits is None
    assert ExportSettings(max_bytes=5e9).limits == Limits(5e9, None, "CPU")
    found = ExportSettings(max_kld=np.float32(0.5), max_bytes=np.int64(7), device="NPU").limits  # type: ignore[arg-type]
    assert found == Limits(7, 0.5, "NPU")


def test_every_setting_is_a_keyword_of_export() -> None:
    """In one order, with one default."""
    parameters = inspect.signature(export).parameters
    assert [name for name in parameters if name not in ("source", "out", "progress")] == NAMES
    for field in fields(ExportSettings):
        assert parameters[field.name].default == field.default


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
WORDS = st.sampled_from([HUGE, "CPU", "onnx", "int8-asym", "int4-asym-g64-gptq", 1e9])
JSON = SCALARS | WORDS | st.lists(SCALARS, max_size=2) | st.dictionaries(st.text(max_size=3), SCALARS, max_size=2)


@given(st.dictionaries(st.sampled_from(NAMES), JSON, max_size=4))
def test_any_json_is_settings_or_an_error_of_ours(chosen: dict[str, Any]) -> None:
    with contextlib.suppress(EdgeError):
        assert isinstance(ExportSettings(**chosen).force, bool)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"source": 5}, "source is 5, expected a path"),
        ({"source": None}, "source is None, expected a path"),
        ({"out": ["x"]}, r"out is \['x'\], expected a path"),
        ({"progress": "bar"}, "progress is 'bar', expected a function"),
        ({"format": "tflite"}, "format is 'tflite', expected openvino, onnx or both"),
    ],
)
def test_what_export_refuses_before_it_reads(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    arguments = {"source": tmp_path / "missing", "out": tmp_path / "out", **settings}
    with pytest.raises(SettingsError, match=message):
        export(**arguments)
    assert not list(tmp_path.iterdir())


def test_settings_from_json(tmp_path: Path) -> None:
    text = '{"recipe": null, "max_bytes": 100000, "rope_theta": 10000, "force": false}'
    assert ExportSettings(**json.loads(text)).limits == Limits(100000)
