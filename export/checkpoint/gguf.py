"""A GGUF file: weights, configuration, tokenizer and chat template in one.

In: the file. Out: a `Checkpoint`. Tensors stay in the mapped file and are dequantized one at a time by the `gguf`
package. A tokenizer.json beside the file wins over the one inside.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from edge.export import tokenizer
from edge.export.checkpoint import Format
from edge.export.checkpoint.fields import Fields
from edge.export.tensors import FloatArray
from edge.runtime.errors import CheckpointError, TensorError, TokenizerError

# Ids that end an answer, as llama.cpp reads them (src/llama-vocab.cpp).
_STOP_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


class GGUFCheckpoint:
    """Raises CheckpointError and TensorError."""

    format: Format = "gguf"

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise CheckpointError(f"{path}: does not begin with 'GGUF', so it is no GGUF file; download it again")
        try:
            reader: Any = gguf.GGUFReader(path)
        except Exception as error:  # the reader raises whatever numpy does on a damaged file
            raise CheckpointError(f"{path}: truncated or damaged GGUF ({error}); download it again") from error
        self._metadata: Any = reader.fields
        scalars = {key: field.contents() for key, field in self._metadata.items() if _is_scalar(field)}
        self.config = Fields(scalars, path.name)
        self._tensors = {str(tensor.name): tensor for tensor in reader.tensors}
        # GGUF writes the fastest dimension first.
        self.shapes = {name: tuple(int(n) for n in reversed(t.shape)) for name, t in self._tensors.items()}

    @property
    def architecture(self) -> str:
        return self.config.read(str, "general.architecture")

    def read(self, name: str) -> FloatArray:
        tensor = self._tensors[name]
        try:
            values = gguf.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise TensorError(
                f"{self.path}: tensor {name} is {tensor.tensor_type.name}, which gguf cannot read"
            ) from error
        return np.array(values, np.float32).reshape(self.shapes[name])

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        data: npt.NDArray[np.uint8] = self._tensors[name].data.reshape(-1).view(np.uint8)
        return data

    def prefetch(self, names: Iterable[str]) -> None:
        """Nothing: the gguf package maps the file."""

    def release(self) -> None:
        """Nothing: the gguf package maps the file."""

    def weight_files(self) -> list[Path]:
        return [self.path]

    def small_files(self) -> list[Path]:
        beside = self.path.with_name("tokenizer.json")
        return [beside] if beside.is_file() else []

    def write_tokenizer(self, path: Path) -> None:
        beside = self.path.with_name("tokenizer.json")
        if beside.is_file():
            shutil.copyfile(beside, path)
            return
        built = tokenizer.from_gguf(
            self.config.read(str, "tokenizer.ggml.model"),
            self.config.read(str, "tokenizer.ggml.pre"),
            *(self._list(f"tokenizer.ggml.{key}") for key in ("tokens", "token_type", "merges")),
        )
        built.save(str(path))

    def chat_template(self) -> str | None:
        template = self.config.find("tokenizer.chat_template")
        return template if isinstance(template, str) else None

    def generation_config(self) -> Fields:
        return Fields({"eos_token_id": list(self._stop_ids)}, self.path.name)

    @cached_property
    def _stop_ids(self) -> tuple[int, ...]:
        found = [i for key in _STOP_KEYS for i in self.config.ids(f"tokenizer.ggml.{key}")]
        return tuple(dict.fromkeys(found))

    def _list(self, key: str) -> list[Any]:
        if key not in self._metadata:
            raise TokenizerError(
                f"{self.path}: {key} is missing; put the model's tokenizer.json into the same folder as the GGUF file"
            )
        values: list[Any] = self._metadata[key].contents()
        return values


def _is_scalar(field: Any) -> bool:
    return bool(field.types[0] != gguf.GGUFValueType.ARRAY)
