"""One line out of what a library or a process says."""

from __future__ import annotations

import pytest

from edge.runtime.errors import telling_line

OPENVINO = """Exception from src/inference/src/cpp/core.cpp:126:
Exception from src/inference/src/dev/core_impl.cpp:641:
Device with "TOASTER" name is not registered in the OpenVINO Runtime
"""


@pytest.mark.parametrize(
    ("said", "first", "last"),
    [
        ("  one\n\n two \n", "one", "two"),
        (OPENVINO, OPENVINO.splitlines()[-1], OPENVINO.splitlines()[-1]),
        ("Check 'a' failed at x.cpp:5:\nthe shapes differ\n", "the shapes differ", "the shapes differ"),
        ("Exception from x.cpp:5:", "Exception from x.cpp:5:", "Exception from x.cpp:5:"),
        ("[ONNXRuntimeError] : 1 : FAIL : no such node", "FAIL : no such node", "FAIL : no such node"),
        ("grammar:1\nerror: unknown type", "unknown type", "error: unknown type"),
        ("", "no reason given", "no reason given"),
    ],
)
def test_telling_line(said: str, first: str, last: str) -> None:
    for text in (said, ValueError(said)) if said else (said,):
        assert telling_line(text) == first
        assert telling_line(text, last=True) == last


def test_an_exception_without_a_message_is_named() -> None:
    assert telling_line(MemoryError()) == "MemoryError"
