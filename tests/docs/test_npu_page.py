"""The page on NPUs runs as it is printed, through NPUW on the CPU, with a tiny model under the name that it has."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests import tiny
from tests.docs.test_commands import CHECKPOINT, failure, here, new_user, page, run, script
from tests.runtime.npu_bundles import GLM

pytestmark = pytest.mark.slow


def test_commands_run_as_they_are_shown(tmp_path: Path) -> None:
    work = tmp_path / "work"
    tiny.make(dataclasses.replace(GLM, max_position_embeddings=4096), work / CHECKPOINT)
    done = run(script(page("docs/npu.md"), tmp_path, set_up=False), work, here() | new_user(tmp_path), timeout_s=500)
    assert done.returncode == 0, failure(done)
    assert done.stderr.count("@@ ") >= 6
    assert "prompts of up to 128 tokens, read in pieces of 64, and 192 with the answer" in done.stderr
    assert "it is compiled now" not in done.stderr  # what was compiled ahead was used
    assert sorted(path.suffix for path in (work / "compiled").iterdir()) == [".blob", ".json"]
