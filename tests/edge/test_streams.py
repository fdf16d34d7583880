"""What is printed arrives, in any encoding and on any terminal; where it cannot, that is one line or a quiet end."""

from __future__ import annotations

import io
import json
import math
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge.commands import streams
from edge.commands.console import print_json
from edge.runtime.errors import PromptError
from tests.edge.test_cli import EDGE

HOSTILE = "a\x1b[31mred\x1b]0;title\x07 \x9b2J \u202eabc\u202c del\x7f cr\r tab\t ü 猫 😀"
SHOWN = "a\\x1b[31mred\\x1b]0;title\\x07 \\x9b2J \\u202eabc\\u202c del\\x7f cr\\r tab\t ü 猫 😀"
SAYS = f"""
import logging, sys
from types import ModuleType
from edge import cli
from edge.commands.console import counting_bar, print_json, show_answer
from edge.runtime.chunk import Chunk
from edge.runtime.errors import DeviceError

HOSTILE = {HOSTILE!a}

def run(args):
    if "fail" in sys.argv:
        raise DeviceError(HOSTILE)
    if "system" in sys.argv:
        open("no" + chr(27) + "thing")
    if "library" in sys.argv:
        raise ImportError("libx.so.1: cannot open shared object file")
    if "memory" in sys.argv:
        raise MemoryError
    if "mistake" in sys.argv:
        import edge.nothing
    if "json" in sys.argv:
        return print_json({{"text": HOSTILE}})
    if "bar" in sys.argv:
        with counting_bar("reading") as show:
            show(1, 2)
            print(HOSTILE)
        return 0
    print(HOSTILE)
    show_answer(Chunk(letter, (), None, None) for letter in HOSTILE)  # a sequence that comes in pieces
    print(HOSTILE, file=sys.stderr)
    return 0

verb = ModuleType("edge.commands.x", "A verb.")
verb.run = run
verb.add_arguments = lambda parser: parser.add_argument("kind", nargs="?")
sys.modules["edge.commands.x"] = verb
cli.VERBS = ("x",)
sys.exit(cli.main())
"""


def says(*arguments: str, **options: Any) -> subprocess.CompletedProcess[Any]:  # of bytes, or of text
    command = [sys.executable, "-c", SAYS, "x", *arguments]
    return subprocess.run(command, capture_output=True, timeout=60, check=False, **options)


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252:strict", "gbk", "utf-16-le"])
def test_any_text_can_be_printed(encoding: str) -> None:
    """What the encoding cannot hold is escaped; the rest, control characters for pipes included, is as it was."""
    done = says(env={**os.environ, "PYTHONIOENCODING": encoding})
    assert done.returncode == 0, done.stderr
    codec = encoding.partition(":")[0]
    expected = HOSTILE.encode(codec, "backslashreplace")
    newline = "\n".encode(codec)
    assert done.stdout == (expected + newline) * 2
    assert done.stderr == expected + newline
    shown = says("json", env={**os.environ, "PYTHONIOENCODING": encoding}).stdout
    assert json.loads(shown.decode(codec)) == {"text": HOSTILE}


def test_json_has_letters_where_they_can_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"猫": "😀", "ratio": math.nan, "most": [math.inf, -math.inf, 0.5]})
    assert capsys.readouterr().out == '{"猫": "😀", "ratio": null, "most": [null, null, 0.5]}\n'


def test_a_c_locale(tmp_path: Path) -> None:
    locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = says(env={**os.environ, **locale})
    assert done.returncode == 0
    assert done.stdout.startswith(HOSTILE.encode("ascii", "backslashreplace"))


def on_a_terminal(*arguments: str) -> str:
    """What a terminal gets."""
    pid, fd = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", SAYS, "x", *arguments])
    shown = b""
    try:
        while data := os.read(fd, 65536):
            shown += data
    except OSError:  # it has ended
        pass
    os.waitpid(pid, 0)
    os.close(fd)
    return shown.decode().replace("\r\n", "\n")


def test_a_terminal_shows_control_characters_and_does_not_obey() -> None:
    expected = f"{SHOWN}\n".expandtabs(1).replace(" tab ", " tab\t")
    assert on_a_terminal() == expected * 3
    assert on_a_terminal("fail") == f"edge: {' '.join(SHOWN.replace(chr(92) + 'r', '').split())}\n"


def test_a_bar_may_draw_and_what_is_printed_beside_it_may_not() -> None:
    shown = on_a_terminal("bar")
    assert "\x1b[" in shown
    assert SHOWN in shown
    assert "\x1b[31m" not in shown


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("system", "no\\x1bthing: No such file or directory"),
        ("library", "a package cannot be loaded: libx.so.1: cannot open shared object file; install it again"),
        ("memory", "there is not enough memory; end other programs, or use a smaller model or --max-context"),
    ],
)
def test_what_the_system_says_is_one_line(kind: str, said: str) -> None:
    """And --log-level debug tells where it was said."""
    done = says(kind, text=True)
    assert (done.returncode, done.stderr) == (1, f"edge: {said}\n")
    told = says(kind, "--log-level", "debug", text=True)
    assert "Traceback" in told.stderr
    assert told.stderr.endswith(f"edge: {said}\n")


def test_a_mistake_of_ours_is_a_traceback() -> None:
    assert "Traceback" in says("mistake", text=True).stderr


def test_errors_have_no_control_characters_anywhere() -> None:
    done = says("fail")
    assert done.returncode == 1
    assert done.stderr.decode().rstrip("\n").isprintable()


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "BUNDLE", "hi", "--max-new-tokens", "2"],
        ["chat", "BUNDLE", "--max-new-tokens", "2"],
        ["bench", "BUNDLE", "--prompt-tokens", "4", "--new-tokens", "2"],
        ["prefix", "build", "BUNDLE", "a.prefix", "--raw", "hi"],
        ["inspect", "BUNDLE"],
        ["verify", "BUNDLE"],
        ["devices"],
        ["--help"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_a_full_disk_is_one_line(tiny_bundle: Path, tmp_path: Path, arguments: list[str]) -> None:
    command = [*EDGE, *(str(tiny_bundle) if word == "BUNDLE" else word for word in arguments)]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command, input="hi\n/stats\n", stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path.cwd())}, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("edge: standard output cannot be written (No space left on device)")
    assert done.stderr.count("\n") == 1


def closed(streams: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A command whose shell has closed some of its streams."""
    command = ["sh", "-c", f'exec "$@" {streams}', "sh", *EDGE, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_closed_streams(tiny_bundle: Path) -> None:
    done = closed(">&-", "run", tiny_bundle, "hi")
    assert (done.returncode, done.stderr) == (
        1,
        "edge: standard output is closed; send it to a file, a pipe or a terminal\n",
    )
    for arguments in (("run", tiny_bundle, "-"), ("run", tiny_bundle), ("chat", tiny_bundle)):
        done = closed("<&-", *arguments)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("edge: standard input is closed; ")
        assert done.stderr.count("\n") == 1
    few = ("--max-new-tokens", "2")
    assert closed("<&-", "run", tiny_bundle, "hi", *few).returncode == 0
    plain = closed("", "run", tiny_bundle, "hi", *few)
    done = closed("2>&-", "run", tiny_bundle, "hi", *few)
    assert (done.returncode, done.stdout) == (0, plain.stdout)
    for silent in ("2>&-", "2>/dev/full"):
        done = closed(silent, "run", tiny_bundle, "")
        assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


def test_a_closed_number_is_no_file_s() -> None:
    """What is written to stdout by number, as libraries do, would go into the file that got the number."""
    script = "from edge.commands import streams; streams._fill_closed(); import os; print(os.open('/dev/null', 0) > 2)"
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&- 2>&-', "sh", sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "True\n"


def test_stdin_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "SMALL_BYTES", 1000)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"x" * 1001)))
    with pytest.raises(PromptError, match="standard input has more than 1,000 bytes"):
        streams.read_stdin()


def test_a_pipe_with_a_name(tmp_path: Path) -> None:
    """A shell's `<(command)` is read; a pipe that nobody writes into is empty, and never waited for."""
    from edge.commands.options import read_text

    script = "import sys; from edge.commands.options import read_text; print(read_text(sys.argv[1]), end='')"
    command = f"{sys.executable} -c {script!r} <(sleep 0.3; printf 'a\\r\\nb')".replace("'", '"', 0)
    done = subprocess.run(["bash", "-c", command], capture_output=True, check=False)
    assert done.stdout == b"a\nb", done.stderr
    os.mkfifo(tmp_path / "pipe")
    assert read_text(str(tmp_path / "pipe")) == ""
