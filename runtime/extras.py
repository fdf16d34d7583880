"""Which extra of the distribution installs a package that is missing, and the sentence that says so.

In: a ModuleNotFoundError. Out: a MissingPackageError with the command to run, or the same error where nothing that we
name would help. A test holds the tables to pyproject.toml. Imports none of the packages.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import NamedTuple

from edge.runtime.errors import MissingPackageError

# Extra -> the top-level modules that it brings and our code imports. Of two extras that bring one, the first is named.
BROUGHT = {
    "openvino": ("openvino",),
    "onnx": ("onnxruntime",),
    "grammar": ("llguidance",),
    "chat": ("prompt_toolkit",),
    "documents": ("bs4", "docx", "pypdf"),
    "tools": ("bm25s", "msgspec"),
    "mcp": ("mcp", "pydantic"),
    "vision": ("PIL",),
    "server": ("h11", "prometheus_client", "starlette", "uvicorn"),
    "ray": ("ray",),
    "plan": ("simpy",),
    "update": ("cryptography", "urllib3"),
    "plots": ("matplotlib", "scipy"),
    "export": (
        *("gguf", "huggingface_hub", "ml_dtypes", "nncf", "onnx", "openvino_tokenizers"),
        *("scipy", "threadpoolctl", "transformers"),
    ),
    "profile": (),
    "lm-eval": ("lm_eval", "tqdm"),
    "optimum": ("optimum", "torch"),
}
# Extra -> those it includes: work that needs the one is told of it at once, not of each part in turn.
INCLUDED = {
    "tools": frozenset({"documents", "grammar"}),
    "ray": frozenset({"server", "update"}),
    "export": frozenset({"openvino", "onnx"}),
    "profile": frozenset({"openvino", "onnx", "export", "plots"}),
    "optimum": frozenset({"openvino", "onnx", "export"}),
}
# Base requirements that are imported where they are used: `pip install --no-deps` may leave them out (slim-runtime.md).
LEFT_OUT = ("filelock", "platformdirs", "psutil", "rich")


def install_command(extra: str) -> str:
    """In double quotes, which every shell takes: cmd.exe would pass single ones on.

    What was installed from a folder or a file that is still there is named so: an index may not have it.
    """
    where = _installed_from()
    return f'pip install {"-e " if where.editable else ""}"{where.name}[{extra}]"'


class _Origin(NamedTuple):
    """What pip was given."""

    name: str
    editable: bool = False


def _installed_from() -> _Origin:
    """Where pip got this package from, as it notes for folders and files (PEP 610)."""
    import json
    from importlib import metadata
    from pathlib import Path
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    try:
        noted = json.loads(metadata.distribution("edgeglm").read_text("direct_url.json") or "{}")
        url = urlsplit(noted["url"])
        path = url2pathname(url.path) if url.scheme == "file" else ""
        if path and Path(path).exists():
            return _Origin(path, noted.get("dir_info", {}).get("editable") is True)
    except (metadata.PackageNotFoundError, KeyError, TypeError, AttributeError, ValueError, OSError):
        pass
    return _Origin("edgeglm")


def brings(extra: str, module: str) -> bool:
    """Whether an extra brings a top-level module, itself or by an extra that it includes."""
    return any(module in BROUGHT[name] for name in (extra, *INCLUDED.get(extra, ())))


def missing_package(error: ModuleNotFoundError, needed: str | None = None) -> MissingPackageError | None:
    """What to install for a module that was not found; None where nothing that we name has it.

    needed: the extra that the work at hand needs as a whole.
    """
    package = (error.name or "").split(".")[0]
    if package in LEFT_OUT:
        return MissingPackageError(f"{package} is not installed; pip install {package}")
    extras = [name for name in BROUGHT if package in BROUGHT[name]]
    if not extras:
        return None
    extra = needed if needed is not None and brings(needed, package) else extras[0]
    return MissingPackageError(f"{package} is not installed; {install_command(extra)}")


def check_installed(*modules: str, needed: str | None = None) -> None:
    """Look for top-level modules before work that ends with them, importing none. Raises MissingPackageError."""
    with missing_packages_named(needed):
        for module in modules:
            if find_spec(module) is None:
                raise ModuleNotFoundError(name=module)


@contextmanager
def missing_packages_named(needed: str | None = None) -> Iterator[None]:
    """Turn a missing package into an error that says which extra to install. Raises MissingPackageError."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (missing := missing_package(error, needed)) is None:
            raise
        raise missing from error
