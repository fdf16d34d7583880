"""The runtime needs nothing heavy: it runs where none of it can be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
for name in ("torch", "transformers", "nncf", "optimum", "onnx", "gguf", "safetensors", "openvino_tokenizers"):
    sys.modules[name] = None
import edge.runtime
{use}
loaded = [name for name in sys.modules if name.startswith("edge.export") or name.startswith("edge.profiles")]
assert not loaded, loaded
"""


def run(use: str) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT.format(use=use)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_every_module() -> None:
    names = [p.relative_to("runtime").with_suffix("") for p in sorted(Path("runtime").rglob("*.py"))]
    modules = [".".join(("edge.runtime", *p.parts)).removesuffix(".__init__") for p in names]
    assert len(modules) > 10
    run("\n".join(f"import {module}" for module in modules))


def test_generating(tiny_bundle: Path) -> None:
    run(f"import edge; assert edge.load({str(tiny_bundle)!r}).generate('Hello', max_new_tokens=4).text() is not None")


def test_verifying(tiny_bundle: Path) -> None:
    run(f"from edge.runtime.verify import verify; assert verify({str(tiny_bundle)!r})[0].exact_error < 1e-3")


@pytest.mark.parametrize("module", ["edge", "edge.cli"])
def test_importing_the_face_imports_no_engine(module: str) -> None:
    script = f"import sys, {module}; assert not {{'numpy', 'openvino', 'tokenizers', 'jinja2'}} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
