"""MCP servers end with the block that started them, with the program, and with the children that they made."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from edge import ToolError
from edge.tools.mcp import mcp_tools
from edge.tools.tool import Tool
from tests.edge.tools.mcp_servers import ROOT, posix, raw, servers, told
from tests.processes import children, gone

pytestmark = posix


def test_the_end_of_the_block_is_the_end_of_calls_and_processes() -> None:
    problems: list[str] = []

    def call(tool: Tool) -> None:
        with pytest.raises(ToolError) as raised:
            tool.run({})
        problems.append(str(raised.value))

    with mcp_tools(servers(slow=raw(mute="tools/call"), quick=raw())) as (slow, quick):
        pid = told(quick)["pid"]
        thread = threading.Thread(target=call, args=(slow,))
        thread.start()
        time.sleep(0.2)
    thread.join(60)
    assert len(problems) == 1
    assert gone(pid)
    with pytest.raises(ToolError, match="the MCP servers were closed"):
        quick.run({})


def test_a_server_that_will_not_end_is_killed_with_its_children() -> None:
    with mcp_tools(servers(stubborn=raw(stubborn=True, call="fork"))) as (tool,):
        pid = told(tool)["pid"]
        (child,) = children(pid)
    assert gone(pid)
    assert gone(child)


def test_an_error_in_the_block_ends_the_servers() -> None:
    pids: list[int] = []

    def fail() -> None:
        with mcp_tools(servers(raw=raw())) as (tool,):
            pids.append(told(tool)["pid"])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert gone(pids[0])


PROGRAM = """
import json, signal, sys
from edge.tools.mcp import mcp_tools
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    with mcp_tools(json.loads(sys.argv[1])) as (slow, quick):
        print(json.loads(quick.run({}))["pid"], flush=True)
        slow.run({})
except KeyboardInterrupt:
    print("interrupted")
"""


IGNORES_ALL = pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a process with its parent")


@pytest.mark.parametrize(
    ("number", "how"),
    [
        (signal.SIGINT, {}),
        (signal.SIGKILL, {}),
        pytest.param(signal.SIGKILL, {"stubborn": True}, marks=IGNORES_ALL),  # of the end of its stdin, and of SIGTERM
    ],
)
def test_servers_end_with_the_program(number: signal.Signals, how: dict[str, bool]) -> None:
    config = json.dumps(servers(slow=raw(mute="tools/call"), quick=raw(**how)))
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, config],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert program.stdout is not None
    pid = int(program.stdout.readline())
    time.sleep(0.1)
    program.send_signal(number)
    out, _ = program.communicate(timeout=60)
    assert out == ("interrupted\n" if number == signal.SIGINT else "")
    assert gone(pid)
