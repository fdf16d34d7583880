"""A GGUF file, or the parts of a split one: weights, configuration, tokenizer and chat template in one file.

In: the file (or one of its parts). Out: a `Checkpoint`. Tensors stay in the mapped files and are dequantized one at a
time by the `gguf` package. A tokenizer.json next to the file wins over the one inside.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from edge.export.checkpoint import build_tokenizer, chat_templates, tokenizer_files
from edge.export.checkpoint.checkpoint import FileFormat
from edge.export.checkpoint.fields import Fields
from edge.export.checkpoint.gguf_metadata import Header, TensorInfo, read_header
from edge.export.checkpoint.mapped import MappedFiles
from edge.export.checkpoint.weight_files import AGAIN, other_kind, read_head, refuse_lfs_pointer
from edge.export.tensors import FloatArray
from edge.runtime.errors import CheckpointError, TensorError, TokenizerError, plain, shown

# Ids that end an answer, as llama.cpp reads them (src/llama-vocab.cpp).
_STOP_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
_NAMED_KEYS = {
    **{f"{name}_token": f"{name}_token_id" for name in ("bos", "eos", "cls", "mask")},
    **{"unk_token": "unknown_token_id", "sep_token": "seperator_token_id", "pad_token": "padding_token_id"},
}
# How gguf-split names parts (ggml-org/llama.cpp, tools/gguf-split).
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.ASCII)
_BESIDE = "put the model's tokenizer.json into the same folder as the GGUF file"
# Files that are not a model, by their general.type (gguf.GGUFType); `_other_than_a_model` finds older ones by names.
_NO_MODELS = {
    "adapter": "a LoRA, not a model; give the model's own file, and the LoRA as a PEFT folder with --adapter",
    "mmproj": "the image tower of a model; give the file with the language model",
    "imatrix": "an importance matrix, which helps quantization, not a model; give the model's own file",
    "vocab": "a vocabulary without a model; give the model's own file",
}


class GGUFCheckpoint:
    """Raises CheckpointError and TensorError."""

    format: FileFormat = "gguf"

    def __init__(self, path: Path) -> None:
        self.path = path
        if not (head := read_head(path, CheckpointError)).startswith(b"GGUF"):
            if kind := other_kind(head):
                raise CheckpointError(f"{path} is {kind}")
            raise CheckpointError(f"{path}: does not begin with 'GGUF', so it is not a GGUF file; {AGAIN}")
        self._parts = _parts(path)
        headers = {part: read_header(part) for part in self._parts}
        self._metadata = headers[self._parts[0]].fields
        self.config = Fields(self._metadata, path.name)
        self._tensors: dict[str, tuple[Path, TensorInfo]] = {}
        for part, header in headers.items():
            for name, info in header.tensors.items():
                if name in self._tensors:
                    raise TensorError(
                        f"tensor {plain(name)} is in both {self._tensors[name][0].name} and {part.name}; download the "
                        "parts again"
                    )
                self._tensors[name] = part, info
        if (kind := self._other_than_a_model()) is not None:
            raise CheckpointError(f"{path} is {kind}")
        self._check_parts(headers)
        self.shapes = {name: info.shape for name, (_, info) in self._tensors.items()}
        self._mapped = MappedFiles()

    @property
    def architecture(self) -> str:
        return self.config.read(str, "general.architecture")

    def check_readable(self, names: Iterable[str]) -> None:
        for part, info, name in ((*self._tensors[name], name) for name in names):
            if not _is_readable(info.type):
                raise TensorError(
                    f"{part}: tensor {plain(name)} is {info.type.name}, which gguf cannot read; use another "
                    "quantization"
                )

    def read(self, name: str) -> FloatArray:
        info = self._tensors[name][1]
        data = self._mapped.view(*self._place(name))
        if info.type == gguf.GGMLQuantizationType.F32:
            return data.view(np.float32).reshape(info.shape)
        if info.type == gguf.GGMLQuantizationType.F16:
            return data.view(np.float16).reshape(info.shape)
        values = gguf.dequantize(data.reshape(info.byte_shape), info.type)
        return np.asarray(values, np.float32).reshape(info.shape)

    def sha256(self, name: str) -> str:
        return self._mapped.sha256(*self._place(name))

    def prefetch(self, names: Iterable[str]) -> None:
        for name in names:
            self._mapped.prefetch(*self._place(name))

    def release(self) -> None:
        self._mapped.release()

    def done_with(self, names: Iterable[str]) -> None:
        for name in names:
            self._mapped.done_with(*self._place(name))

    def _place(self, name: str) -> tuple[Path, int, int]:
        """File, first byte, bytes."""
        part, info = self._tensors[name]
        return part, info.offset, info.nbytes

    def weight_files(self) -> list[Path]:
        return self._parts

    def small_files(self) -> list[Path]:
        names = ("tokenizer.json", chat_templates.FILE)
        return [beside for name in names if (beside := self.path.with_name(name)).is_file()]

    def write_tokenizer(self, path: Path) -> tuple[str, ...]:
        beside = self.path.with_name("tokenizer.json")
        if beside.is_file():
            refuse_lfs_pointer(beside, TokenizerError)
            text, doubts = tokenizer_files.usable_tokenizer(beside)
            path.write_bytes(text.encode())
            return doubts
        model, pre = (self._text(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
        tokens, types, merges = (
            self._list(f"tokenizer.ggml.{key}", kind)
            for key, kind in (("tokens", str), ("token_type", int), ("merges", str))
        )
        build_tokenizer.from_gguf(model, pre, tokens, types, merges).save(str(path))
        return ()

    def chat_template(self) -> str | None:
        return chat_templates.gguf_template(self.path, self._metadata)

    def named_tokens(self) -> dict[str, str | list[str]]:
        tokens = self._metadata.get("tokenizer.ggml.tokens")
        found = {name: self.config.find(f"tokenizer.ggml.{key}") for name, key in _NAMED_KEYS.items()}
        if not isinstance(tokens, list):
            return {}
        return {name: str(tokens[i]) for name, i in found.items() if type(i) is int and 0 <= i < len(tokens)}

    def generation_config(self) -> Fields:
        return Fields({"eos_token_id": list(self._stop_ids)}, self.path.name)

    def picture_config(self) -> Fields:
        return Fields({}, self.path.name)  # towers are in files of their own, which are not read

    @cached_property
    def _stop_ids(self) -> tuple[int, ...]:
        found = [self.config.find(f"tokenizer.ggml.{key}") for key in _STOP_KEYS]
        return tuple(dict.fromkeys(i for i in found if isinstance(i, int)))

    def _text(self, key: str) -> str:
        value = self._metadata.get(key)
        if not isinstance(value, str) or len(value) > 100:
            raise TokenizerError(f"{self.path}: {key} is {_or_missing(value)}, expected a short name; {_BESIDE}")
        return value

    def _list(self, key: str, kind: type) -> list[Any]:
        values = self._metadata.get(key)
        if not isinstance(values, list) or not all(type(value) is kind for value in values):
            raise TokenizerError(
                f"{self.path}: {key} is {_or_missing(values)}, expected a list of {kind.__name__}; {_BESIDE}"
            )
        return values

    def _other_than_a_model(self) -> str | None:
        kind = self._metadata.get("general.type")
        if "adapter.type" in self._metadata or any(name.endswith(".lora_a") for name in self._tensors):
            kind = "adapter"
        elif self._metadata.get("general.architecture") == "clip":
            kind = "mmproj"
        elif not self._tensors:
            kind = "vocab"
        return _NO_MODELS.get(kind) if isinstance(kind, str) else None

    def _check_parts(self, headers: dict[Path, Header]) -> None:
        """Raises CheckpointError where a split file says that it has other parts or tensors."""
        count = self.config.read(int, "split.count", default=1) or 1
        total = self.config.read(int, "split.tensors.count", default=len(self._tensors))
        if (count, total) != (len(headers), len(self._tensors)) and count > 1 and len(headers) == 1:
            raise CheckpointError(
                f"{self.path}: one of the {count} parts of a split file, and not named like one; rename each part back "
                "to a name like NAME-00001-of-00003.gguf, put all into one folder and give the first"
            )
        if count != len(headers) or total != len(self._tensors):
            raise CheckpointError(
                f"{self.path}: {len(headers)} parts with {len(self._tensors)} tensors, but its metadata says {count} "
                f"parts with {total}; put all parts into one folder and give the first"
            )


@cache
def _is_readable(kind: gguf.GGMLQuantizationType) -> bool:
    """Whether gguf can read this type; asked before an export, which would otherwise fail after hours."""
    block_bytes = gguf.GGML_QUANT_SIZES[kind][1]
    try:
        gguf.dequantize(np.zeros((1, block_bytes), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def _or_missing(value: object) -> str:
    return "missing" if value is None else shown(value)


def part_names(name: str) -> list[str]:
    """The file names of all parts of a split file, in order, given any one of them; else the name itself."""
    match = _PART.fullmatch(name)
    count = 0 if match is None else int(match["count"])
    if match is None or not 1 <= int(match["number"]) <= count:
        return [name]
    return [f"{match['stem']}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]


def _parts(path: Path) -> list[Path]:
    """All parts of a split file, in order, given any one of them; else the file itself. Raises CheckpointError."""
    parts = [path.with_name(name) for name in part_names(path.name)]
    if missing := [part.name for part in parts if part != path and not part.is_file()]:
        raise CheckpointError(
            f"{path}: {len(missing)} of {len(parts)} parts are missing, first {missing[0]}; download them into one "
            "folder"
        )
    return parts
