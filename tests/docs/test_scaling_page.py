"""docs/scaling-out.md: its program runs as printed, with the official client against a server of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.shown import ROOT, program
from tests.edge.server.live import process

PAGE = (ROOT / "docs" / "scaling-out.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8000/v1"


@pytest.mark.slow
def test_the_program_talks_to_edge_serve(demo_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(demo_bundle, tmp_path / "glm4-int4")
    text = program(PAGE)
    assert text.count(ADDRESS) == 1
    with process(bundle, "--alias", "glm4") as server:
        for name in ("glm4-int4", "glm4"):  # the second is the one that Model Server would have
            typed = text.replace(ADDRESS, f"http://127.0.0.1:{server.port}/v1").replace('"glm4-int4"', f'"{name}"')
            done = subprocess.run(
                [sys.executable, "-c", typed], capture_output=True, text=True, check=False, timeout=120
            )
            assert done.returncode == 0, done.stderr
            assert "Paris" in done.stdout
