"""Checkpoints: where weights, configuration and tokenizer of a model come from.

In: a path. Out: a `Checkpoint`, whichever file format it has. Knows nothing about architectures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from edge.export.checkpoint.fields import Fields
from edge.export.checkpoint.refusals import why_no_checkpoint
from edge.export.checkpoint.weight_files import exists, is_unfinished, read_head, unfinished_download_of
from edge.export.tensors import FloatArray
from edge.runtime.bundle import is_bundle
from edge.runtime.errors import CheckpointError

Format = Literal["safetensors", "gguf"]


class Checkpoint(Protocol):
    """An opened checkpoint. Tensors stay in the mapped file until they are read."""

    path: Path
    format: Format
    config: Fields

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor, rows first."""

    @property
    def architecture(self) -> str:
        """The checkpoint's own word for what it is: model_type or general.architecture."""

    def check_readable(self, names: Iterable[str]) -> None:
        """Raises TensorError where one of these tensors is of a type that `read` does not know."""

    def read(self, name: str) -> FloatArray:
        """One tensor as it is stored where numpy can hold that, else in float32; not to be written to."""

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """The bytes of one tensor as they are stored."""

    def prefetch(self, names: Iterable[str]) -> None:
        """Have the system begin to read these tensors from the disk."""

    def release(self) -> None:
        """Let the system take back the memory of mapped tensors; what is read again comes from the file again."""

    def weight_files(self) -> list[Path]:
        """The files that hold tensors, in a stable order."""

    def small_files(self) -> list[Path]:
        """The other files that decide the result of an export, in a stable order."""

    def write_tokenizer(self, path: Path) -> tuple[str, ...]:
        """Write the tokenizer.json, and say what is doubtful about it.

        Raises TokenizerError when there is none and none can be made.
        """

    def chat_template(self) -> str | None:
        """The chat template, or None for a base model. Raises TokenizerError."""

    def named_tokens(self) -> dict[str, str | list[str]]:
        """Texts of the special tokens that templates ask for by name, as far as it has them: bos_token and its like."""

    def generation_config(self) -> Fields:
        """Generation defaults; empty where there are none."""


def open_checkpoint(source: str | Path, *, download: bool = True) -> Checkpoint:
    """Open a folder with config.json and *.safetensors, a .gguf file, or a hub id. Raises CheckpointError.

    Only a hub id touches the network: `hf:org/name`, or `org/name` where nothing that is here can be meant. download:
    whether it may; without, what an earlier download left in the hub's cache is opened.
    """
    from edge.export.checkpoint import sources

    path = Path(source)
    expected = (
        "expected a folder with config.json and *.safetensors, a .gguf file, or a hub id like "
        f"{sources.PREFIX}{sources.EXAMPLE}"
    )
    if not exists(path):
        if (hub_id := sources.meant_hub_id(str(source))) is not None:
            from edge.export.checkpoint import hub

            return open_checkpoint(hub.download(hub_id) if download else hub.find_downloaded(hub_id))
        if (begun := unfinished_download_of(path)) is not None:
            raise CheckpointError(
                f"{path}: no such path, and {begun.name} is a download that is not finished; finish it"
            )
        raise CheckpointError(f"{path}: no such path; {expected}")
    if path.is_file() and (path.suffix == ".gguf" or _begins_like_gguf(path)):
        from edge.export.checkpoint.gguf import GGUFCheckpoint

        return GGUFCheckpoint(path)
    if path.is_dir() and (path / "config.json").is_file() and not is_bundle(path):
        from edge.export.checkpoint.safetensors import SafetensorsCheckpoint

        return SafetensorsCheckpoint(path)
    raise CheckpointError(f"{path}: {why_no_checkpoint(path) or f'not a checkpoint; {expected}'}")


def _begins_like_gguf(path: Path) -> bool:
    """Files are kept under other names than those that end in .gguf, too: by their hash, as Ollama does."""
    return not is_unfinished(path) and read_head(path, CheckpointError).startswith(b"GGUF")
