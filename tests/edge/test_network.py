"""What works on local paths opens no socket of the internet family, in none of its processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

STRACE = shutil.which("strace")
HOOK = """
import os, socket, sys

def seen(event, arguments):
    if event == "socket.__new__" and arguments[1] in (socket.AF_INET, socket.AF_INET6):
        with open(os.environ["SOCKETS_SEEN"], "a") as file:
            file.write(f"{sys.argv}: socket of family {arguments[1]}\\n")

sys.addaudithook(seen)
"""


def watched(kind: str, folder: Path, arguments: list[str], stdin: str = "") -> str:
    """What a command and its children opened sockets for: lines of strace, or of a hook that Python calls."""
    seen, command, environment = folder / "seen", [sys.executable, *arguments], dict(os.environ)
    seen.write_text("")
    if kind == "strace":
        assert STRACE is not None
        command = [STRACE, "-f", "-qqq", "-e", "trace=socket", "-e", "signal=none", "-o", str(seen), *command]
    else:
        (folder / "hooks").mkdir(exist_ok=True)
        (folder / "hooks" / "sitecustomize.py").write_text(HOOK)
        paths = [str(folder / "hooks"), environment.get("PYTHONPATH", "")]
        environment |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "SOCKETS_SEEN": str(seen)}
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, env=environment, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = seen.read_text().splitlines()
    return "\n".join(line for line in lines if kind == "audit hook" or "AF_INET" in line)


KINDS = [
    pytest.param("strace", marks=pytest.mark.skipif(STRACE is None, reason="strace is not here")),
    "audit hook",
]


@pytest.mark.parametrize("kind", KINDS)
def test_the_watch_sees_a_socket(kind: str, tmp_path: Path) -> None:
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import socket; socket.socket()'])"
    assert "socket" in watched(kind, tmp_path, ["-c", script])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_opens_an_internet_socket(kind: str, tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Some words, and then some more of them. " * 400)
    few = ("--max-new-tokens", "3")
    sweep = ("--recipes", "int8-asym", "--engines", "openvino,onnx", "--text", text, "--tokens", "256")
    small = ("--window", "64", "--greedy", "4")
    for stdin, arguments in (
        ("", ("run", tiny_bundle, "hi", *few)),
        ("", ("run", tiny_bundle, "hi", *few, "--engine", "onnx")),
        ("hi\nand you?\n", ("chat", tiny_bundle, *few)),
        ("", ("export", tiny_checkpoint, tmp_path / "bundle", "--recipe", "int8-asym")),
        ("", ("profile", "run", tiny_checkpoint, tmp_path / "profile", *sweep, *small)),
    ):
        assert watched(kind, tmp_path, ["-m", "edge", *map(str, arguments)], stdin) == "", arguments
