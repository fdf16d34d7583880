"""Tools that run on this machine, and the loop that lets a model use them.

    for event in edge.tools.run_loop(llm, "What time is it in Paris?", tools=[time_in]):
        ...

Names are loaded when they are first used: importing this imports nothing else.
"""

import typing as _typing

if _typing.TYPE_CHECKING:
    from edge.tools.browser import browser_tool
    from edge.tools.cogview import cogview_tool
    from edge.tools.events import Call, Done, Event, Result, Text
    from edge.tools.function import tool_of
    from edge.tools.loop import run_loop
    from edge.tools.loop_async import run_loop_async
    from edge.tools.mcp import mcp_tools
    from edge.tools.python import python_tool
    from edge.tools.tool import Tool

__all__ = [
    "Call",
    "Done",
    "Event",
    "Result",
    "Text",
    "Tool",
    "browser_tool",
    "cogview_tool",
    "mcp_tools",
    "python_tool",
    "run_loop",
    "run_loop_async",
    "tool_of",
]

_HOMES = {
    **dict.fromkeys(("Call", "Done", "Event", "Result", "Text"), "edge.tools.events"),
    "Tool": "edge.tools.tool",
    "browser_tool": "edge.tools.browser",
    "cogview_tool": "edge.tools.cogview",
    "mcp_tools": "edge.tools.mcp",
    "python_tool": "edge.tools.python",
    "run_loop": "edge.tools.loop",
    "run_loop_async": "edge.tools.loop_async",
    "tool_of": "edge.tools.function",
}


if not _typing.TYPE_CHECKING:  # a checker that saw it would take any name for one of ours

    def __getattr__(name: str) -> object:
        from importlib import import_module

        if name not in _HOMES:
            raise AttributeError(f"module 'edge.tools' has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
