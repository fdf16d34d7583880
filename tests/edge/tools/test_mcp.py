"""Tools of MCP servers: one made with the protocol's own package, and one by hand that misbehaves in many ways."""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from edge import MissingPackageError, SettingsError, ToolError
from edge.runtime.extras import install_command
from edge.tools.mcp import START_S, mcp_tools
from edge.tools.tool import Tool
from tests.edge.tools.mcp_servers import SECRET, posix, raw, servers, told

REAL = """
import os
from mcp.server.mcpserver import Image, MCPServer

server = MCPServer("real")

@server.tool()
def add(a: int, b: int) -> int:
    "Adds two numbers."
    return a + b

@server.tool()
def fail(city: str) -> str:
    from mcp.server.mcpserver.exceptions import ToolError
    raise ToolError(f"no weather for {city}")

@server.tool()
def picture() -> list[str | Image]:
    return ["a picture:", Image(data=b"png", format="png")]

@server.tool()
def pid() -> int:
    return os.getpid()

server.run()
"""


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Tool]]:
    script = tmp_path_factory.mktemp("mcp") / "server.py"
    script.write_text(REAL)
    config = script.with_name("mcp.json")
    config.write_text(
        json.dumps(servers(real={"type": "stdio", "command": sys.executable, "args": ["server.py"], "cwd": "."}))
    )
    with mcp_tools(config) as tools:
        yield {tool.name: tool for tool in tools}


def test_tools_of_a_real_server(real: dict[str, Tool]) -> None:
    assert [*real] == ["real_add", "real_fail", "real_picture", "real_pid"]
    function = real["real_add"].declaration["function"]
    assert function["description"] == "Adds two numbers."
    assert function["parameters"]["required"] == ["a", "b"]
    assert real["real_add"].run({"a": 20, "b": 22}) == "42"


def test_parts_that_are_not_text_are_named(real: dict[str, Tool]) -> None:
    assert real["real_picture"].run({}) == "a picture:\n[an image, image/png]"


def test_what_fails_is_an_error_for_the_model(real: dict[str, Tool]) -> None:
    with pytest.raises(ToolError, match="no weather for Atlantis"):
        real["real_fail"].run({"city": "Atlantis"})
    with pytest.raises(ToolError, match="valid integer"):
        real["real_add"].run({"a": "many", "b": 1})
    assert real["real_add"].run({"a": 1, "b": 2}) == "3"  # and the server is still there


def test_calls_from_many_threads(real: dict[str, Tool]) -> None:
    with ThreadPoolExecutor(8) as pool:
        sums = pool.map(lambda i: real["real_add"].run({"a": i, "b": i}), range(40))
    assert [*sums] == [str(2 * i) for i in range(40)]


def test_the_environment_is_minimal_and_the_folder_is_the_entrys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUR_PRIVATE_VARIABLE", "1")
    monkeypatch.setenv("FROM_US", SECRET)
    entry = raw(env={"TOKEN": "${FROM_US}", "PLAIN": "a ${FROM_US}"}, cwd=str(tmp_path))
    with mcp_tools(servers(raw=entry)) as (tool,):
        call = told(tool, place="東京", n=[1, {"x": None}])
    assert call["arguments"] == {"place": "東京", "n": [1, {"x": None}]}
    assert Path(call["cwd"]) == tmp_path
    assert call["env"]["TOKEN"] == SECRET
    assert call["env"]["PLAIN"] == "a ${FROM_US}"
    assert "OUR_PRIVATE_VARIABLE" not in call["env"]


@pytest.mark.parametrize(("count", "page"), [(0, 10), (1000, 64), (3, 1)])
def test_any_number_of_tools_in_pages(count: int, page: int) -> None:
    with mcp_tools(servers(raw=raw(tools=count, page=page))) as tools:
        assert [tool.name for tool in tools] == [f"raw_t{i}" for i in range(count)]
        if tools:
            assert told(tools[-1])["name"] == f"t{count - 1}"


def test_a_server_without_tools_is_not_asked_for_them() -> None:
    with mcp_tools(servers(raw=raw(capabilities={}))) as tools:
        assert tools == []


def test_odd_names_are_made_valid_and_the_server_hears_its_own() -> None:
    names = ["a.b", "a b", "天气", "x" * 200, "x" * 201, "a_b"]
    with mcp_tools({"mcpServers": {"my server": raw(names=names), "my_server": raw(names=["a.b"])}}) as tools:
        assert len({tool.name for tool in tools}) == 7
        assert all(len(tool.name) <= 64 and tool.name.isascii() and " " not in tool.name for tool in tools)
        assert [told(tool)["name"] for tool in tools] == [*names, "a.b"]


def test_tools_are_left_out_where_the_entry_says_so() -> None:
    with mcp_tools(servers(raw=raw(tools=4, includeTools=["t1", "t2"], excludeTools=["t2"]))) as tools:
        assert [tool.name for tool in tools] == ["raw_t1"]


def test_a_tool_with_a_schema_that_cannot_be_told_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    deep: dict[str, object] = {"type": "object"}
    for _ in range(40):
        deep = {"type": "object", "properties": {"x": deep}}
    good = {"type": "object", "$defs": {"a": {"type": "string"}}, "properties": {"a": {"$ref": "#/$defs/a"}}}
    listed = [{"name": "deep", "inputSchema": deep}, {"name": "good", "inputSchema": good}]
    with mcp_tools(servers(raw=raw(list={"tools": listed}))) as (tool,):
        assert tool.declaration["function"] == {"name": "raw_good", "description": "", "parameters": good}
    (record,) = caplog.records
    assert record.getMessage().startswith("the tool raw_deep is left out: ")


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"start": "die", "words": f"no key {SECRET} here"}, r"ended before it answered.*ends in: no key \*\*\* here"),
        ({"start": "hang"}, "did not answer within 1 s"),
        ({"list": {"tools": [{"name": "x"}]}}, "does not follow the protocol: tools.0.inputSchema: Field required"),
        ({"more": {"nextCursor": "0"}}, "list of tools does not end"),
    ],
)
def test_servers_that_do_not_start(how: dict[str, Any], expected: str) -> None:
    before = threading.active_count()
    hangs = how == {"start": "hang"}  # then there is no other, which might need longer on a busy machine
    config = servers(**({} if hangs else {"good": raw()}), bad=raw(env={"TOKEN": SECRET}, **how))
    with (
        pytest.raises(ToolError, match=f"the MCP server 'bad' .*{expected}") as raised,
        mcp_tools(config, start_seconds=1 if hangs else 60),
    ):
        pass
    assert SECRET not in str(raised.value)
    until = time.monotonic() + 20  # a thread that has nothing left to do ends soon after
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_a_failure_does_not_wait_for_servers_that_are_still_starting() -> None:
    started = time.monotonic()
    config = servers(waiting=raw(mute="initialize"), bad=raw(start="die"))
    with pytest.raises(ToolError, match="'bad' ended before it answered"), mcp_tools(config):
        pass
    assert time.monotonic() - started < START_S - 5


@posix
def test_a_program_that_is_not_a_server(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("neither a script nor a program")
    wrong.chmod(0o755)
    with (
        pytest.raises(ToolError, match=r"'bad' .*could not be started: Exec format error"),
        mcp_tools(servers(bad={"command": "./wrong", "cwd": str(tmp_path)})),
    ):
        pass
    with pytest.raises(ToolError, match="'bad' ended before it answered"), mcp_tools(servers(bad={"command": "true"})):
        pass


def test_a_call_that_takes_too_long_leaves_the_others() -> None:
    started = time.monotonic()
    with mcp_tools(servers(slow=raw(call="hang", timeout_ms=300), good=raw())) as (slow, good):
        with pytest.raises(ToolError, match=r"'slow' within 0\.3 s"):
            slow.run({})
        # A megabyte does not fit into the pipe to a server that has stopped reading.
        with pytest.raises(ToolError, match=r"'slow' within 0\.3 s"):
            slow.run({"text": "x" * (1 << 20)})
        assert time.monotonic() - started < 30  # the servers wait for 600
        assert told(good, text="y" * (1 << 20))["arguments"] == {"text": "y" * (1 << 20)}


def test_a_server_that_dies_in_a_call_says_why() -> None:
    entry = raw(call="die", words=f"out of memory at {SECRET}", env={"TOKEN": SECRET})
    with mcp_tools(servers(bad=entry, good=raw())) as (bad, good):
        with pytest.raises(ToolError, match=r"'bad' has ended; its stderr ends in: out of memory at \*\*\*$"):
            bad.run({})
        with pytest.raises(ToolError, match="'bad' has ended"):
            bad.run({})
        assert told(good)["name"] == "t0"


@pytest.mark.parametrize("when", ["start", "call"])
@pytest.mark.parametrize("kind", ["junk", "bytes", "flood"])
def test_noise_is_skipped(kind: str, when: str, caplog: pytest.LogCaptureFixture) -> None:
    with mcp_tools(servers(noisy=raw(**{when: kind}, lines=500, env={"TOKEN": SECRET}))) as (tool,):
        assert told(tool)["name"] == "t0"
        assert told(tool)["name"] == "t0"
    lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == (0 if kind == "flood" else 1)
    for record in lines:
        assert "'noisy' writes lines to stdout that are not messages" in record.getMessage()
    assert SECRET not in caplog.text


def test_results_of_every_kind() -> None:
    resource = {"uri": "file:///a.txt", "mimeType": "text/plain"}
    content = [
        {"type": "text", "text": "one"},
        {"type": "audio", "data": "", "mimeType": "audio/wav"},
        {"type": "resource_link", "name": "a", "uri": "file:///a"},
        {"type": "resource", "resource": resource | {"text": "two"}},
        {"type": "resource", "resource": resource | {"blob": ""}},
    ]
    expected = "one\n[a sound, audio/wav]\n[a link, a: file:///a]\ntwo\n[a file, text/plain: file:///a.txt]"
    results = {
        "every": {"content": content},
        "structured": {"content": [], "structuredContent": {"é": 1}},
        "nothing": {"content": []},
        "failed": {"content": [{"type": "text", "text": f"bad {SECRET}"}], "isError": True},
        "silent": {"content": [], "isError": True},
        "wrong": {"content": [{"type": "hologram"}]},
    }
    entries = {name: raw(result=result, env={"TOKEN": SECRET}) for name, result in results.items()}
    entries["refused"] = raw(error={"code": -32000, "message": "quota is used up"})
    with mcp_tools(servers(**entries)) as tools:
        by_name = {tool.name.removesuffix("_t0"): tool for tool in tools}
        assert by_name["every"].run({}) == expected
        assert by_name["structured"].run({}) == '{"é": 1}'
        assert by_name["nothing"].run({}) == ""
        for name, message in {
            "failed": r"^bad \*\*\*$",
            "silent": "does not say why",
            "wrong": "not one of the protocol's: ",
            "refused": "^quota is used up$",
        }.items():
            with pytest.raises(ToolError, match=message):
                by_name[name].run({})


def test_the_extra_is_named_where_the_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mcp", None)
    monkeypatch.delitem(sys.modules, "edge.tools.mcp_server", raising=False)
    with pytest.raises(MissingPackageError, match=re.escape(install_command("mcp"))), mcp_tools(servers(raw=raw())):
        pass
    with mcp_tools(servers()) as tools:  # nothing to start needs nothing
        assert tools == []


@pytest.mark.parametrize(
    "value", [0, -1, float("nan"), float("inf"), "1", None, True, pytest.param(10**400, id="huge")]
)
def test_the_time_to_start_is_checked(value: Any) -> None:
    with pytest.raises(SettingsError, match="start_seconds"), mcp_tools(servers(), start_seconds=value):
        pass
