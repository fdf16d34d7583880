"""What type checkers make of the public names, by one run of mypy over some programs of a user."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.docs.shown import program

ROOT = Path(__file__).parents[2]
README, DOCUMENTS = ROOT / "README.md", ROOT / "docs"
# Pages on how to extend the project show pieces of its files, which are no programs; the one on clients shows other
# libraries, whose own types are stricter than their documents.
FRAGMENTS = ("add-", "clients")
# Behind "# error:" is the code of the error that mypy has to report on that line; lines without one are right.
USES = """
import edge
import edge.export.compress.recipes
from edge.export.pipeline import export
from edge.export.compress.recipes import DEFAULT
from edge.runtime.manifest import Manifest

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

llm: edge.LLM = edge.load("b", "CPU", engine="onnx", max_context=None, kv_precision="u8", speculation=True)
edge.load("b", engin="onnx")  # error: call-arg
edge.load("b", max_context="512")  # error: arg-type
edge.load("b", kv_precision="f8")  # error: arg-type
stream: edge.Stream = llm.chat([edge.Message("user", "Hello")], stop="Paris!", seed=None, max_new_tokens=64)
llm.chat([{"role": "user", "content": None}], tools=None, logit_bias={17: -1.0})
llm.chat([], max_new_tokns=64)  # error: call-arg
llm.generate("text", max_new_tokens="5")  # error: arg-type
llm.generate([1, 2, 3], temprature=1)  # error: call-arg
answers: list[edge.Answer] = llm.generate_batch(["a", [1, 2], edge.Prompt([3])], stop=["x"])
edge.ChatSession(llm).send("Hello", top_p=0.5, stopp="x")  # error: call-arg
edge.Message("visitor", "Hello")  # error: arg-type
scripted: edge.LLM = edge.scripted_llm(edge.replies({"Hello": "Hi"}), max_context=64)
"""


def test_programs_are_checked(tmp_path: Path) -> None:
    """With the project's settings, and the cache of `make check`."""
    pages = [README, *(page for page in DOCUMENTS.glob("*.md") if not page.stem.startswith(FRAGMENTS))]
    shown = {page.stem: program(page.read_text(encoding="utf-8")) for page in pages}
    assert "edge.load(" in shown["README"]
    assert "edge.export(" in shown["quickstart"]
    # A name of its own: a page called mcp would be imported in the place of the package.
    programs = {f"page_{name.replace('-', '_')}.py": text for name, text in shown.items() if text} | {"uses.py": USES}
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
