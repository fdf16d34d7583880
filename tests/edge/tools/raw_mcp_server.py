"""An MCP server by hand, which misbehaves as its one argument says: a JSON object.

Runs by its path, without this project or the `mcp` package.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

HOW: dict[str, Any] = json.loads(sys.argv[1])  # Any: JSON


def send(message: object) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def act(kind: str) -> None:
    """Misbehave, at the start or in a call."""
    if kind == "hang":
        time.sleep(600)
    elif kind == "die":
        sys.stderr.write(HOW.get("words", "last words") + "\n")
        sys.stderr.flush()
        os._exit(3)
    elif kind == "junk":
        for i in range(HOW.get("lines", 3)):
            sys.stdout.write(f"junk {i} {os.environ.get('TOKEN', '')}\n\n")
        sys.stdout.flush()
    elif kind == "bytes":
        sys.stdout.buffer.write(b"\xff\xfe\x00\n")
        sys.stdout.flush()
    elif kind == "flood":
        for _ in range(64):
            sys.stderr.write("x" * (1 << 16) + "\n")
    elif kind == "fork" and os.fork() == 0:
        time.sleep(600)


def listed(cursor: str | None) -> dict[str, Any]:  # Any: JSON
    if "list" in HOW:
        return dict(HOW["list"])
    names = HOW.get("names") or [f"t{i}" for i in range(HOW.get("tools", 1))]
    first, size = int(cursor or 0), HOW.get("page", 10_000)
    schema = HOW.get("schema", {"type": "object"})
    page = {"tools": [{"name": name, "inputSchema": schema} for name in names[first : first + size]]}
    more = first + size < len(names)
    return {**page, **({"nextCursor": str(first + size)} if more else {}), **HOW.get("more", {})}


def result(method: str, params: dict[str, Any]) -> dict[str, Any]:  # Any: JSON
    if method == "initialize":
        return {
            "protocolVersion": params["protocolVersion"],
            "capabilities": HOW.get("capabilities", {"tools": {}}),
            "serverInfo": {"name": "raw", "version": "1"},
        }
    if method == "tools/list":
        return listed(params.get("cursor"))
    act(HOW.get("call", ""))
    if "result" in HOW:
        return dict(HOW["result"])
    told = {
        "name": params["name"],
        "arguments": params.get("arguments"),
        "cwd": str(Path.cwd()),
        "env": dict(os.environ),
    }
    return {"content": [{"type": "text", "text": json.dumps(told | {"pid": os.getpid()})}]}


def main() -> None:
    if HOW.get("stubborn"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    act(HOW.get("start", ""))
    for line in sys.stdin:
        request = json.loads(line)
        if "id" not in request or "method" not in request:
            continue
        if request["method"] == "server/discover":
            send({"jsonrpc": "2.0", "id": request["id"], "error": {"code": -32601, "message": "Method not found"}})
        elif request["method"] == "tools/call" and "error" in HOW:
            send({"jsonrpc": "2.0", "id": request["id"], "error": HOW["error"]})
        elif request["method"] != HOW.get("mute"):
            result_ = result(request["method"], request.get("params") or {})
            send({"jsonrpc": "2.0", "id": request["id"], "result": result_})
    if HOW.get("stubborn"):
        time.sleep(600)


main()
