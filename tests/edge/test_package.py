"""The tree is what pyproject.toml says; `test_archives.py` looks at what is built from it."""

from __future__ import annotations

import tomllib
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
