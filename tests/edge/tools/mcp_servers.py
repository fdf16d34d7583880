"""Configurations of MCP servers for tests, and whether a process has ended."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from edge.tools.tool import Tool

ROOT = Path(__file__).parents[3]
RAW = Path(__file__).with_name("raw_mcp_server.py")
SECRET = "s3cret-t0ken"

posix = pytest.mark.skipif(sys.platform == "win32", reason="scripts that can be run, processes in /proc")


def raw(**how: Any) -> dict[str, Any]:  # Any: JSON
    entry: dict[str, Any] = {
        key: how.pop(key) for key in ("env", "cwd", "timeout_ms", "excludeTools", "includeTools") if key in how
    }
    return {"command": sys.executable, "args": ["-S", str(RAW), json.dumps(how)], **entry}


def servers(**entries: object) -> dict[str, Any]:  # Any: JSON
    return {"mcpServers": entries}


def told(tool: Tool, **arguments: object) -> dict[str, Any]:  # Any: JSON
    found: dict[str, Any] = json.loads(str(tool.run(arguments)))
    return found
