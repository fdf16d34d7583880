"""Values of a stranger's configuration: read as what they are, or refused by their key."""

from __future__ import annotations

import math
from typing import Any

import pytest

from edge.export.checkpoint.fields import LARGEST, Fields
from edge.runtime.errors import ConfigError


def fields(**values: object) -> Fields:
    return Fields(values, "it")


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (int, True), (int, 1.0), (int, "1"), (int, [1]), (int, LARGEST + 1), (int, -(2**63)), (int, 10**39),
        (float, True), (float, "1"), (float, math.nan), (float, math.inf), (float, -math.inf), (float, 10**39),
        (float, {}), (str, 1), (str, ["glm"]), (bool, 1), (bool, "true"),
    ],
)  # fmt: skip
def test_values_that_are_something_else(kind: type[Any], value: object) -> None:
    with pytest.raises(ConfigError, match=r"it: a is .*, expected (a|text|true)") as error:
        fields(a=value).read(kind, "a")
    assert len(str(error.value)) < 250


def test_long_values_are_cut_in_messages() -> None:
    for value in ("x" * 10_000, [0] * 10_000, {"\x1b[2J": "\x1b"}):
        with pytest.raises(ConfigError) as error:
            fields(a=value).positive("a")
        assert len(str(error.value)) < 250
        assert "\x1b" not in str(error.value)
        with pytest.raises(ConfigError) as error:
            fields(a=value).require("a", "silu")
        assert len(str(error.value)) < 250


def test_whole_numbers_are_floats_too() -> None:
    assert fields(a=5_000_000).read(float, "a") == 5e6
    assert fields(a=LARGEST).read(int, "a") == LARGEST


@pytest.mark.parametrize("value", [None, -1, [-1], [], 2**32 - 1, [2**32 - 1, -1]])
def test_no_id(value: object) -> None:
    """-1 says that there is none, and GGUF makes 2**32 - 1 of it."""
    assert fields(a=value).ids("a") == ()


def test_ids() -> None:
    assert fields(a=5).ids("a") == (5,)
    assert fields(a=[5, -1, 0, 7]).ids("a") == (5, 0, 7)
    assert fields().ids("a") == ()


@pytest.mark.parametrize("value", [True, "5", [5, "6"], [5, None], [[5]], -2, 5.0, {}, 10**39, [LARGEST + 1], math.nan])
def test_what_is_no_id(value: object) -> None:
    with pytest.raises(ConfigError, match=r"it: a is .*, expected token ids, or -1 for none"):
        fields(a=value).ids("a")


def test_parts() -> None:
    assert fields(a=0.5).part("a", default=1.0) == 0.5
    assert fields().part("a", default=1.0) == 1.0
    for value in (-0.1, 1.1, 1e308, math.inf, math.nan, "0.5"):
        with pytest.raises(ConfigError, match=r"it: a is .*, expected"):
            fields(a=value).part("a", default=1.0)
