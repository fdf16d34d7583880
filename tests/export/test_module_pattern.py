"""Patterns of module names: what Python's re and PEFT say, in time that no pattern can choose."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.export.weights.module_pattern import ModulePattern

PIECES = [
    "a", "b", ".", "q", "0", "_", "\\.", "\\d", "\\W", "[a-c]", "[^.]", "[]a]", "(", ")", "|", "*", "+", "?",
    "{1,2}", "{2}", "{,2}", "{", "^", "$", "(?:", "(?P<n>", "q_proj", "layers", ".*", "\\w+", "\\Z",
    "??", "*?",
]  # fmt: skip
NAMES = ["model.layers.0.self_attn.q_proj", "q_proj", "a.q_proj", "layers.12.mlp.down_proj", "", "lm_head", "a]b"]


@settings(max_examples=1000)
@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join), st.text("ab.q0_]", max_size=9))
def test_patterns_match_as_peft_matches_them(pattern: str, name: str) -> None:
    try:
        re.compile(pattern)
    except re.error:
        with pytest.raises(ValueError):  # noqa: PT011
            ModulePattern(pattern)
        return
    try:
        ours = ModulePattern(pattern)
    except ValueError as error:
        said = str(error)
    else:
        said = ""
    if said:
        assert re.search("possessive|not supported|repeats", said)
        return
    theirs = re.compile(rf"(.*\.)?({pattern})$")
    for one in [*NAMES, name]:
        assert ours.matches(one) == (theirs.match(one) is not None), one


@pytest.mark.parametrize(
    "pattern",
    ["(.*)*x", "(a+)+$", "(a|a)*b", "((a*)*)*b", "(.*.*.*.*.*.*)*x", "a?" * 200 + "a" * 200, "(a|b|ab)*c", "(a*)*" * 9],
)
def test_no_pattern_takes_long(pattern: str) -> None:
    began = time.monotonic()
    compiled = ModulePattern(pattern)
    for layer in range(100):
        compiled.matches(f"model.layers.{layer}.{'a' * 60}_proj")
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("(((){999}){999}){999}", "more than 1,000 parts"),
        ("a{999999999}", "more than 1,000 parts"),
        ("(" * 100 + ")" * 100, "nest"),
        ("a" * 1001, "1,001 characters"),
        ("(?!a)b", "not supported"),
        ("(?i)a", "not supported"),
        (r"(a)\1", "not supported"),
        ("[a", "unterminated"),
        ("[b-a]", "bad character range"),
        ("a{3,2}", "wrong way round"),
        ("a)", "without a"),
        ("(a", "without a"),
        ("*a", "nothing to repeat"),
        ("a**", "repeats a repeat"),
        ("\\", "not supported"),
    ],
)
def test_what_is_refused(pattern: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ModulePattern(pattern)
