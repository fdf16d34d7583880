"""optimum-intel at work: a float32 graph of a checkpoint, and what it warned of.

In: a checkpoint, a folder. Out: the graph's .xml. Knows nothing about compression or bundles. Pickles and remote code
are refused.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from edge.export.checkpoint.checkpoint import Checkpoint
from edge.runtime import bundle
from edge.runtime.errors import (
    CheckpointError,
    telling_line,
)

PACKAGES = ("optimum.intel", "transformers", "torch")


def require_packages() -> None:
    """Raises ModuleNotFoundError if a package is missing; only looks, because torch takes seconds to import."""
    for name in PACKAGES:
        if find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def trace(checkpoint: Checkpoint, folder: Path) -> tuple[Path, tuple[str, ...]]:
    """Have optimum-intel write the float32 graph; returns its .xml and the warnings. Raises CheckpointError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from optimum.exporters.openvino import main_export
        from optimum.intel import OVConfig
    with _quiet() as said:
        try:
            main_export(
                str(checkpoint.path.absolute()),
                folder,
                task="text-generation-with-past",
                library_name="transformers",
                ov_config=OVConfig(dtype="fp32"),
                convert_tokenizer=False,
                trust_remote_code=False,
                local_files_only=True,
                model_loading_kwargs={"use_safetensors": True},  # otherwise pickles that are next to *.safetensors
            )
        except Exception as error:  # any: transformers and optimum-intel have no base class of their own
            if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
                raise
            raise CheckpointError(f"{checkpoint.path}: optimum-intel cannot export it: {reason(error)}") from error
    xml = folder / bundle.MODEL_XML
    if not xml.is_file():  # a model of several parts
        raise CheckpointError(f"{checkpoint.path}: optimum-intel made no {xml.name} from it; is it a text model?")
    return xml, tuple(dict.fromkeys(f"optimum-intel: {line}" for line in said))


class _Collector(logging.Handler):
    """Keeps warnings as lines."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(" ".join(record.getMessage().split()))


@contextlib.contextmanager
def _quiet() -> Iterator[list[str]]:
    """Silences loading and tracing, collects the warnings of optimum-intel, and restores everything it changes."""
    theirs, chatter = logging.getLogger("optimum"), logging.getLogger("transformers")
    level, handlers, propagate, collector = chatter.level, theirs.handlers, theirs.propagate, _Collector()
    theirs.handlers, theirs.propagate = [collector], False
    chatter.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),  # progress bars
        ):
            warnings.simplefilter("ignore")
            yield collector.lines
    finally:
        chatter.setLevel(level)
        theirs.handlers, theirs.propagate = handlers, propagate


def reason(error: Exception) -> str:
    """The telling line of an error, without the advice after it."""
    return telling_line(error).split(" Please ")[0]
