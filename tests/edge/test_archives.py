"""Wheel and sdist as they are published: built without the network, complete, and installed in a clean environment."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import Any

import numpy
import pytest

ROOT = Path(__file__).parents[2]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))  # Any: TOML
PROJECT = PYPROJECT["project"]
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git would check out, links included: building leaves folders behind."""
    copy = tmp_path_factory.mktemp("tree") / "edgeglm"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("this tree is not a git checkout")
    for name in listed.stdout.decode().split("\0"):
        if name and os.path.lexists(ROOT / name):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    return copy


def build(kind: str, tree: Path, out: Path) -> Path:
    """By the build backend of pyproject.toml, as pip and `python -m build` call it, and without the network."""
    assert PYPROJECT["build-system"]["build-backend"] == "setuptools.build_meta"
    out.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", BUILD, f"build_{kind}", str(out)], cwd=tree, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def sdist(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", tree, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist alone, as `python -m build` does and as whoever has no wheel would."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = folder.iterdir()
    return build("wheel", unpacked, tmp_path_factory.mktemp("wheel"))


def sources() -> set[str]:
    """Files of the packages, as an installed package has them."""
    folders = {"edge": ROOT / "edge", **{f"edge/{name}": ROOT / name for name in ("export", "profiles", "runtime")}}
    return {
        f"{target}/{path.relative_to(folder).as_posix()}"
        for target, folder in folders.items()
        for path in folder.rglob("*.py")
        if not (target == "edge" and path.relative_to(folder).parts[0] in ("export", "profiles", "runtime"))
    }


PAGE = {
    f"edge/{path.relative_to(ROOT / 'edge').as_posix()}"
    for path in (ROOT / "edge" / "web").rglob("*")
    if path.is_file() and path.suffix not in (".py", ".pyc")
}
# Where shells and man look by themselves.
SHARED = {
    f"edgeglm-{PROJECT['version']}.data/data/{place}": names
    for place, names in PYPROJECT["tool"]["setuptools"]["data-files"].items()
}
DATA = {
    "edge/py.typed",
    "edge/export/compress/recipes.toml",
    "edge/profiles/devices/devices.toml",
    "edge/profiles/fit/measured.json",
    "edge/profiles/fleet/steps.json",
    "edge/profiles/page.html.j2",
    "edge/profiles/results/profile.json",
    "edge/profiles/results/recipes.json",
    *(f"edge/shell/{path.name}" for path in (ROOT / "edge" / "shell").iterdir()),
    *(f"{path}/{Path(name).name}" for path, names in SHARED.items() for name in names),
    *PAGE,
}


def test_the_wheel_holds_the_packages_and_their_data(wheel: Path) -> None:
    assert wheel.name == f"edgeglm-{PROJECT['version']}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not re.match(r"edgeglm-[0-9.]+\.dist-info/", name)}
        assert names == sources() | DATA
        assert (
            archive.read("edge/profiles/results/profile.json") == (ROOT / "profiles/results/profile.json").read_bytes()
        )
        (metadata,) = [archive.read(name).decode() for name in archive.namelist() if name.endswith("/METADATA")]
    assert f"\nVersion: {PROJECT['version']}\n" in metadata
    for label, address in PROJECT["urls"].items():
        assert f"\nProject-URL: {label}, {address}\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata


def test_the_sdist_can_be_built_from(sdist: Path) -> None:
    root = f"edgeglm-{PROJECT['version']}"
    with tarfile.open(sdist) as archive:
        names = {name.removeprefix(f"{root}/") for name in archive.getnames()}
    assert {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "PKG-INFO",
        "export/compress/recipes.toml",
        "edge/cli.py",
    } <= names
    assert "profiles/results/profile.json" in names
    assert not [name for name in names if name.startswith((".venv", "build/", "dist/", ".git/"))]


def test_the_wheel_installs_and_runs_in_a_clean_environment(wheel: Path, tmp_path: Path) -> None:
    """Without its dependencies, away from the tree."""
    venv.create(tmp_path / "venv", with_pip=True)
    programs = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    installed = run(programs / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel)
    assert installed.returncode == 0, installed.stderr
    (tmp_path / "export.py").write_text("raise SystemExit('a file of the user shadowed the package')")
    script = (
        "import edge, edge.cli, edge.runtime.errors, edge.export, edge.profiles, edge.commands.run; "
        "from edge.export.compress.recipes import recipes; assert len(recipes()) > 8; print(edge.__file__)"
    )
    done = run(programs / "python", "-c", script)
    assert done.returncode == 0, done.stderr
    assert "site-packages" in done.stdout
    assert run(programs / "edge", "--version").stdout == f"edgeglm {PROJECT['version']}\n"
    assert "examples:" in run(programs / "edge", "export", "--help").stdout
    # From here on with what it depends on, out of the environment of this process.
    site = Path(done.stdout.strip()).parents[1]
    (site / "dependencies.pth").write_text(str(Path(numpy.__file__).parents[1]))
    listed = run(programs / "edge", "recipes", "--json")
    assert listed.returncode == 0, listed.stderr
    assert json.loads(listed.stdout)["measured"]["source"].startswith("SmolLM2")
    where = run(programs / "python", "-c", "import edge.profiles as p; print(p.__file__)")
    assert str(site) in where.stdout, "and it is the wheel's own"
