"""Modules that only POSIX has are looked for where they are needed, and done without elsewhere.

Seen from here by hiding them from our own modules; nothing of this is run on Windows.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import builtins, sys, types
from importlib import import_module

HIDDEN = {{"fcntl", "resource", "readline", "termios", "tty", "pty", "pwd", "grp", "syslog", "posix"}}
real, platform = builtins.__import__, sys.platform

def hiding(name, globals=None, locals=None, fromlist=(), level=0):
    ours, top = (globals or {{}}).get("__name__", "").split(".")[0] == "edge", name.split(".")[0]
    if ours and top in HIDDEN:
        raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
    if ours and top == "msvcrt":
        return types.ModuleType(name)
    if not ours or level or top == "edge":
        return real(name, globals, locals, fromlist, level)
    sys.platform = platform  # packages of others are those of this system
    try:
        return real(name, globals, locals, fromlist, level)
    finally:
        sys.platform = "win32"

builtins.__import__ = hiding
sys.platform = "win32"
for name in {modules!r}:
    import_module(name)
"""


def modules() -> list[str]:
    root = Path(__file__).parents[2]
    files = [path for top in ("edge", "export", "profiles", "runtime") for path in sorted((root / top).rglob("*.py"))]
    names = [path.relative_to(root).with_suffix("") for path in files]
    dotted = [".".join(name.parts if name.parts[0] == "edge" else ("edge", *name.parts)) for name in names]
    unwanted = ("edge.__main__", "edge.profiles.lm_eval", "edge.profiles.worker")
    return [name.removesuffix(".__init__") for name in dotted if name not in unwanted]


def test_no_module_needs_what_only_posix_has() -> None:
    assert len(modules()) > 100
    assert "edge.runtime.locks" in modules()
    script = SCRIPT.format(modules=modules())
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["fcntl", "resource"])
def test_the_script_hides(module: str) -> None:
    name = f"edge_{module}"
    script = SCRIPT.format(modules=[]) + f"hiding({module!r}, {{'__name__': 'edge.{name}'}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert f"No module named {module!r}" in done.stderr
