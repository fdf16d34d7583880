"""Clean environments with the wheel and one extra each, or without what the wheel requires.

In: this tree, an extra. Out: an environment's folder. Packages come from wherever pip is told to look on this machine;
uv makes an environment in a second, with hard links to what it has in its cache.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPTS = "Scripts" if os.name == "nt" else "bin"
# What pip is told -> how uv is told.
_INDEXES = {"index-url": "UV_DEFAULT_INDEX", "extra-index-url": "UV_INDEX", "find-links": "UV_FIND_LINKS"}


@dataclass(frozen=True, slots=True)
class Installed:
    """An environment."""

    folder: Path

    def python(self, *arguments: str, cwd: Path, given: str = "") -> subprocess.CompletedProcess[str]:
        return self._run("python", *arguments, cwd=cwd, given=given)

    def edge(self, *arguments: str, cwd: Path, given: str = "") -> subprocess.CompletedProcess[str]:
        return self._run("edge", *arguments, cwd=cwd, given=given)

    def _run(self, name: str, *arguments: str, cwd: Path, given: str) -> subprocess.CompletedProcess[str]:
        """In a folder that is not this tree, so that what is imported is what was installed."""
        return subprocess.run(
            [self.folder / SCRIPTS / name, *arguments],
            cwd=cwd,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            input=given,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )


def build_wheel(folder: Path) -> Path:
    """The wheel of this tree, made of a copy: a build leaves files behind, and takes up what earlier ones left."""
    copy = folder / "source"
    left_out = shutil.ignore_patterns(".*", "build", "dist", "site", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=left_out)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(copy)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = folder.glob("edgeglm-*.whl")
    return wheel


def install(folder: Path, *what: str, options: tuple[str, ...] = (), fresh: bool = True) -> Installed:
    """Put these into an environment, which is made for this if it is to be a fresh one."""
    uv, environment = [sys.executable, "-m", "uv", "--quiet"], {**os.environ, **_indexes()}
    if fresh:
        subprocess.run([*uv, "venv", "--python", sys.executable, str(folder)], check=True, env=environment)
    subprocess.run(
        [*uv, "pip", "install", "--python", str(folder), *options, *what], check=True, env=environment, cwd=ROOT
    )
    return Installed(folder)


def _indexes() -> dict[str, str]:
    """pip's settings as those of uv, which has its own and does not read pip's."""
    told = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    found: dict[str, list[str]] = {}
    for line in told.stdout.splitlines():
        key, _, value = line.partition("=")
        variable = _INDEXES.get(key.rpartition(".")[2].lower())
        if variable is not None and not key.startswith(("install.", "download.")):
            found.setdefault(variable, []).extend(value.strip("'\"").replace("\\n", " ").split())
    # As pip does, take the best release that any of them has.
    told_uv = {variable: " ".join(dict.fromkeys(values)) for variable, values in found.items()}
    return {"UV_INDEX_STRATEGY": "unsafe-best-match", "UV_LINK_MODE": "hardlink", **told_uv}
