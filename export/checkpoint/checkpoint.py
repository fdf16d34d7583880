"""Checkpoints: where the weights, configuration and tokenizer of a model come from.

In: a path. Out: a `Checkpoint`, whatever its file format. Knows nothing about architectures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, Protocol

from edge.export.checkpoint.fields import Fields
from edge.export.checkpoint.refusals import why_no_checkpoint
from edge.export.checkpoint.weight_files import exists, is_unfinished, read_head, unfinished_download_of
from edge.export.tensors import FloatArray
from edge.runtime.bundle import is_bundle
from edge.runtime.errors import CheckpointError

FileFormat = Literal["safetensors", "gguf"]


class Checkpoint(Protocol):
    """An opened checkpoint. Tensors stay in the mapped file until they are read."""

    path: Path
    format: FileFormat
    config: Fields

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor, rows first."""

    @property
    def architecture(self) -> str:
        """The checkpoint's own name for what it is: model_type or general.architecture."""

    def check_readable(self, names: Iterable[str]) -> None:
        """Raises TensorError where one of these tensors has a type that `read` does not support."""

    def read(self, name: str) -> FloatArray:
        """One tensor as it is stored if numpy can hold that, else in float32; must not be written to."""

    def sha256(self, name: str) -> str:
        """Hex digest of the bytes of one tensor as they are stored."""

    def prefetch(self, names: Iterable[str]) -> None:
        """Ask the system to begin reading these tensors from the disk."""

    def release(self) -> None:
        """Let the system take back the memory of mapped tensors; reading them again reads the file again."""

    def done_with(self, names: Iterable[str]) -> None:
        """These tensors are not read again: let the system drop what it has in memory for this process alone."""

    def weight_files(self) -> list[Path]:
        """The files that hold tensors, in a stable order."""

    def small_files(self) -> list[Path]:
        """The other files that decide the result of an export, in a stable order."""

    def write_tokenizer(self, path: Path) -> tuple[str, ...]:
        """Write the tokenizer.json, and return warnings about it.

        Raises TokenizerError when the checkpoint has none and none can be made.
        """

    def chat_template(self) -> str | None:
        """The chat template, or None for a base model. Raises TokenizerError."""

    def named_tokens(self) -> dict[str, str | list[str]]:
        """Texts of the special tokens that templates refer to by name, like bos_token, as far as it has them."""

    def generation_config(self) -> Fields:
        """Generation defaults; empty if it has none."""

    def picture_config(self) -> Fields:
        """How pictures become values, as their processor has it. Raises ConfigError where nothing says it."""


def open_checkpoint(source: str | Path, *, download: bool = True) -> Checkpoint:
    """Open a folder with config.json and *.safetensors, a .gguf file, or a hub id. Raises CheckpointError.

    Only a hub id touches the network: `hf:org/name`, or `org/name` where no local path can be meant. download: whether
    it may; otherwise what an earlier download left in the hub's cache is opened.
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
            raise CheckpointError(f"{path}: no such path, and {begun.name} is an unfinished download; finish it")
        raise CheckpointError(f"{path}: no such path; {expected}")
    if path.is_file() and (path.suffix == ".gguf" or _begins_like_gguf(path)):
        from edge.export.checkpoint.gguf import GGUFCheckpoint

        return GGUFCheckpoint(path)
    if path.is_dir() and (path / "config.json").is_file() and not is_bundle(path):
        from edge.export.checkpoint.safetensors import SafetensorsCheckpoint

        return SafetensorsCheckpoint(path)
    raise CheckpointError(f"{path}: {why_no_checkpoint(path) or f'not a checkpoint; {expected}'}")


def _begins_like_gguf(path: Path) -> bool:
    """Not every GGUF file has a name that ends in .gguf: Ollama names files by their hash."""
    return not is_unfinished(path) and read_head(path, CheckpointError).startswith(b"GGUF")
