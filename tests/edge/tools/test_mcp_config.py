"""The configuration of MCP servers, and the names of their tools: every form, every wrong value, no secret."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge import SettingsError
from edge.tools.mcp_config import ServerEntry, read_servers
from edge.tools.mcp_words import tool_name
from tests.edge.tools.mcp_servers import SECRET, posix

WORKS: dict[str, Any] = {"command": sys.executable}


def one(entry: object, name: str = "a") -> ServerEntry:
    (found,) = read_servers({"mcpServers": {name: entry}})
    return found


@posix
def test_a_file_as_other_programs_have_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "serve"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    full = {"type": "stdio", "command": "serve", "args": ["-v"], "env": {"A": "1"}, "cwd": "bin", "timeout_ms": 1500}
    entries = {
        "full": full,
        "bare": {"command": "serve"},
        "off": {"url": "x", "disabled": True},
        "out": {"enabled": False},
    }
    path = tmp_path / "mcp.json"
    path.write_text("\ufeff" + json.dumps({"mcpServers": entries, "globalShortcut": ""}), encoding="utf-8")
    monkeypatch.chdir(tmp_path.parent)
    for given_path in (path, str(path), Path(tmp_path.name) / "mcp.json"):
        full_entry, bare = read_servers(given_path)
        assert full_entry == ServerEntry("full", str(program), ("-v",), {"A": "1"}, program.parent, 1.5)
        assert bare == ServerEntry("bare", str(program))
    assert bare.timeout_s == 30


@posix
def test_a_command_is_found_on_the_servers_own_path_and_in_its_folder(tmp_path: Path) -> None:
    program = tmp_path / "serve"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert one({"command": "serve", "env": {"PATH": str(tmp_path)}}).command == str(program)
    assert Path(one({"command": "./serve", "cwd": str(tmp_path)}).command).samefile(program)
    for entry in ({"command": "serve"}, {"command": "./serve"}, {"command": str(tmp_path / "none")}):
        with pytest.raises(SettingsError, match=r"mcpServers\.a\.command is .*(PATH|path)"):
            one(entry)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, "config has no object mcpServers"),
        ({"mcpServers": [SECRET]}, "config has no object mcpServers"),
        ({"servers": {"a": WORKS}}, "config has no object mcpServers"),
        ({"mcpServers": {"": WORKS}}, "1 to 100 printable"),
        ({"mcpServers": {"a\n": WORKS}}, "1 to 100 printable"),
        ({"mcpServers": {1: WORKS}}, "1 to 100 printable"),
        (17, "config is 17, expected the path"),
        ("", "config is '', expected the path"),
        ("nowhere.json", r"nowhere\.json"),
        ("/dev/null", "/dev/null"),
    ],
)
def test_what_is_not_a_configuration(config: Any, expected: str) -> None:
    with pytest.raises(SettingsError, match=expected) as raised:
        read_servers(config)
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (SECRET, r"mcpServers\.a is a text, expected an object with a command"),
        ({}, r"mcpServers\.a\.command is missing"),
        ({"command": [SECRET]}, r"command is a list, expected the name or path"),
        ({"command": "a\0b"}, "null character"),
        (WORKS | {"args": SECRET}, r"args is a text, expected a list of texts"),
        (WORKS | {"args": ["x", 5]}, r"args\[1\] is a number, expected a text"),
        (WORKS | {"args": [SECRET + "\0"]}, r"args\[0\] has a null character"),
        (WORKS | {"args": [SECRET + "\ud800"]}, r"args\[0\] has a character in it that is not Unicode"),
        (WORKS | {"env": [SECRET]}, r"env is a list, expected an object of texts"),
        (WORKS | {"env": {"TOKEN": 5}}, r"env\.TOKEN is a number, expected a text"),
        (WORKS | {"env": {"TOKEN": None}}, r"env\.TOKEN is missing, expected a text"),
        (WORKS | {"env": {"A=B": SECRET}}, "expected a variable"),
        (WORKS | {"env": {"TOKEN": "${NOT_SET_ANYWHERE}"}}, r"NOT_SET_ANYWHERE\}, which is not set"),
        (WORKS | {"cwd": "no/such/folder"}, "expected a folder that exists"),
        (WORKS | {"cwd": 5}, r"cwd is a number, expected a path"),
        (WORKS | {"timeout_ms": 0}, r"timeout_ms is 0, expected a whole number"),
        (WORKS | {"timeout_ms": "30"}, r"timeout_ms is '30'"),
        (WORKS | {"disabled": "yes"}, r"disabled is a text, expected true or false"),
        (WORKS | {"type": "http"}, r"type is 'http': only servers that are started here"),
        (WORKS | {"transport": "sse"}, r"transport is 'sse': only servers that are started here"),
        ({"url": f"https://x/?key={SECRET}"}, r"has url: servers on a network are not supported"),
        ({"httpUrl": f"https://x/?key={SECRET}"}, r"has httpUrl: servers on a network"),
    ],
)
def test_wrong_entries_are_named_without_what_may_be_secret(entry: object, expected: str) -> None:
    with pytest.raises(SettingsError, match=expected) as raised:
        one(entry)
    assert SECRET not in str(raised.value)
    assert raised.value.param is not None
    assert raised.value.param.startswith("mcpServers")


def test_keys_that_are_not_used_are_named_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    one(WORKS | {"autoApprove": [SECRET], "timeout": 60, "args": None, "env": None, "cwd": None})
    assert [record.getMessage() for record in caplog.records] == ["mcpServers.a: not used here: autoApprove, timeout"]
    assert caplog.records[0].levelno == logging.WARNING


def test_tools_that_an_entry_leaves_out() -> None:
    entry = one(WORKS | {"includeTools": ["x", "y", "z"], "excludeTools": ["y"], "disabledTools": ["z"]})
    assert [tool for tool in "wxyz" if entry.offers(tool)] == ["x"]
    assert all(one(WORKS).offers(tool) for tool in "wxyz")


def test_secrets_are_in_no_repr_and_are_taken_out_of_text() -> None:
    key = f"-----BEGIN-----\n{SECRET}\n-----END-----\n"
    entry = one(WORKS | {"args": [SECRET], "env": {"TOKEN": SECRET, "KEY": key, "DEBUG": "1"}})
    assert SECRET not in repr(entry)
    for text in (SECRET, f"a {SECRET} b", key, repr(key), json.dumps({"k": key}), key.splitlines()[1]):
        assert SECRET not in entry.without_secrets(text)
    assert entry.without_secrets("line 1") == "line 1"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(
    ["command", "args", "env", "cwd", "timeout_ms", "type", "disabled", "enabled", "url", "excludeTools"]
)


@given(st.dictionaries(KEYS, JSON) | JSON, st.text())
def test_any_entry_is_read_or_refused(entry: object, name: str) -> None:
    if isinstance(entry, dict):
        entry = {"command": sys.executable} | entry
    try:
        found = read_servers({"mcpServers": {name: entry}})
    except SettingsError as error:
        told = str(error)
    else:
        told = repr(found)
        assert all(os.access(server.command, os.X_OK) for server in found)
    assert told.isprintable()


@given(st.lists(st.tuples(st.sampled_from(["a", "simple", "a b", "é", "s" * 90]), st.text(max_size=90)), max_size=30))
def test_names_are_valid_and_unique(pairs: list[tuple[str, str]]) -> None:
    taken: list[str] = []
    for server, tool in pairs:
        name = tool_name(server, tool, taken)
        assert re.fullmatch("[A-Za-z0-9_-]{1,64}", name)
        assert name not in taken
        assert name == tool_name(server, tool, taken)  # the same every time: a model's cache knows it
        taken.append(name)


def test_names_keep_what_they_can() -> None:
    assert tool_name("weather", "get-forecast", ()) == "weather_get-forecast"
    assert tool_name("a", "b", {"a_b", "a_b_2"}) == "a_b_3"
    assert tool_name("simple", "browser", ()) == "simple_browser_2"  # GLM-4's own has this name
    assert tool_name("s" * 90, "forecast", ()) == "s" * 55 + "_forecast"
