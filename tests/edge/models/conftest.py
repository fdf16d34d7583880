"""A user who has nothing yet, for each test."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folders of a new user, who stands in an empty one."""
    for name in ("DATA", "CONFIG", "STATE", "CACHE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / "home" / name.lower()))
    monkeypatch.setenv("WIN_PD_OVERRIDE_LOCAL_APPDATA", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


@pytest.fixture
def models(home: Path) -> Path:
    """The models folder, which is there already."""
    folder = home / "data" / "edgeglm" / "models"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def put(models: Path, tiny_bundle: Path) -> Callable[[str], Path]:
    """Puts a bundle into the models folder."""
    return lambda name: Path(shutil.copytree(tiny_bundle, models / name))
