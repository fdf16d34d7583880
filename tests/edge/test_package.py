"""What is installed is what is in the tree."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import edge

ROOT = Path(__file__).parents[2]


def test_package_list_is_the_folders_on_disk() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    on_disk = {
        ".".join(("edge", *folder.relative_to(ROOT).parts))
        if top != "edge"
        else ".".join(folder.relative_to(ROOT).parts)
        for top in ("edge", "export", "profiles", "runtime")
        for folder in [ROOT / top, *(ROOT / top).rglob("*")]
        if (folder / "__init__.py").is_file()
    }
    assert set(config["packages"]) == on_disk


def test_links_are_relative_and_lead_to_the_parts() -> None:
    for name in ("export", "profiles", "runtime"):
        link = ROOT / "edge" / name
        assert link.is_symlink()
        assert link.readlink() == Path(f"../{name}")
    assert Path(edge.__file__).is_relative_to(ROOT)


def test_wheel_imports_in_a_clean_environment(tmp_path: Path) -> None:
    """Built, installed without its dependencies, and imported away from the tree."""
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        "-w",
        str(tmp_path),
        str(ROOT),
    ]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True, capture_output=True)
    script = (
        "import edge, edge.cli, edge.runtime.errors, edge.export, edge.profiles; "
        "from edge.export.compress.recipes import recipes; assert len(recipes()) > 8; "
        "import edge.commands.run; print(edge.__file__)"
    )
    (tmp_path / "export.py").write_text("raise SystemExit('a file of the user shadowed the package')")
    done = subprocess.run([python, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "site-packages" in done.stdout
    command = subprocess.run([python.with_name("edge"), "--version"], capture_output=True, text=True, check=False)
    assert command.stdout.startswith("edgeglm ")
