"""Which extra of the distribution installs a package that is missing, and the sentence that says so.

In: a ModuleNotFoundError. Out: a MissingPackageError with the command to run, or the same error where no extra would
help. A test holds the table to pyproject.toml. Imports none of the packages.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from edge.runtime.errors import MissingPackageError

# Top-level module -> the smallest extra that brings it.
EXTRAS = {
    "openvino": "openvino",
    "onnxruntime": "onnx",
    "llguidance": "grammar",
    **dict.fromkeys(("gguf", "huggingface_hub", "ml_dtypes", "nncf", "onnx", "openvino_tokenizers"), "export"),
    **dict.fromkeys(("scipy", "threadpoolctl", "transformers"), "export"),
    "argcomplete": "completion",
    "prompt_toolkit": "chat",
    **dict.fromkeys(("bs4", "docx", "pypdf"), "documents"),
    **dict.fromkeys(("bm25s", "msgspec"), "tools"),
    **dict.fromkeys(("mcp", "pydantic"), "mcp"),
    **dict.fromkeys(("h11", "prometheus_client", "starlette", "uvicorn"), "server"),
    "matplotlib": "profile",
    **dict.fromkeys(("lm_eval", "tqdm"), "lm-eval"),
    **dict.fromkeys(("optimum", "torch"), "optimum"),
}
# Extra -> those it includes: work that needs the one is told of it at once, not of each part in turn.
INCLUDED = {
    "export": frozenset({"openvino", "onnx"}),
    "tools": frozenset({"documents", "grammar"}),
    "profile": frozenset({"openvino", "onnx", "export"}),
    "optimum": frozenset({"openvino", "onnx", "export"}),
}


def install_command(extra: str) -> str:
    """In double quotes, which every shell takes: cmd.exe would pass single ones on."""
    return f'pip install "edgeglm[{extra}]"'


def missing_package(error: ModuleNotFoundError, needed: str | None = None) -> MissingPackageError | None:
    """What to install for a module that was not found; None where no extra has it.

    needed: the extra that the work at hand needs as a whole.
    """
    package = (error.name or "").split(".")[0]
    extra = EXTRAS.get(package)
    if extra is None:
        return None
    if needed is not None and extra in INCLUDED.get(needed, ()):
        extra = needed
    return MissingPackageError(f"{package} is not installed; {install_command(extra)}")


@contextmanager
def missing_packages_named(needed: str | None = None) -> Iterator[None]:
    """Turn a missing package into an error that says which extra to install. Raises MissingPackageError."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (missing := missing_package(error, needed)) is None:
            raise
        raise missing from error
