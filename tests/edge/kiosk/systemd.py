"""What systemd makes of units: the programs of the system itself, asked without starting anything.

In: units by their names. Out: the command that systemd would run, word by word; what it has to say against them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

MANAGER = Path("/lib/systemd/systemd")
ESCAPES = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"a": b"\a", b"b": b"\b", b"f": b"\f", b"v": b"\v"}


@contextmanager
def _folder(units: Mapping[str, str]) -> Iterator[Path]:
    """Readable by everybody: the manager's test mode refuses to run as root."""
    with tempfile.TemporaryDirectory(prefix="edge-units-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        for unit, text in units.items():
            (folder / unit).write_text(text, encoding="utf-8")
        yield folder


def verified(units: Mapping[str, str]) -> list[str]:
    """What `systemd-analyze verify` says; nothing for units that are right."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed (apt-get install systemd)")
    with _folder(units) as folder:
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", *(str(folder / unit) for unit in units)],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    return [line.replace(f"{folder}/", "") for line in (done.stdout + done.stderr).splitlines() if line.strip()]


def exposure(unit: str, text: str) -> float:
    """How much a service may do, from 0 to 10, by `systemd-analyze security`."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed (apt-get install systemd)")
    with _folder({unit: text}) as folder:
        done = subprocess.run(
            ["systemd-analyze", "security", "--offline=true", "--no-pager", str(folder / unit)],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found is not None, done.stdout
    return float(found[1])


def commands(units: Mapping[str, str]) -> dict[str, list[str]]:
    """Unit -> the words of the command that systemd would run, by the manager's own test mode."""
    if not MANAGER.is_file():
        pytest.skip(f"{MANAGER} is not installed (apt-get install systemd)")
    found: dict[str, list[str]] = {}
    with _folder(units) as folder:
        for unit in units:  # each is what the machine would start with
            done = subprocess.run(
                [MANAGER, "--test", "--system", f"--unit={unit}", "--no-pager", "--log-level=err"],
                env={**os.environ, "SYSTEMD_UNIT_PATH": f"{folder}:"},
                user="nobody" if os.getuid() == 0 else None,
                capture_output=True,
                check=False,
                timeout=60,
            )
            head = re.escape(unit.encode())
            part = re.search(rb"^\t-> Unit " + head + rb":$(.*?)(?=^\t-> Unit |\Z)", done.stdout, re.M | re.S)
            assert part is not None, done.stderr
            lines = re.findall(rb"-> ExecStart:\n\t+Command Line: (.*)$", part[1], re.M)
            assert len(lines) == 1, (part[1], done.stderr)
            found[unit] = list(_words(lines[0]))
    return found


def _words(line: bytes) -> Iterator[str]:
    """The words of a command line as systemd prints it: bare, or in double quotes with escapes."""
    for quoted, bare in re.findall(rb'"((?:[^"\\]|\\.)*)"|(\S+)', line):
        yield (bare or re.sub(rb"\\(x[0-9a-f]{2}|[0-7]{3}|.)", _unescaped, quoted)).decode()


def _unescaped(found: re.Match[bytes]) -> bytes:
    said = found[1]
    if len(said) == 3:
        return bytes([int(said[1:], 16) if said.startswith(b"x") else int(said, 8)])
    return ESCAPES.get(said, said)
