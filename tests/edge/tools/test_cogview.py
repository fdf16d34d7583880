"""cogview is recognized, and says that it is not there."""

from __future__ import annotations

import pytest

from edge.runtime.tools.declared import checked_tools
from edge.tools.cogview import ANSWER, cogview_tool


@pytest.mark.parametrize("arguments", [{"input": "a red fox"}, {"prompt": "a red fox"}, {}, {"other": [1]}])
def test_every_call_gets_the_same_answer(arguments: dict[str, object]) -> None:
    tool = cogview_tool()
    assert tool.run(arguments) == ANSWER
    assert "not available here" in ANSWER
    tool.close()


def test_how_it_is_declared() -> None:
    tool = cogview_tool()
    assert tool.name == "cogview"
    assert checked_tools([tool.declaration, {"type": "function", "function": {"name": "other"}}])[0] is tool.declaration
    assert tool.native == {"type": "cogview"}
    assert checked_tools([tool.native]) == ({"type": "cogview"},)
