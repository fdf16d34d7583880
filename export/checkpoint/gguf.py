"""A GGUF file, or the parts of a split one: weights, configuration, tokenizer and chat template in one.

In: the file (or one of its parts). Out: a `Checkpoint`. Tensors stay in the mapped files and are dequantized one at a
time by the `gguf` package. A tokenizer.json beside the file wins over the one inside.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from edge.export import chat_templates, tokenizer, tokenizer_files
from edge.export.checkpoint import Format
from edge.export.checkpoint.fields import Fields
from edge.export.checkpoint.gguf_metadata import Header, TensorInfo, read_header
from edge.export.checkpoint.mapped import MappedFiles
from edge.export.tensors import FloatArray
from edge.runtime.errors import CheckpointError, TensorError, TokenizerError

# Ids that end an answer, as llama.cpp reads them (src/llama-vocab.cpp).
_STOP_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
_NAMED_KEYS = {
    **{f"{name}_token": f"{name}_token_id" for name in ("bos", "eos", "cls", "mask")},
    **{"unk_token": "unknown_token_id", "sep_token": "seperator_token_id", "pad_token": "padding_token_id"},
}
# How gguf-split names parts (ggml-org/llama.cpp, tools/gguf-split).
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


class GGUFCheckpoint:
    """Raises CheckpointError and TensorError."""

    format: Format = "gguf"

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise CheckpointError(f"{path}: does not begin with 'GGUF', so it is no GGUF file; download it again")
        self._parts = _parts(path)
        headers = {part: read_header(part) for part in self._parts}
        self._metadata = headers[self._parts[0]].fields
        self.config = Fields(self._metadata, path.name)
        self._tensors: dict[str, tuple[Path, TensorInfo]] = {}
        for part, header in headers.items():
            for name, info in header.tensors.items():
                if name in self._tensors:
                    raise TensorError(f"tensor {name} stands in both {self._tensors[name][0].name} and {part.name}")
                self._tensors[name] = part, info
        self._check_parts(headers)
        self.shapes = {name: info.shape for name, (_, info) in self._tensors.items()}
        self._mapped = MappedFiles()

    @property
    def architecture(self) -> str:
        return self.config.read(str, "general.architecture")

    def read(self, name: str) -> FloatArray:
        info = self._tensors[name][1]
        data = self.raw(name)
        if info.type == gguf.GGMLQuantizationType.F32:
            return data.view(np.float32).reshape(info.shape)
        if info.type == gguf.GGMLQuantizationType.F16:
            return data.view(np.float16).reshape(info.shape)
        try:
            values = gguf.dequantize(data.reshape(info.byte_shape), info.type)
        except NotImplementedError as error:
            raise TensorError(
                f"{self.path}: tensor {name} is {info.type.name}, which gguf cannot read; use another quantization"
            ) from error
        return np.asarray(values, np.float32).reshape(info.shape)

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        part, info = self._tensors[name]
        return self._mapped.view(part, info.offset, info.nbytes)

    def prefetch(self, names: Iterable[str]) -> None:
        for part, info in (self._tensors[name] for name in names):
            self._mapped.prefetch(part, info.offset, info.nbytes)

    def release(self) -> None:
        self._mapped.release()

    def weight_files(self) -> list[Path]:
        return self._parts

    def small_files(self) -> list[Path]:
        names = ("tokenizer.json", chat_templates.FILE)
        return [beside for name in names if (beside := self.path.with_name(name)).is_file()]

    def write_tokenizer(self, path: Path) -> tuple[str, ...]:
        beside = self.path.with_name("tokenizer.json")
        if beside.is_file():
            text, doubts = tokenizer_files.usable_tokenizer(beside)
            path.write_bytes(text.encode())
            return doubts
        built = tokenizer.from_gguf(
            self.config.read(str, "tokenizer.ggml.model"),
            self.config.read(str, "tokenizer.ggml.pre"),
            *(self._list(f"tokenizer.ggml.{key}") for key in ("tokens", "token_type", "merges")),
        )
        built.save(str(path))
        return ()

    def chat_template(self) -> str | None:
        return chat_templates.gguf_template(self.path, self._metadata)

    def named_tokens(self) -> dict[str, str | list[str]]:
        tokens = self._metadata.get("tokenizer.ggml.tokens")
        found = {name: self.config.find(f"tokenizer.ggml.{key}") for name, key in _NAMED_KEYS.items()}
        if not isinstance(tokens, list):
            return {}
        return {name: str(tokens[i]) for name, i in found.items() if isinstance(i, int) and 0 <= i < len(tokens)}

    def generation_config(self) -> Fields:
        return Fields({"eos_token_id": list(self._stop_ids)}, self.path.name)

    @cached_property
    def _stop_ids(self) -> tuple[int, ...]:
        found = [self.config.find(f"tokenizer.ggml.{key}") for key in _STOP_KEYS]
        return tuple(dict.fromkeys(i for i in found if isinstance(i, int)))

    def _list(self, key: str) -> list[Any]:
        values = self._metadata.get(key)
        if not isinstance(values, list):
            raise TokenizerError(
                f"{self.path}: {key} is missing; put the model's tokenizer.json into the same folder as the GGUF file"
            )
        return values

    def _check_parts(self, headers: dict[Path, Header]) -> None:
        """A split file says how many parts and tensors it has."""
        count = self.config.read(int, "split.count", default=1) or 1
        total = self.config.read(int, "split.tensors.count", default=len(self._tensors))
        if count != len(headers) or total != len(self._tensors):
            raise CheckpointError(
                f"{self.path}: {len(headers)} parts with {len(self._tensors)} tensors, its metadata say {count} parts "
                f"with {total}; put all parts into one folder and give the first"
            )


def part_names(name: str) -> list[str]:
    """The file names of all parts of a split file, in order, whichever is given; else the name itself."""
    match = _PART.fullmatch(name)
    if match is None:
        return [name]
    count = int(match["count"])
    return [f"{match['stem']}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]


def _parts(path: Path) -> list[Path]:
    """All parts of a split file, in order, whichever was given; else the file itself. Raises CheckpointError."""
    parts = [path.with_name(name) for name in part_names(path.name)]
    if missing := [part.name for part in parts if part != path and not part.is_file()]:
        raise CheckpointError(
            f"{path}: {len(missing)} of {len(parts)} parts are missing, first {missing[0]}; download them into one "
            "folder"
        )
    return parts
