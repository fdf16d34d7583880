"""A Hugging Face folder: config.json, *.safetensors (one file, or shards with an index), tokenizer.json.

In: the folder. Out: a `Checkpoint`. Files are checked before any tensor is read: a truncated file or an offset outside
it is an error here, not garbage later. Tensors keep the dtype they are stored in, and large ones are views into the
mapped files: the safetensors package would copy them, and refuses bfloat16 for numpy. Pickle files are refused, and so
are quantized checkpoints, whose integers and scales differ from ours.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edge.export.checkpoint import build_tokenizer, chat_templates, tokenizer_files
from edge.export.checkpoint.checkpoint import FileFormat
from edge.export.checkpoint.fields import Fields
from edge.export.checkpoint.mapped import MappedFiles
from edge.export.checkpoint.refusals import why_no_checkpoint
from edge.export.checkpoint.safetensors_header import Entry, read_header
from edge.export.checkpoint.weight_files import AGAIN, exists, refuse_lfs_pointer, unfinished_downloads
from edge.export.tensors import FloatArray
from edge.runtime.errors import CheckpointError, ConfigError, TensorError, TokenizerError, plain, shown
from edge.runtime.json_reader import read_json_object

INDEX = "model.safetensors.index.json"
PICTURES = ("preprocessor_config.json", "processor_config.json")  # transformers 5 may write the second alone
_DTYPES = ("F32", "F16", "BF16")
_CONFIG_BYTES = 1 << 22  # a thousand times what such files have
_LISTING_BYTES = 1 << 24  # of files that list tensors or tokens: the index of a model of 163 shards has 9 MB
_SHARD_NAME = re.compile(r"[^/\\:\0]{1,200}\.safetensors")
# Parts of the names of tensors in quantized checkpoints: GPTQ, AWQ, bitsandbytes, fp8, compressed-tensors, HQQ, AQLM.
_QUANTIZED_NAME = re.compile(r"qweight|qzeros|scale|absmax|quant|SCB|codebook|packed|W_q")
_QUANTIZED_KEYS = ("quantization_config", "quantization", "compression_config")


class SafetensorsFiles:
    """The tensors of one or several files; each is read only when asked for.

    `index` maps tensor names to file names, as model.safetensors.index.json does, and must agree with the files.
    any_dtype: accept dtypes that `read` does not support; the caller runs `check_readable` before it reads.
    Raises TensorError for damaged files and for a tensor that is in two of them.
    """

    def __init__(self, files: list[Path], index: dict[str, str] | None = None, *, any_dtype: bool = False) -> None:
        self.files = files
        self._entries: dict[str, Entry] = {}
        for file in files:
            for name, entry in read_header(file).items():
                if name in self._entries:
                    first = self._entries[name].file.name
                    raise TensorError(
                        f"{file.parent}: tensor {plain(name)} is in both {first} and {file.name}; "
                        "remove the one that does not belong to this model"
                    )
                self._entries[name] = entry
        if index is not None:
            self._check_index(index)
        self.shapes = {name: entry.shape for name, entry in self._entries.items()}
        self.dtypes = {name: entry.dtype for name, entry in self._entries.items()}
        self._mapped = MappedFiles()
        if not any_dtype:
            self.check_readable(self._entries)

    def check_readable(self, names: Iterable[str]) -> None:
        """Raises TensorError where one of these tensors has a dtype that `read` does not support."""
        for entry, name in ((self._entries[name], name) for name in names):
            if entry.dtype not in _DTYPES:
                raise TensorError(
                    f"{entry.file}: tensor {plain(name)} is {entry.dtype}, supported: {', '.join(_DTYPES)}; give the "
                    "model's float checkpoint"
                )

    def read(self, name: str) -> FloatArray:
        """One tensor, of a large one a view into the mapped file."""
        entry = self._entries[name]
        return self._mapped.view(*self._place(name)).view(_dtype(entry.dtype)).reshape(entry.shape)

    def sha256(self, name: str) -> str:
        """Hex digest of the stored bytes of one tensor."""
        return self._mapped.sha256(*self._place(name))

    def prefetch(self, names: Iterable[str]) -> None:
        """Ask the system to begin reading these tensors."""
        for name in names:
            self._mapped.prefetch(*self._place(name))

    def release(self) -> None:
        """Unmap what was read; views stay valid."""
        self._mapped.release()

    def done_with(self, names: Iterable[str]) -> None:
        """These tensors are not read again."""
        for name in names:
            self._mapped.done_with(*self._place(name))

    def _place(self, name: str) -> tuple[Path, int, int]:
        """File, first byte, bytes."""
        entry = self._entries[name]
        return entry.file, entry.start, entry.stop - entry.start

    def _check_index(self, index: dict[str, str]) -> None:
        found = {name: entry.file.name for name, entry in self._entries.items()}
        for name in sorted(index.keys() | found.keys()):
            if index.get(name) != found.get(name):
                raise TensorError(
                    f"{self.files[0].parent}: {INDEX} puts tensor {plain(name)} into {index.get(name, 'no file')}, but "
                    f"it is in {found.get(name, 'none')}; the shards are from different downloads, download them again"
                )


class SafetensorsCheckpoint:
    """Raises CheckpointError, ConfigError and TensorError."""

    format: FileFormat = "safetensors"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = Fields(_read_json(path / "config.json"), f"{path.name}/config.json")
        self._tensors = SafetensorsFiles(*_weight_files(path), any_dtype=True)
        self.shapes = self._tensors.shapes
        _refuse_quantized(self.config, self._tensors.dtypes)

    @property
    def architecture(self) -> str:
        return self.config.read(str, "model_type")

    def check_readable(self, names: Iterable[str]) -> None:
        self._tensors.check_readable(names)

    def read(self, name: str) -> FloatArray:
        return self._tensors.read(name)

    def sha256(self, name: str) -> str:
        return self._tensors.sha256(name)

    def prefetch(self, names: Iterable[str]) -> None:
        self._tensors.prefetch(names)

    def release(self) -> None:
        self._tensors.release()

    def done_with(self, names: Iterable[str]) -> None:
        self._tensors.done_with(names)

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
            *PICTURES,
        )
        files = [file for name in names if (file := self.path / name).is_file()]
        return files + chat_templates.template_files(self.path)

    def write_tokenizer(self, path: Path) -> tuple[str, ...]:
        if (source := self.path / "tokenizer.json").is_file():
            refuse_lfs_pointer(source, TokenizerError)
            text, doubts = tokenizer_files.usable_tokenizer(source, tokenizer_files.read_beside(self.path))
            path.write_bytes(text.encode())
            return doubts
        if not (ranks := self.path / "tokenizer.model").is_file():
            raise TokenizerError(
                f"{self.path}: tokenizer.json and tokenizer.model are both missing; copy one of them there from the "
                "model's repository"
            )
        refuse_lfs_pointer(ranks, TokenizerError)
        special = build_tokenizer.special_tokens(tokenizer_files.read_config(self.path))
        build_tokenizer.from_tiktoken(ranks, special).save(str(path), pretty=False)  # half the size for GLM-4
        return ()

    def chat_template(self) -> str | None:
        return chat_templates.folder_template(self.path, tokenizer_files.read_config(self.path))

    def named_tokens(self) -> dict[str, str | list[str]]:
        return tokenizer_files.read_beside(self.path).names

    def generation_config(self) -> Fields:
        file = self.path / "generation_config.json"
        found = _read_json(file) if file.is_file() else {}
        # All of them go into a bundle, and not every JSON reader accepts the NaN and Infinity that Python writes.
        finite = {key: value for key, value in found.items() if not isinstance(value, float) or math.isfinite(value)}
        return Fields(finite, f"{self.path.name}/generation_config.json")

    def picture_config(self) -> Fields:
        own, whole = (self.path / name for name in PICTURES)
        if own.is_file():
            return Fields(_read_json(own), f"{self.path.name}/{own.name}")
        if whole.is_file():
            return Fields(_read_json(whole), f"{self.path.name}/{whole.name}").within("image_processor")
        raise ConfigError(
            f"{self.path}: {own.name} is missing, which says how pictures are given to the model; copy it there from "
            "the model's repository, or export the text alone, with --pictures none"
        )


def _weight_files(path: Path) -> tuple[list[Path], dict[str, str] | None]:
    """The files that an index names, with the index; or all *.safetensors in the folder."""
    if (path / INDEX).is_file():
        index = read_index(path / INDEX)
        names = sorted(set(index.values()))
        begun = unfinished_downloads(path)
        advice = f"{begun[0].relative_to(path)} is an unfinished download; finish it" if begun else AGAIN
        if missing := [name for name in names if not exists(path / name)]:
            raise CheckpointError(
                f"{path}: {len(missing)} of {len(names)} shards are missing, first {missing[0]}; {advice}"
            )
        return [path / name for name in names], index
    files = sorted(path.glob("*.safetensors"))
    if files:
        return files, None
    raise CheckpointError(f"{path}: {why_no_checkpoint(path)}")


def read_index(path: Path) -> dict[str, str]:
    """The index of shards: tensor name -> name of a file in the same folder. Raises ConfigError."""
    index = _read_json(path, _LISTING_BYTES).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise ConfigError(f"{path}: weight_map is {shown(index)}, expected an object of files by tensor; {AGAIN}")
    for tensor, name in index.items():
        if not isinstance(name, str) or not _SHARD_NAME.fullmatch(name) or not name.isprintable():
            raise ConfigError(
                f"{path} puts tensor {plain(tensor)} into {shown(name)}, expected the name of a *.safetensors file in "
                f"the same folder; {AGAIN}"
            )
    return index


def _dtype(name: str) -> np.dtype[Any]:
    """The dtype of one of _DTYPES."""
    if name != "BF16":
        return np.dtype({"F32": "<f4", "F16": "<f2"}[name])
    import ml_dtypes  # imported here: what a checkpoint holds is told without it

    brain: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return brain


def _refuse_quantized(config: Fields, dtypes: Mapping[str, str]) -> None:
    """Raises CheckpointError for weights that are integers and scales. If all are floats, the config is out of date."""
    telling = (name for name, dtype in dtypes.items() if dtype not in _DTYPES or _QUANTIZED_NAME.search(name))
    settings = next((value for key in _QUANTIZED_KEYS if (value := config.find(key))), None)
    if settings is None or next(telling, None) is None:
        return
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    if method is None and isinstance(settings, dict) and {"group_size", "bits"} <= settings.keys():
        method = "MLX"  # the only one that gives no name
    by = f"quantized with {plain(method)}" if isinstance(method, str) else "a quantized checkpoint"
    raise CheckpointError(f"{config.origin}: {by}; give the model's float checkpoint, which an export quantizes itself")


def _read_json(path: Path, max_bytes: int = _CONFIG_BYTES) -> dict[str, Any]:
    refuse_lfs_pointer(path, ConfigError)
    return read_json_object(path, ConfigError, AGAIN, infinite=True, max_bytes=max_bytes)
