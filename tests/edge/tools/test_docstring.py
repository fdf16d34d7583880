"""Descriptions of functions and parameters, in every style of docstrings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.tools.docstring import described

STYLES = {
    "google": "Find it.\n\nArgs:\n    city (str): where\n        to look\n    *days: days: many\n\nReturns:\n    x: y",
    "google without a blank line": "Find it.\nArgs:\n  city: where to look\n\n  days (int, optional): days: many",
    "numpy": (
        "Find it.\n\nParameters\n----------\ncity : str, optional\n    where\n    to look\ndays\n    days: many\n\n"
        "Returns\n-------\nx : str\n    y"
    ),
    "rest": "Find it.\n\n:param city: where\n    to look\n:param int days: days: many\n:returns: y\n:rtype: str",
    "rest at once": "Find it.\n:param str city: where to look\n:type city: str\n:param days: days: many",
}


@pytest.mark.parametrize("style", STYLES)
def test_docstrings(style: str) -> None:
    texts = {"city": "where to look", "days": "days: many"}
    assert described(STYLES[style], ["city", "days", "x"]) == ("Find it.", texts)


def test_docstrings_that_describe_nothing() -> None:
    assert described(None, ["city"]) == ("", {})
    assert described("", []) == ("", {})
    assert described("One: two.\n\ncity: is not a section", ["city"]) == ("One: two.", {})
    assert described("One.\nNote:\n    this is told: yes\n", ["this"]) == ("One.", {})
    both = "A.\n\n    Parameters:\n        a, b (int): no name\n        b: yes"
    assert described(both, ["a", "b"])[1] == {"b": "yes"}
    numpy_pair = "A.\n\nParameters\n----------\na, b : int\n    both"
    assert described(numpy_pair, ["a", "b"])[1] == {"a": "both", "b": "both"}


@given(st.text(st.sampled_from("Args:\n -(x)*Param\t"), max_size=120))
def test_every_docstring_is_read(text: str) -> None:
    found, texts = described(text, ["x"])
    assert "\n" not in found
    assert set(texts) <= {"x"}
