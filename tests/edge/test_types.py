"""What type checkers make of the public names, by one run of mypy over some programs of a user."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Behind "# error:" is the code of the error that mypy has to report on that line; lines without one are right.
USES = """
import edge
import edge.export.recipes
from edge.export.pipeline import export
from edge.export.recipes import DEFAULT
from edge.runtime.bundle import Manifest

manifest: Manifest = edge.export("a", "b", DEFAULT, progress=lambda progress: print(progress.stage))
manifest = edge.export("a", "b", max_bytes=5.2e9, device="GPU", force=True)
version: str = edge.__version__
failures: tuple[type[edge.EdgeError], ...] = (edge.CheckpointError, edge.SettingsError)
edge.export("a", "b", recip="x")  # error: call-arg
edge.export("a", "b", format="tflite")  # error: arg-type
edge.export("a", "b", max_bytes="2GB")  # error: arg-type
edge.export("a", "b", device="cpu")  # error: arg-type
edge.export("a")  # error: call-arg
export("a", "b", recip="x")  # error: call-arg
number: int = edge.export("a", "b")  # error: assignment
edge.exprot  # error: attr-defined
"""


def snippets(markdown: str) -> str:
    """The Python code of a page as one program: later blocks use names of earlier ones."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL))


def test_programs_are_checked(tmp_path: Path) -> None:
    """With the project's settings, and the cache of `make check`."""
    readme = snippets((ROOT / "README.md").read_text(encoding="utf-8"))
    assert "edge.export(" in readme
    programs = {"readme.py": readme, "uses.py": USES}
    for name, text in programs.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    options = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache"), "--strict"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, *programs],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = re.finditer(r"^(\S+):(\d+): error: .*\[(.+)\]$", done.stdout, re.MULTILINE)
    found = {(line[1], int(line[2]), line[3]) for line in lines}
    expected = {
        (name, number, line.partition("# error: ")[2])
        for name, text in programs.items()
        for number, line in enumerate(text.splitlines(), 1)
        if "# error: " in line
    }
    assert found == expected, done.stdout + done.stderr
