"""Which model is meant, read from as little as there is: a config, a GGUF's header, or a bundle's manifest.

In: a path, or a hub id, whose config.json alone is fetched, and only because it was named. Out: a `Subject`. No weight
is read, and neither torch nor nncf is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import cast

from edge.export.architectures.registry import architecture_of, check_spec, describe
from edge.export.assignment import assign
from edge.export.checkpoint.checkpoint import Checkpoint, FileFormat, open_checkpoint
from edge.export.checkpoint.fields import Fields
from edge.export.checkpoint.sources import EXAMPLE, meant_hub_id
from edge.export.checkpoint.weight_files import exists
from edge.export.compress.recipes import Recipe
from edge.export.weights.rotation import is_rotatable, rotated_spec
from edge.runtime.bundle import MODEL_XML, TOKENIZER, OnnxKernels, is_bundle, open_bundle
from edge.runtime.errors import CheckpointError, ConfigError
from edge.runtime.files import shown_path
from edge.runtime.json_reader import read_json_object
from edge.runtime.spec import ModelSpec
from edge.runtime.tensor_records import TensorRecord

CONFIG = "config.json"
CONFIG_BYTES = 1 << 22
MOST_LAYERS = 1000  # eight times what any model has; a config that says more is another file, or a trap


@dataclass(frozen=True, slots=True)
class Subject:
    """A model as far as sizes go."""

    name: str  # as it was given
    spec: ModelSpec
    recipe: str = ""  # of a bundle
    tensors: Mapping[str, TensorRecord] | None = None  # of a bundle
    tokenizer_bytes: int | None = None
    engines: tuple[str, ...] = ("openvino", "onnx")  # whose graphs a bundle holds, or an export makes

    def planned(self, recipe: Recipe) -> Planned | None:
        """What a recipe would make of it; None where a model of this kind cannot have it."""
        spec = self.spec
        if recipe.rotate:
            if not is_rotatable(spec):
                return None
            spec = rotated_spec(spec)
        found: dict[
            str, TensorRecord
        ] = {}  # one block is as good as all: a recipe asks a weight's name and shape, and not its block
        for name, one in assign(recipe, replace(spec, num_layers=1)).items():
            first, _, part = name.partition("layers.0.")
            names = [f"layers.{layer}.{part}" for layer in range(spec.num_layers)] if part and not first else [name]
            found |= dict.fromkeys(names, one.record())
        return Planned(recipe.name, spec, found)

    @property
    def made(self) -> Planned | None:
        """What a bundle is; None for a checkpoint."""
        return None if self.tensors is None else Planned(self.recipe, self.spec, self.tensors)


@dataclass(frozen=True, slots=True)
class Planned:
    """A model with its weights' precisions, made or to be made."""

    recipe: str
    spec: ModelSpec
    tensors: Mapping[str, TensorRecord]

    @property
    def weight_bytes(self) -> int:
        return sum(record.nbytes for record in self.tensors.values())


class _Config:
    """A config without its weights, where an architecture's record expects a checkpoint. Knows no tensors."""

    format: FileFormat = "safetensors"
    shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({})

    def __init__(self, path: Path) -> None:
        self.path = path
        values = read_json_object(path, CheckpointError, "give a model's config.json", max_bytes=CONFIG_BYTES)
        self.config = Fields(values, path.name)

    @property
    def architecture(self) -> str:
        return self.config.read(str, "model_type")


def find_subject(given: str, path: Path | None = None) -> Subject:
    """The model that is meant. Raises BundleError, CheckpointError and ConfigError.

    path: where it is, for a name that stands for a folder.
    """
    path = path or Path(given)
    if is_bundle(path):
        return _of_bundle(path)
    if not exists(path):
        if (hub_id := meant_hub_id(given)) is None:
            raise CheckpointError(
                f"{shown_path(given)}: no such path; expected a bundle or its name, a checkpoint folder, a {CONFIG}, a "
                f".gguf file, or a hub id like {EXAMPLE}"
            )
        from edge.export.checkpoint.hub import config_of

        path = config_of(hub_id)
    if path.is_dir() and (path / CONFIG).is_file():
        path = path / CONFIG
    if path.suffix == ".json" and path.is_file():
        return _of_config(given, path)
    spec, _ = describe(open_checkpoint(path, download=False))  # of a GGUF, its header
    return Subject(given, spec)


def _of_bundle(path: Path) -> Subject:
    bundle = open_bundle(path)
    manifest = bundle.manifest
    graphs = {"openvino": bundle.file(MODEL_XML), "onnx": bundle.onnx_parts(OnnxKernels())}
    tokenizer = manifest.files.get(TOKENIZER)
    return Subject(
        path.name,
        manifest.spec,
        manifest.recipe,
        manifest.tensors,
        None if tokenizer is None else tokenizer.size,
        tuple(engine for engine, there in graphs.items() if there),
    )


def _of_config(given: str, path: Path) -> Subject:
    config = _Config(path)
    checkpoint = cast(Checkpoint, config)  # records of files with a config.json ask for nothing else
    spec = architecture_of(checkpoint).read_spec(checkpoint)
    if spec.num_layers > MOST_LAYERS:
        raise ConfigError(f"{path.name}: {spec.num_layers} layers, expected at most {MOST_LAYERS}")
    check_spec(spec, path.name)
    tokenizer = path.with_name("tokenizer.json")
    return Subject(given, spec, tokenizer_bytes=tokenizer.stat().st_size if tokenizer.is_file() else None)
