"""A browser for the tests of the page, and axe-core, which npm has."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

AXE = "axe-core-4.14.1"
AXE_SHA256 = "e6b0ce02b84d892e2e33e403485e7f3d6c29e2be6df65daf44d89ba564139745"
CACHE = Path(__file__).parents[3] / "build" / "axe"


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Chromium without a screen. For this folder alone: Playwright keeps an event loop running as long as it lives."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed (apt-get install chromium)")
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"] if is_root else [])
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def axe_source() -> str:
    """The text of axe-core, fetched once with npm into a folder that is not in git."""
    archive = CACHE / f"{AXE}.tgz"
    if not archive.is_file():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip(f"{archive} is not there, and npm is not installed, which would fetch it")
        CACHE.mkdir(parents=True, exist_ok=True)
        package = AXE.replace("core-", "core@")
        done = subprocess.run([npm, "pack", package], cwd=CACHE, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"npm cannot fetch axe-core: {done.stderr.strip()[-200:]}")
    assert hashlib.sha256(archive.read_bytes()).hexdigest() == AXE_SHA256
    with tarfile.open(archive) as opened:
        member = opened.extractfile("package/axe.min.js")
        assert member is not None
        return member.read().decode()
