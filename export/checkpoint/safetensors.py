"""A Hugging Face folder: config.json, *.safetensors (one file, or shards with an index), tokenizer.json.

In: the folder. Out: a `Checkpoint`. Files are memory-mapped and checked before anything is read: a truncated file or an
offset outside it is an error here, not garbage later. Tensors are views into the mapped files, in the dtype they are
stored in: the safetensors package would copy them, and refuses bfloat16 for numpy (format: huggingface/safetensors
README, "Format"). Pickle files are refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from edge.export import chat_templates, tokenizer, tokenizer_files
from edge.export.checkpoint import Format
from edge.export.checkpoint.fields import Fields
from edge.export.checkpoint.mapped import MappedFiles
from edge.export.tensors import FloatArray
from edge.runtime.errors import CheckpointError, ConfigError, TensorError, TokenizerError

INDEX = "model.safetensors.index.json"
_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True, slots=True)
class _Entry:
    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int  # bytes from the beginning of the file
    stop: int


class SafetensorsFiles:
    """The tensors of one or several files; none is read before it is asked for.

    `index` maps tensor names to file names, as model.safetensors.index.json does, and must agree with the files.
    Raises TensorError for damaged files and for a tensor that stands in two of them.
    """

    def __init__(self, files: list[Path], index: dict[str, str] | None = None) -> None:
        self.files = files
        self._entries: dict[str, _Entry] = {}
        for file in files:
            for name, entry in _read_header(file).items():
                if name in self._entries:
                    raise TensorError(
                        f"{file.parent}: tensor {name} stands in both {self._entries[name].file.name} and {file.name}; "
                        "remove the one that does not belong to this model"
                    )
                self._entries[name] = entry
        if index is not None:
            self._check_index(index)
        self.shapes = {name: entry.shape for name, entry in self._entries.items()}
        self._mapped = MappedFiles()

    def read(self, name: str) -> FloatArray:
        """One tensor, as a view into the mapped file."""
        entry = self._entries[name]
        return self.raw(name).view(_DTYPES[entry.dtype]).reshape(entry.shape)

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """The stored bytes of one tensor, as a view."""
        entry = self._entries[name]
        return self._mapped.view(entry.file, entry.start, entry.stop - entry.start)

    def prefetch(self, names: Iterable[str]) -> None:
        """Have the system begin to read these tensors."""
        for name in names:
            entry = self._entries[name]
            self._mapped.prefetch(entry.file, entry.start, entry.stop - entry.start)

    def release(self) -> None:
        """Unmap what was read; views stay valid."""
        self._mapped.release()

    def _check_index(self, index: dict[str, str]) -> None:
        found = {name: entry.file.name for name, entry in self._entries.items()}
        for name in sorted(index.keys() | found.keys()):
            if index.get(name) != found.get(name):
                raise TensorError(
                    f"{self.files[0].parent}: {INDEX} puts tensor {name} into {index.get(name, 'no file')}, it stands "
                    f"in {found.get(name, 'none')}; the shards are of different downloads, download them again"
                )


class SafetensorsCheckpoint:
    """Raises CheckpointError, ConfigError and TensorError."""

    format: Format = "safetensors"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = Fields(_read_json(path / "config.json"), f"{path.name}/config.json")
        self._tensors = SafetensorsFiles(*_weight_files(path))
        self.shapes = self._tensors.shapes

    @property
    def architecture(self) -> str:
        return self.config.read(str, "model_type")

    def read(self, name: str) -> FloatArray:
        return self._tensors.read(name)

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        return self._tensors.raw(name)

    def prefetch(self, names: Iterable[str]) -> None:
        self._tensors.prefetch(names)

    def release(self) -> None:
        self._tensors.release()

    def weight_files(self) -> list[Path]:
        return self._tensors.files

    def small_files(self) -> list[Path]:
        names = (
            "config.json",
            "generation_config.json",
            "tokenizer.json" if (self.path / "tokenizer.json").is_file() else "tokenizer.model",
            tokenizer_files.CONFIG,
            tokenizer_files.SPECIAL_TOKENS_MAP,
            tokenizer_files.ADDED_TOKENS,
        )
        files = [file for name in names if (file := self.path / name).is_file()]
        return files + chat_templates.template_files(self.path)

    def write_tokenizer(self, path: Path) -> tuple[str, ...]:
        if (source := self.path / "tokenizer.json").is_file():
            text, doubts = tokenizer_files.usable_tokenizer(source, tokenizer_files.read_beside(self.path))
            path.write_bytes(text.encode())
            return doubts
        if not (ranks := self.path / "tokenizer.model").is_file():
            raise TokenizerError(
                f"{self.path}: tokenizer.json is missing, and so is tokenizer.model; copy either there from the "
                "model's repository"
            )
        special = tokenizer.special_tokens(tokenizer_files.read_config(self.path))
        tokenizer.from_tiktoken(ranks, special).save(str(path), pretty=False)  # half the size for GLM-4
        return ()

    def chat_template(self) -> str | None:
        return chat_templates.folder_template(self.path, tokenizer_files.read_config(self.path))

    def named_tokens(self) -> dict[str, str | list[str]]:
        return tokenizer_files.read_beside(self.path).names

    def generation_config(self) -> Fields:
        file = self.path / "generation_config.json"
        return Fields(_read_json(file) if file.is_file() else {}, f"{self.path.name}/generation_config.json")


def _weight_files(path: Path) -> tuple[list[Path], dict[str, str] | None]:
    """The files that an index names, with the index, or all *.safetensors of the folder."""
    if (path / INDEX).is_file():
        index = _read_json(path / INDEX).get("weight_map")
        if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
            raise CheckpointError(f"{path}/{INDEX}: weight_map is missing; download it again")
        names = sorted(set(index.values()))
        if outside := [name for name in names if Path(name).name != name]:
            raise CheckpointError(f"{path}/{INDEX} names {outside[0]!r}, a file outside the folder")
        if missing := [name for name in names if not (path / name).is_file()]:
            raise CheckpointError(
                f"{path}: {len(missing)} of {len(names)} shards are missing, first {missing[0]}; download it again"
            )
        return [path / name for name in names], index
    files = sorted(path.glob("*.safetensors"))
    if files:
        return files, None
    if pickles := sorted(file for pattern in _PICKLES for file in path.glob(pattern)):
        raise CheckpointError(
            f"{path}: weights are pickled ({pickles[0].name}), and unpickling can run code; use the model's "
            "safetensors files, or convert them once where you trust the source"
        )
    raise CheckpointError(f"{path}: config.json but no *.safetensors; download the weights into the folder")


def _read_header(file: Path) -> dict[str, _Entry]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        header_size = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or header_size > size - 8:
            raise TensorError(f"{file}: {size} bytes, too few for its header; it is truncated, download it again")
        raw = stream.read(header_size)
    try:
        header: Any = json.loads(raw)
        items = [(name, info) for name, info in header.items() if name != "__metadata__"]
        entries = {}
        for name, info in items:
            start, stop = info["data_offsets"]
            entries[name] = _Entry(
                file, info["dtype"], tuple(info["shape"]), 8 + header_size + start, 8 + header_size + stop
            )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TensorError(f"{file}: the header is no safetensors header ({error}); download the file again") from error
    for name, entry in entries.items():
        if entry.dtype not in _DTYPES:
            raise TensorError(f"{file}: tensor {name} is {entry.dtype}, supported: {', '.join(_DTYPES)}")
        if entry.start < 8 + header_size or entry.stop < entry.start or entry.stop > size:
            raise TensorError(
                f"{file}: tensor {name} lies at bytes {entry.start} to {entry.stop} of a file of {size}; "
                "the file is truncated or altered, download it again"
            )
        if any(not isinstance(n, int) or n < 0 for n in entry.shape):
            raise TensorError(f"{file}: tensor {name} has shape {list(entry.shape)}; the header is damaged")
        needed = math.prod(entry.shape) * _DTYPES[entry.dtype].itemsize
        if entry.stop - entry.start != needed:
            raise TensorError(
                f"{file}: tensor {name} of shape {list(entry.shape)} needs {needed} bytes and has "
                f"{entry.stop - entry.start}; the header is damaged, download the file again"
            )
    return entries


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} does not read as JSON ({error}); download it again") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds {type(data).__name__}, expected a JSON object")
    return data
