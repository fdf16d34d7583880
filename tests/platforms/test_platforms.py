"""The verbs on systems that this one is made to look like: none of them ends in a traceback or loses a letter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.edge.batch.jobs import line, message
from tests.platforms.pretend import pretended

ROOT = Path(__file__).parents[2]
WINDOWS_PATH = "C:\\Users\\Jörg\\模型\\glm4"


@dataclass(frozen=True)
class Done:
    """One command of a process on a platform."""

    code: int
    out: str
    err: str


def on(platform: str, *commands: Sequence[str | Path], given: Sequence[bytes] = (), scripted: bool = False,
       **environment: str) -> list[Done]:  # fmt: skip
    """Carry out commands in one process; given: what is piped into each. What it writes has to be UTF-8."""
    inputs = [*given, *[b""] * (len(commands) - len(given))]
    asked = [
        {"arguments": [str(word) for word in words], "given": data.hex()}
        for words, data in zip(commands, inputs, strict=True)
    ]
    plain = {name: value for name, value in os.environ.items() if name not in ("PYTHONIOENCODING", "PYTHONUTF8")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.platforms.pretend", platform, *(["--scripted"] if scripted else [])],
        input=json.dumps(asked), capture_output=True, encoding="utf-8", errors="replace", cwd=ROOT, timeout=240,
        env={**plain, "PYTHONPATH": str(ROOT), **environment}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    encoding = environment.get("PYTHONIOENCODING", "utf-8").partition(":")[0]
    return [
        Done(found["code"], *(bytes.fromhex(found[name]).decode(encoding) for name in ("out", "err")))
        for found in json.loads(done.stdout)
    ]


@pytest.mark.parametrize("platform", pretended("windows", "chinese windows", "latin-1 linux", "slim windows"))
def test_any_text_goes_in_and_out(platform: str, tiny_bundle: Path, tmp_path: Path) -> None:
    """Each code page lacks some of the letters; a prompt is UTF-8, or says what it is."""
    marked = tmp_path / "utf16.json"
    marked.write_text(json.dumps([{"role": "user", "content": "hi"}]), encoding="utf-16")
    found = on(
        platform,
        ["run", tiny_bundle, "hi"],
        ["run", tiny_bundle, "-"],
        ["chat", tiny_bundle],
        ["run", tiny_bundle, "-"],
        ["run", tiny_bundle, "--messages", marked],
        ["run", tiny_bundle, "caf\udce9"],
        ["run", tiny_bundle, "-"],
        ["verify", WINDOWS_PATH],
        given=[b"", b"hi", b"\xef\xbb\xbfhi\r\n/stats\r\n", "hi".encode("utf-16"), b"", b"", b"caf\xe9"],
        scripted=True,
    )
    for answer in (*found[:2], found[3], found[4]):
        assert (answer.code, answer.out) == (0, "你好👋 café\n"), answer
    assert found[2].code == 0
    assert found[2].out.startswith("你好👋 café\n")
    assert [answer.code for answer in found[5:]] == [1, 1, 1]
    assert found[5].err == "edge: PROMPT is not UTF-8: byte 0xE9 at position 3; convert it to UTF-8\n"
    assert found[6].err == "edge: standard input is not UTF-8: byte 0xE9 at position 3; convert it to UTF-8\n"
    assert WINDOWS_PATH in found[7].err
    assert found[7].err.count("\n") == 1


def test_an_encoding_that_the_environment_names_is_kept(tiny_bundle: Path) -> None:
    """What it lacks is written as an escape, and what comes in may be in it."""
    found = on(
        pretended("chinese windows")[0],
        ["run", tiny_bundle, "hi"],
        ["verify", "C:\\Jörg\\模型"],
        ["run", tiny_bundle, "-", "--system", "x"],
        given=[b"", b"", "你好".encode("gbk")],
        scripted=True,
        PYTHONIOENCODING="gbk",
    )
    assert found[0].out == "你好\\U0001f44b café\n"
    assert "C:\\J\\xf6rg\\模型" in found[1].err
    assert found[2].code == 0, found[2].err


@pytest.mark.parametrize("platform", pretended("windows", "macos"))
def test_the_verbs(platform: str, tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """Making a bundle, and using one in every way, on both engines."""
    exports = platform != "macos"  # which takes as long as the others together
    bundle, prefix = tmp_path / "bundle" if exports else tiny_bundle, tmp_path / "kiosk.prefix"
    requests, answers = tmp_path / "requests.jsonl", tmp_path / "answers.jsonl"
    lines = [json.dumps(line(f"{number}", message("hi"))) for number in range(3)]
    requests.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\n")  # as an editor of Windows does
    few = ("--max-new-tokens", "3")
    found = on(
        platform,
        ["export", tiny_checkpoint, bundle, "--recipe", "int8-asym"] if exports else ["inspect", bundle],
        ["run", bundle, "hi", "--engine", "onnx", *few],
        ["run", bundle, "hi", "--engine", "openvino", *few, "--kv-cache-share", "0.01"],
        ["chat", bundle, *few],
        ["prefix", "build", bundle, prefix, "--engine", "onnx", "--system", "Be brief."],
        ["run", bundle, "hi", "--prefix", prefix, *few, "--json"],
        ["batch", bundle, requests, answers],
        ["verify", bundle],
        ["devices"],
        given=[b"", b"", b"", b"hi\r\nhi\r\n"],
    )
    assert [answer.code for answer in found] == [0] * len(found), [answer.err for answer in found if answer.code]
    assert json.loads(found[5].out)["cached_tokens"] > 0
    assert len(answers.read_text("utf-8").splitlines()) == 3
    expected = ["answers.jsonl", *["bundle"] * exports, "kiosk.prefix", "requests.jsonl"]
    assert sorted(path.name for path in tmp_path.iterdir()) == expected, "no lock and no work is left"


@pytest.mark.skipif(sys.platform != "linux", reason="packages are hidden from a system that is pretended")
def test_a_slim_install(tiny_bundle: Path, tmp_path: Path) -> None:
    """What the packages beyond five are for is done without, or refused in one line."""
    few = ("--max-new-tokens", "2")
    for platform, known in (("slim linux", 0), ("slim windows", 2)):
        found = on(
            platform,
            ["run", tiny_bundle, "hi", *few],
            ["chat", tiny_bundle, *few],
            ["prefix", "build", tiny_bundle, tmp_path / "a.prefix", "--system", "x"],
            ["run", tiny_bundle, "hi", *few, "--kv-cache-share", "0.01"],
            given=[b"", b"hi\n"],
        )
        assert [answer.code for answer in found] == [0, 0, 0, known], [answer.err for answer in found]
        assert not known or found[3].err.startswith(
            "edge: --kv-cache-share is 0.01, but how much memory is free is not"
        )


def test_a_sweep_has_its_folder_alone_on_every_platform(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from tests.platforms.pretend import PLATFORMS, pretend
pretend(PLATFORMS[sys.argv[1]])
from edge.profiles.sweep_results import own_folder
from edge.runtime.errors import OutputError
folder = Path(sys.argv[2])
with own_folder(folder):
    try:
        with own_folder(folder):
            print("two at once")
    except OutputError as error:
        print(error)
print(sorted(path.name for path in folder.iterdir() if path.is_file()))
"""
    for platform in pretended("windows", "macos"):
        done = subprocess.run(
            [sys.executable, "-c", script, platform, str(tmp_path / platform)],
            capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
        )  # fmt: skip
        assert "is being written by another sweep; wait for it" in done.stdout, done.stderr
        assert done.stdout.endswith("\n[]\n"), "the lock's file has gone with it"
