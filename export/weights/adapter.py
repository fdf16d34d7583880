"""A LoRA adapter of PEFT's format, as changes to canonical weights.

In: a folder with adapter_config.json and adapter_model.safetensors, and the ModelSpec of the model it is merged into.
Out: an `Adapter`, which gives scaling * B @ A for one canonical weight at a time, in the row order of the model that it
was trained on (`Layout.trained`). Names, shapes and settings are checked when it is opened, values
when they are read. Knows nothing about checkpoints and their files, and cannot know whether it was trained on this
model: shapes are compared, base_model_name_or_path is not, because paths differ between machines.

Names come in two forms, that of transformers and, for GLM-4, that of its remote code:

    model.layers.N.self_attn.{q,k,v,o}_proj                  transformer.encoder.layers.N.self_attention.query_key_value
    model.layers.N.mlp.{gate_up,gate,up,down}_proj           transformer.encoder.layers.N.self_attention.dense
    lm_head                                                  transformer.encoder.layers.N.mlp.dense_{h_to_4h,4h_to_h}
                                                             transformer.output_layer

Source: peft 0.21.2, tuners/lora/{config,layer,model}.py for what a LoRA computes and which variants there are,
utils/other.py (get_pattern_key) for rank_pattern and alpha_pattern, utils/save_and_load.py for the names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from edge.export.checkpoint.fields import Fields
from edge.export.checkpoint.safetensors import SafetensorsFiles
from edge.export.tensors import Float32Array, to_float32
from edge.export.weights.module_pattern import ModulePattern
from edge.export.weights.names import HEAD, Layout
from edge.runtime.errors import CheckpointError, ConfigError, TensorError, plain, shown
from edge.runtime.files import is_file, shown_path
from edge.runtime.json_reader import read_json_object
from edge.runtime.spec import ModelSpec

_MAX_CONFIG_BYTES = 10_000_000
CONFIG, TENSORS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"

# Settings with which a module computes something other than base + scaling * B @ A, and what they mean.
_OTHER_THAN_LORA = {
    "use_dora": "DoRA rescales the merged weight",
    "fan_in_fan_out": "its weights are stored transposed",
    "modules_to_save": "it replaces whole modules",
    "trainable_token_indices": "it replaces rows of the embedding",
    "target_parameters": "it changes parameters that are not linear layers",
    "layer_replication": "it stacks layers of its model repeatedly",
    "lora_bias": "it adds a bias",
    "use_qalora": "QALoRA pools its inputs",
    "use_bdlora": "BD-LoRA is stored in blocks",
    "alora_invocation_tokens": "aLoRA acts on a part of the tokens only",
    "arrow_config": "Arrow routes between several adapters",
    "kasa_config": "KaSA truncates the base weight",
    "monteclora_config": "MonteCLoRA samples its weights",
    "velora_config": "VeLoRA stores projections beside the LoRA",
}
# Initialisations that take their start out of the base weight, which is then no longer the checkpoint's.
_BASE_CHANGING = re.compile(r"pissa(_niter_\d+)?|olora|corda|loftq|lora_ga")

_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<factor>[AB])(\.default)?\.weight")
_LAYER = re.compile(r"\.layers\.([0-9]{1,9})\.")
_NAME = re.compile(r"[\w.-]{1,300}")  # a pattern that is a name; a dot in it stands for any character, as in PEFT
_MAX_NAMES, _MAX_PATTERNS = 5000, 100  # of a rank_pattern
_LONGEST_NAME = 199  # characters of a tensor's name in a message
_ADVICE = "merge it into its model with PEFT (merge_and_unload) and export the result"


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a module's weight is: rows of a canonical weight."""

    weight: str
    shape: tuple[int, int]  # (N, K) of the whole canonical weight
    first_row: int
    rows: int


@dataclass(frozen=True, slots=True)
class _Change:
    """One adapted module, by the names of its tensors."""

    module: str
    place: _Place
    a: str  # (rank, K)
    b: str  # (rows, rank)
    scaling: float


class Adapter:
    """An opened adapter that fits a model. Raises CheckpointError, ConfigError and TensorError.

    `files` decide what it changes, in a stable order; `touched` are the canonical weights it changes, in model order.
    """

    def __init__(self, path: Path, spec: ModelSpec, layout: Layout) -> None:
        self.path = path
        config = _read_config(path)
        _check_config(config)
        ranks, alphas = _Patterns(config, "rank_pattern"), _Patterns(config, "alpha_pattern")
        if not is_file(path / TENSORS):
            if is_file(path / PICKLE):
                raise CheckpointError(
                    f"{path}: the adapter is pickled ({PICKLE}), and unpickling can run code; expected {TENSORS}, "
                    "save it once with safe_serialization=True where you trust the source"
                )
            raise CheckpointError(f"{path}: {CONFIG} but no {TENSORS}; copy it there from the adapter's repository")
        self.files = [path / CONFIG, path / TENSORS]
        self._tensors = SafetensorsFiles([path / TENSORS])
        self._changes: dict[str, list[_Change]] = {}
        places = _places(spec, layout)
        for module, (a, b) in self._factors(places, spec).items():
            place, rank = places[module], _rank(config, ranks, module)
            change = _Change(module, place, a, b, _scaling(config, alphas, module, rank))
            self._check_shapes(change, rank)
            self._changes.setdefault(place.weight, []).append(change)
        self._check_overlaps()
        self.touched = tuple(dict.fromkeys(p.weight for p in places.values() if p.weight in self._changes))

    def delta(self, name: str) -> Float32Array | None:
        """What to add to a canonical weight, as a new (N, K) array; None where nothing changes.

        Raises TensorError when the adapter's values are not finite.
        """
        changes = self._changes.get(name)
        if changes is None:
            return None
        delta = np.zeros(changes[0].place.shape, np.float32)
        for change in changes:
            place, a, b = change.place, self._read(change.a), self._read(change.b)
            largest = len(a) * max(abs(change.scaling), 1.0) * float(np.abs(a).max()) * float(np.abs(b).max())
            if largest > float(np.finfo(np.float32).max):
                raise TensorError(
                    f"{self.path}: scaling * B @ A of {change.module} may reach {largest:.1e}, expected numbers within "
                    "float32; the adapter is damaged, download it again"
                )
            rows = slice(place.first_row, place.first_row + place.rows)
            np.matmul(b * np.float32(change.scaling), a, out=delta[rows])
        return delta

    def _read(self, tensor: str) -> Float32Array:
        values = to_float32(self._tensors.read(tensor))
        if not np.isfinite(values).all():
            raise TensorError(f"{self.path}: {tensor} holds NaN or infinity; the adapter is damaged, download it again")
        return values

    def _factors(self, places: Mapping[str, _Place], spec: ModelSpec) -> dict[str, tuple[str, str]]:
        """Names of A and B of every adapted module. Every tensor of the file is accounted for."""
        found: dict[str, dict[str, str]] = {}
        strangers: list[str] = []
        for tensor in sorted(self._tensors.shapes):
            match = _TENSOR.fullmatch(tensor)
            if match is None or match["module"] not in places:
                strangers.append(tensor)
                continue
            factors = found.setdefault(match["module"], {})
            if match["factor"] in factors:
                raise TensorError(
                    f"{self.path}: {factors[match['factor']]} and {tensor} are the same tensor of one adapter; "
                    "expected one of them, save the adapter again"
                )
            factors[match["factor"]] = tensor
        # PEFT stores a copy of the frozen head with the LoRA of one; like every base weight it is not compared.
        copies = {f"base_model.model.{module}.base_layer.weight" for module in found if places[module].weight == HEAD}
        if strangers := [tensor for tensor in strangers if tensor not in copies]:
            raise TensorError(f"{self.path}: {_why_strange(strangers, spec)}")
        if not found:
            raise TensorError(f"{self.path}: {TENSORS} holds no lora_A and lora_B; save the adapter again")
        for module, factors in found.items():
            if len(factors) < 2:
                here, missing = ("A", "B") if "A" in factors else ("B", "A")
                raise TensorError(
                    f"{self.path}: {module} has lora_{here} and no lora_{missing}; the adapter is incomplete, "
                    "download it again"
                )
        return {module: (factors["A"], factors["B"]) for module, factors in found.items()}

    def _check_shapes(self, change: _Change, rank: int) -> None:
        columns = change.place.shape[1]
        for tensor, expected in ((change.a, (rank, columns)), (change.b, (change.place.rows, rank))):
            if (shape := self._tensors.shapes[tensor]) != expected:
                raise TensorError(
                    f"{self.path}: {tensor} is {list(shape)}, expected {list(expected)} from rank {rank} in {CONFIG} "
                    "and the model's sizes; this is an adapter for another model, or its config is not its own"
                )

    def _check_overlaps(self) -> None:
        """No row may be changed by two modules, as by q_proj and query_key_value."""
        for weight, changes in self._changes.items():
            changes.sort(key=lambda change: change.place.first_row)
            for one, other in pairwise(changes):
                if one.place.first_row + one.place.rows > other.place.first_row:
                    raise TensorError(
                        f"{self.path}: {one.module} and {other.module} both change {weight}, expected one of them; "
                        "adapters of two layouts were mixed, save the adapter again from one model"
                    )


def _places(spec: ModelSpec, layout: Layout) -> dict[str, _Place]:
    """Every module that can be adapted, by its name in transformers and in remote code."""
    h, f, q, kv = spec.hidden_size, spec.intermediate_size, spec.q_size, spec.kv_size
    places: dict[str, _Place] = {}
    for layer in range(spec.num_layers):
        ours, transformers, remote = f"layers.{layer}", f"model.layers.{layer}", f"transformer.encoder.layers.{layer}"
        qkv, o = (f"{ours}.attn.qkv.weight", (q + 2 * kv, h)), (f"{ours}.attn.o.weight", (h, q))
        gate_up, down = (f"{ours}.mlp.gate_up.weight", (2 * f, h)), (f"{ours}.mlp.down.weight", (h, f))
        places |= {
            f"{transformers}.self_attn.q_proj": _Place(*qkv, 0, q),
            f"{transformers}.self_attn.k_proj": _Place(*qkv, q, kv),
            f"{transformers}.self_attn.v_proj": _Place(*qkv, q + kv, kv),
            f"{transformers}.self_attn.o_proj": _Place(*o, 0, h),
            f"{transformers}.mlp.gate_up_proj": _Place(*gate_up, 0, 2 * f),
            f"{transformers}.mlp.gate_proj": _Place(*gate_up, 0, f),
            f"{transformers}.mlp.up_proj": _Place(*gate_up, f, f),
            f"{transformers}.mlp.down_proj": _Place(*down, 0, h),
        }
        if layout.remote_code:
            places |= {
                f"{remote}.self_attention.query_key_value": _Place(*qkv, 0, q + 2 * kv),
                f"{remote}.self_attention.dense": _Place(*o, 0, h),
                f"{remote}.mlp.dense_h_to_4h": _Place(*gate_up, 0, 2 * f),
                f"{remote}.mlp.dense_4h_to_h": _Place(*down, 0, h),
            }
    if not spec.tied_embeddings:
        head = _Place(HEAD, (spec.vocab_size, h), 0, spec.vocab_size)
        places |= {"lm_head": head, **({"transformer.output_layer": head} if layout.remote_code else {})}
    return places


def _read_config(path: Path) -> Fields:
    file = path / CONFIG
    if not is_file(file):
        raise CheckpointError(f"{shown_path(path)}: not an adapter; expected a folder with {CONFIG} and {TENSORS}")
    values = read_json_object(file, ConfigError, "download it again", max_bytes=_MAX_CONFIG_BYTES)
    return Fields(values, f"{path.name}/{CONFIG}")


def _check_config(config: Fields) -> None:
    """Raises ConfigError for everything that is not a plain LoRA."""
    kind = config.read(str, "peft_type")
    if kind != "LORA":
        raise ConfigError(f"{config.origin}: peft_type is {shown(kind)}, expected 'LORA'; {_ADVICE}")
    bias = config.read(str, "bias", default="none")
    if bias != "none":
        raise ConfigError(f"{config.origin}: bias is {shown(bias)}, expected 'none': it changes biases too; {_ADVICE}")
    for key, meaning in _OTHER_THAN_LORA.items():
        if value := config.find(key):
            raise ConfigError(
                f"{config.origin}: {key} is {shown(value)}, expected a plain LoRA, and here {meaning}; {_ADVICE}"
            )
    start = config.find("init_lora_weights")
    if isinstance(start, str) and _BASE_CHANGING.fullmatch(start):
        raise ConfigError(
            f"{config.origin}: init_lora_weights is {shown(start)}, which changes the base weights, expected a LoRA to "
            "the checkpoint's own; save it with path_initial_model_for_weight_conversion, or merge it with PEFT"
        )


def _rank(config: Fields, patterns: _Patterns, module: str) -> int:
    key = patterns.find(module)
    return config.positive("r") if key is None else patterns.fields.positive(key)


def _scaling(config: Fields, patterns: _Patterns, module: str, rank: int) -> float:
    key = patterns.find(module)
    alpha = config.read(float, "lora_alpha") if key is None else patterns.fields.read(float, key)
    if not math.isfinite(alpha):
        raise ConfigError(f"{config.origin}: the alpha of {module} is {alpha}, expected a finite number; correct it")
    return alpha / (math.sqrt(rank) if config.read(bool, "use_rslora", default=False) else rank)


class _Patterns:
    """Values by pattern of module names: rank_pattern or alpha_pattern. Raises ConfigError."""

    def __init__(self, config: Fields, key: str) -> None:
        values = config.find(key) or {}
        origin = f"{config.origin}: {key}"
        if not isinstance(values, dict):
            raise ConfigError(f"{origin} is {shown(values)}, expected an object of module names; correct it")
        self.fields = Fields(values, origin)
        self._matches: list[tuple[str, Callable[[str], object]]] = []
        names = sum(_NAME.fullmatch(pattern) is not None for pattern in values)
        if names > _MAX_NAMES or len(values) - names > _MAX_PATTERNS:
            raise ConfigError(
                f"{origin} has {names:,} names and {len(values) - names:,} patterns of modules, expected at most "
                f"{_MAX_NAMES:,} and {_MAX_PATTERNS}; write one pattern for modules with equal values"
            )
        for pattern in values:
            if _NAME.fullmatch(pattern):
                self._matches.append((pattern, re.compile(rf"(.*\.)?({pattern})$").match))
                continue
            try:
                self._matches.append((pattern, ModulePattern(pattern).matches))
            except ValueError as error:
                raise ConfigError(
                    f"{origin}: {shown(pattern)} is not a regular expression that can be used: {error}; "
                    "correct it, or write names"
                ) from error

    def find(self, module: str) -> str | None:
        """The first pattern that matches a module's name to its end, from its beginning or from after a dot."""
        return next((pattern for pattern, matches in self._matches if matches(module)), None)


def _why_strange(tensors: list[str], spec: ModelSpec) -> str:
    """What is wrong with tensors that have no place in the model."""
    tensors = [plain(tensor, _LONGEST_NAME) for tensor in tensors]
    named = ", ".join(tensors[:3]) + (", ..." if len(tensors) > 3 else "")
    for tensor in tensors:
        layer = _LAYER.search(tensor)
        if layer and int(layer[1]) >= spec.num_layers:
            last = spec.num_layers - 1
            return f"{tensor} is of layer {layer[1]}, the model has 0 to {last}; this is an adapter for another model"
        if "lora_magnitude_vector" in tensor:
            return f"{tensor} is of DoRA, expected a plain LoRA; {_ADVICE}"
        if "lora_embedding_" in tensor or ".embed_tokens." in tensor or ".word_embeddings." in tensor:
            return f"{tensor} changes the embedding, expected linear layers only; {_ADVICE}"
        if spec.tied_embeddings and re.search(r"\.(lm_head|output_layer)\.", tensor):
            return f"{tensor} changes an output layer that this model shares with its embedding; {_ADVICE}"
    count = f"tensor {named} maps" if len(tensors) == 1 else f"{len(tensors)} tensors ({named}) map"
    return (
        f"{count} to nothing in this model, expected lora_A and lora_B of its linear layers; "
        "this is an adapter for another model"
    )
