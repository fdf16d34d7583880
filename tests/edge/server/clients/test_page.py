"""The page on clients: its examples run as they are printed, against a live server under the name they use."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.docs.shown import PYTHON, ROOT, blocks
from tests.edge.server.live import Live

pytestmark = pytest.mark.slow
OPTIONS = ("--alias", "glm4-int4")
PAGE = [block.text for block in blocks((ROOT / "docs" / "clients.md").read_text("utf-8")) if block.language == PYTHON]
WITH_PICTURES = [text for text in PAGE if "image_url" in text]  # run by test_pictures
EXAMPLES = [text for text in PAGE if text not in WITH_PICTURES]


@pytest.mark.parametrize("text", EXAMPLES, ids=lambda text: text.split()[1])
def test_an_example_runs_as_it_is_printed(live: Live, text: str) -> None:
    text = text.replace("http://127.0.0.1:8000", live.url)
    assert live.url in text
    done = subprocess.run(
        [sys.executable, "-c", text],
        env=dict(os.environ),
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
