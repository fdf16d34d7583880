"""An argument that is not one of some values is told which there are, so that the next call can be right."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Literal

import pytest

from edge import PromptError
from edge.tools import tool_of


class Unit(enum.Enum):
    C = "celsius"
    F = "fahrenheit"


def by_enum(unit: Unit) -> None: ...
def by_literal(unit: Literal["celsius", "fahrenheit"], day: str = "today") -> None: ...
def of_a_list(unit: list[Unit]) -> None: ...


@pytest.mark.parametrize(
    ("function", "given"), [(by_enum, "kelvin"), (by_literal, "kelvin"), (of_a_list, ["celsius", "kelvin"])]
)
def test_the_choices_are_told(function: Callable[..., None], given: object) -> None:
    with pytest.raises(PromptError, match=r"kelvin.*\"celsius\", \"fahrenheit\".*; expected unit") as raised:
        tool_of(function).run({"unit": given})
    assert function is by_literal or str(raised.value).endswith("; expected unit")
