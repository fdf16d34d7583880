"""The python tool as a notebook: what a call returns, and what is kept from one to the next."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge import SettingsError, ToolError
from edge.runtime.tools.declared import checked_tools
from edge.tools.python import Limits, python_tool
from edge.tools.python.frames import packed, taken
from edge.tools.python.output import Output
from edge.tools.tool import Tool
from tests.edge.tools.sandboxed import needs_sandbox


@pytest.fixture(scope="module")
def tool() -> Iterator[Tool]:
    made = python_tool()
    yield made
    made.close()


def run(tool: Tool, code: str) -> str:
    text = tool.run({"code": code})
    assert isinstance(text, str)
    return text


@needs_sandbox
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("1 + 1", "2"),
        ("'text'", "'text'"),
        ("a = 1", "(no output)"),
        ("", "(no output)"),
        ("None", "(no output)"),
        ("# only a comment", "(no output)"),
        ("print('a'); 5", "a\n5"),
        ("import sys\nprint('1')\nprint('2', file=sys.stderr)\nprint('3')\n4", "1\n2\n3\n4"),
        ("import os\nprint('1')\n_n = os.write(1, b'2\\n')\nprint('3')", "1\n2\n3"),
        ("def f(n):\n    return n * 2\nf(21)", "42"),
        ("print('no newline', end='')", "no newline"),
        (
            "input()",
            'Traceback (most recent call last):\n  File "<call',
        ),
        ("import sys\nsys.exit(3)", "SystemExit: 3"),
        ("import numpy\nint(numpy.arange(5).sum())", "10"),
        ("import os\nos.getcwd()", "'/mnt/data'"),
        ("print('漢字 🙂 e\\u0301')", "漢字 🙂 e\u0301"),
    ],
)
def test_what_a_call_returns(tool: Tool, code: str, expected: str) -> None:
    found = run(tool, code)
    assert found == expected or ("Traceback" in found and expected in found)


@needs_sandbox
def test_variables_persist_and_so_does_the_last_value(tool: Tool) -> None:
    run(tool, "import math\ndef area(r):\n    return math.pi * r**2\nradius = 2")
    assert run(tool, "round(area(radius), 3)") == "12.566"
    assert run(tool, "_ + 1") == "13.566"
    run(tool, "raise ValueError('an error changes nothing')")
    assert run(tool, "radius") == "2"
    run(tool, "import sys; sys.exit()")
    assert run(tool, "radius") == "2"


@needs_sandbox
def test_two_tools_share_nothing(tool: Tool) -> None:
    other = python_tool()
    run(tool, "shared = 1\nopen('/tmp/shared', 'w').close()\nopen('shared', 'w').close()")
    assert "NameError" in run(other, "shared")
    assert run(other, "import os\nos.listdir('/tmp'), os.listdir()") == "([], [])"
    other.close()


@needs_sandbox
def test_a_traceback_names_the_lines_of_the_call_alone(tool: Tool) -> None:
    run(tool, "import json\ndef read(text):\n    return json.loads(text)")
    found = run(tool, "x = 1\nread('{')").splitlines()
    assert found[0] == "Traceback (most recent call last):"
    assert [line.strip() for line in found if not line.startswith("  File")][1:-1] == [
        "read('{')",
        "return json.loads(text)",
        "^^^^^^^^^^^^^^^^",
    ]
    assert found[-1].startswith("json.decoder.JSONDecodeError: Expecting property name")
    assert all('File "<call' in line for line in found if "File" in line)
    chained = run(tool, "try:\n    1 / 0\nexcept Exception as error:\n    raise KeyError('k') from error")
    assert chained.index("ZeroDivisionError") < chained.index("direct cause") < chained.index("KeyError: 'k'")
    assert "/run/" not in chained


@needs_sandbox
@pytest.mark.parametrize(
    ("code", "last"),
    [
        ("a = (1,", "SyntaxError: '(' was never closed"),
        (
            "class E(Exception):\n    def __str__(self):\n        raise ValueError\nraise E",
            "E: <exception str() failed>",
        ),
        ("class V:\n    def __repr__(self):\n        raise ValueError('no')\nV()", "ValueError: no"),
        ("def f():\n    f()\nf()", "RecursionError: maximum recursion depth exceeded"),
        ("raise ValueError('x' * 100_000)", "x" * 100),
        ("compile('\\0', 'f', 'exec')", "Error: source code string cannot contain null bytes"),
        ("'\\0' + 1 \0", "source code string cannot contain null bytes"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("print('\\ud800')", "surrogates not allowed"),
    ],
)
def test_errors_of_all_kinds_leave_the_interpreter_alive(tool: Tool, code: str, last: str) -> None:
    run(tool, "alive = True")
    found = run(tool, code)
    assert last in found.splitlines()[-1]
    assert len(found) < 10_000
    assert run(tool, "alive") == "True"


@needs_sandbox
def test_a_cell_with_half_a_character_is_an_error(tool: Tool) -> None:
    run(tool, "alive = True")
    assert "surrogates not allowed" in run(tool, "'\ud800'")
    found = run(tool, "raise ValueError('\\ud800')")
    assert found.encode().decode() == found
    assert found.endswith("ValueError: ?")
    assert run(tool, "alive") == "True"


@needs_sandbox
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_comes_back(tool: Tool, text: str) -> None:
    assert run(tool, ascii(text)) == repr(text)
    assert run(tool, f"import sys\n_n = sys.stdout.write({text + '|'!a})") == text + "|"


@needs_sandbox
def test_a_megabyte_of_code_is_run(tool: Tool) -> None:
    assert run(tool, f"len({'x' * (1 << 20)!r})") == str(1 << 20)


@needs_sandbox
def test_long_output_is_cut_in_the_middle() -> None:
    tool = python_tool(limits=Limits(output_bytes=1000))
    found = run(tool, "print('first')\nfor _ in range(10_000):\n    print('x' * 20)\nprint('last')")
    tool.close()
    assert found.startswith("first\nxxx")
    assert found.endswith("xxx\nlast")
    assert "\n[209,011 bytes of output are left out here]\n" in found
    assert len(found) < 1100


@given(pieces=st.lists(st.binary(max_size=300), max_size=20), limit=st.integers(2, 200))
def test_the_ends_of_output_are_kept(pieces: list[bytes], limit: int) -> None:
    output, whole = Output(limit), b"".join(pieces)
    for piece in pieces:
        output.add(piece)
    assert output.total == len(whole)
    if len(whole) <= limit:
        assert output.text() == whole.decode("utf-8", "replace")
    else:
        first, last = whole[: limit // 2], whole[-(limit - limit // 2) :]
        left_out = f"\n[{len(whole) - limit:,} bytes of output are left out here]\n"
        assert output.text() == first.decode("utf-8", "ignore") + left_out + last.decode("utf-8", "ignore")


@given(
    messages=st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=20), max_size=3), max_size=5),
    size=st.integers(1, 40),
)
def test_messages_survive_any_splits(messages: list[dict[str, object]], size: int) -> None:
    sent, received, found = b"".join(map(packed, messages)), bytearray(), []
    for start in range(0, len(sent), size):
        received += sent[start : start + size]
        while (message := taken(received)) is not None:
            found.append(message)
    assert found == messages
    assert not received


@given(data=st.binary(max_size=60))
def test_bytes_of_anybody_are_a_message_or_refused(data: bytes) -> None:
    received = bytearray(data)
    try:
        message = taken(received)
    except ValueError:
        return
    assert message is None or isinstance(message, dict)
    assert message is not None or bytes(received) == data


def test_a_deep_message_is_refused() -> None:
    body = b'{"a":' * 100_000
    with pytest.raises(ValueError, match="deep"):
        taken(bytearray(len(body).to_bytes(4, "big") + body))


@needs_sandbox
def test_how_it_is_declared(tool: Tool) -> None:
    assert tool.name == "python"
    assert tool.native == {"type": "python"}
    assert checked_tools([tool.declaration]) == (tool.declaration,)
    assert checked_tools([tool.native]) == (tool.native,)
    assert "60 seconds" in tool.declaration["function"]["description"]


@needs_sandbox
@pytest.mark.parametrize("arguments", [{}, {"code": 1}, {"code": None}, {"code": "1", "timeout": 5}, {"source": "1"}])
def test_other_arguments_are_refused(tool: Tool, arguments: dict[str, object]) -> None:
    with pytest.raises(ToolError, match=r'expected \{"code": '):
        tool.run(arguments)


@needs_sandbox
def test_the_folder_is_read_and_written(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("from outside")
    tool = python_tool(tmp_path)
    assert run(tool, "open('/mnt/data/in.txt').read()") == "'from outside'"
    run(tool, "import os\nos.mkdir('new')\nopen('new/out.txt', 'w').write('from inside')")
    tool.close()
    assert (tmp_path / "new" / "out.txt").read_text() == "from inside"
    assert (tmp_path / "in.txt").read_text() == "from outside"


@pytest.mark.parametrize("folder", ["", "missing/folder", b"bytes", 5, "a\0b", __file__])
def test_folders_that_are_none(folder: object) -> None:
    with pytest.raises(SettingsError) as caught:
        python_tool(folder)  # type: ignore[arg-type]  # which is the point
    assert caught.value.param == "folder"


@pytest.mark.parametrize("folder", ["/", "~", "~/..", "/usr/.."])
def test_folders_that_hold_too_much(folder: str) -> None:
    """The host's /proc is below the root, and keys of all kinds are below a home."""
    with pytest.raises(SettingsError, match="give a folder inside it"):
        python_tool(Path(folder).expanduser())


@pytest.mark.parametrize("name", Limits.__dataclass_fields__)
@pytest.mark.parametrize("value", [-1, 0, "x", float("nan"), True, 1 << 80])
def test_limits_are_checked(name: str, value: object) -> None:
    with pytest.raises(SettingsError) as caught:
        Limits(**{name: value})  # type: ignore[arg-type]  # which is the point
    assert caught.value.param == name


def test_limits_of_another_kind() -> None:
    with pytest.raises(SettingsError, match="expected a Limits"):
        python_tool(limits={"seconds": 5})  # type: ignore[arg-type]  # which is the point


def test_refused_without_bubblewrap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    with pytest.raises(ToolError, match=r"bubblewrap \(bwrap\).* not installed; install it with `apt-get install"):
        python_tool()


@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_refused_on_other_systems(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", system)
    with pytest.raises(ToolError, match=f"needs Linux, .* this is {system}"):
        python_tool()


def test_refused_on_other_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(ToolError, match="x86_64 and aarch64; this is riscv64"):
        python_tool()


@needs_sandbox
@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo bubblewrap 0.6.2", r"needs bubblewrap 0.7 or later; .* says 'bubblewrap 0.6.2'"),
        ("exit 1", "needs bubblewrap 0.7 or later"),
        (
            '[ "$1" = --version ] && echo bubblewrap 0.8.0 && exit\n'
            'echo "bwrap: No permissions to create new namespace" >&2; exit 1',
            "does not start here: bwrap: No permissions to create new namespace; bubblewrap needs user namespaces",
        ),
        ('[ "$1" = --version ] && echo bubblewrap 0.8.0', "does not start here: it exited with status 1|status 0"),
    ],
)
def test_refused_where_bubblewrap_fails(
    script: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bwrap").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolError, match=said):
        python_tool().run({"code": "1"})
