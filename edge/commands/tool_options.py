"""The tools of a command line: which ones a model may call, and what they may see.

In: options. Out: tools, closed at the end. None is there unless it is named. Knows nothing about how calls are found.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge.tools.tool import Tool

TOOLS = ("python", "browser", "cogview")


def add_tools(parser: argparse.ArgumentParser) -> None:
    """What the model may call."""
    group = parser.add_argument_group("tools", "what the model may call; nothing, if none is named")
    group.add_argument(
        "--tool",
        action="append",
        choices=TOOLS,
        default=[],
        dest="tools",
        help="python: run code in a sandbox without network; browser: search and read the documents of --docs; "
        "cogview: be told that there are no pictures; repeatable",
    )
    group.add_argument("--docs", metavar="DIR", help="the documents that the browser finds; implies --tool browser")
    group.add_argument(
        "--mcp",
        metavar="FILE",
        help="start the servers of this mcpServers file, as other programs have it, for their tools",
    )


@contextmanager
def opened_tools(args: argparse.Namespace) -> Iterator[list[Tool]]:
    """The named tools, until the end. Raises SettingsError, ToolError and MissingPackageError."""
    names = list(dict.fromkeys([*args.tools, *(["browser"] if args.docs is not None else [])]))
    with ExitStack() as closing:
        tools = []
        for name in names:
            tool = _open(name, args)
            closing.callback(tool.close)
            tools.append(tool)
        if args.mcp is not None:
            from edge.tools.mcp import mcp_tools

            tools += closing.enter_context(mcp_tools(args.mcp))
        yield tools


def _open(name: str, args: argparse.Namespace) -> Tool:
    from edge.runtime.errors import SettingsError

    if name == "python":
        from edge.tools.python import python_tool

        return python_tool()
    if name == "browser":
        from edge.tools.browser.tool import browser_tool

        if args.docs is None:
            raise SettingsError("--tool browser reads a folder of documents; name it with --docs")
        return browser_tool(args.docs)
    from edge.tools.cogview import cogview_tool

    return cogview_tool()
