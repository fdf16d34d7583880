"""The architectures we map: what a config says, and where each canonical weight is.

In: an open checkpoint. Out: its record, its ModelSpec and its weights. Adding an architecture is adding a record to
`ARCHITECTURES`. Knows nothing about graphs or compression.

Sources: models/{glm,glm4}/{configuration,modeling}_*.py of huggingface/transformers 4.57.6, and the conversion of the
remote-code layout to it (models/glm/convert_glm_weights_to_hf.py at eaed17f); other families name theirs.
"""

from __future__ import annotations

import json
import math

from edge.export.architectures.architecture import Architecture
from edge.export.architectures.chatglm import CHATGLM
from edge.export.architectures.gguf import GGUF_CHATGLM, GGUF_GLM4, GGUF_LLAMA, GGUF_QWEN2, GGUF_QWEN3
from edge.export.architectures.glm import GLM, GLM4
from edge.export.architectures.glm4v import GLM4V
from edge.export.architectures.llama import LLAMA, MISTRAL
from edge.export.architectures.qwen import QWEN2, QWEN3
from edge.export.checkpoint.checkpoint import Checkpoint, FileFormat
from edge.export.vision.source import LEAVE_OUT, TowerWeights, map_tower
from edge.export.weights.source import Weights, map_names
from edge.runtime.errors import EXPORT_AGAIN, BundleError, CheckpointError, ConfigError, shown
from edge.runtime.spec import ModelSpec
from edge.runtime.vision.spec import VisionSpec


def describe(checkpoint: Checkpoint) -> tuple[ModelSpec, Weights]:
    """Spec and weights of a checkpoint. Raises CheckpointError, ConfigError and TensorError."""
    record = architecture_of(checkpoint)
    spec = record.read_spec(checkpoint)
    _check(spec, checkpoint)
    sources = record.sources(spec, checkpoint.shapes)
    return spec, map_names(checkpoint, spec, sources, record.layout, record.ignored)


def has_tower(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint says that it sees pictures, in a way that we know."""
    return architecture_of(checkpoint).tower is not None and checkpoint.config.find("vision_config") is not None


def describe_tower(checkpoint: Checkpoint, text: ModelSpec) -> TowerWeights | None:
    """The weights of a checkpoint's picture tower, None if it has none; `text` is its text model.

    Raises ConfigError and TensorError.
    """
    tower = architecture_of(checkpoint).tower
    if tower is None or not has_tower(checkpoint):
        return None
    spec = tower.read_spec(checkpoint, text)
    _check_tower(spec, text, checkpoint)
    return map_tower(checkpoint, spec, tower.parts(spec), tower.prefix)


def _check_tower(spec: VisionSpec, text: ModelSpec, checkpoint: Checkpoint) -> None:
    """Raises ConfigError for numbers that no tower of ours can have."""
    origin = checkpoint.config.origin
    if spec.num_layers > len(checkpoint.shapes):
        raise ConfigError(
            f"{origin}: a picture tower of {spec.num_layers} layers, and the checkpoint has {len(checkpoint.shapes)} "
            f"tensors; download it again, {LEAVE_OUT}"
        )
    try:
        VisionSpec.from_json(json.loads(json.dumps(spec.to_json())), f"{origin}, the picture tower")
    except BundleError as error:
        raise ConfigError(str(error).replace(f"; {EXPORT_AGAIN}", f"; download it again, {LEAVE_OUT}")) from None
    ids = {"begin of image": spec.begin_id, "placeholder": spec.placeholder_id, "end of image": spec.end_id}
    if beyond := [f"{name} {i}" for name, i in ids.items() if i >= text.vocab_size]:
        raise ConfigError(
            f"{origin}: ids of tokens around pictures ({', '.join(beyond)}) are beyond the {text.vocab_size} rows of "
            f"the embedding; download it again, {LEAVE_OUT}"
        )


def architecture_of(checkpoint: Checkpoint) -> Architecture:
    """The record of a checkpoint's architecture. Raises CheckpointError where there is none."""
    key = (checkpoint.format, checkpoint.architecture)
    if key in ARCHITECTURES:
        return ARCHITECTURES[key]
    known = {form: [name for other, name in ARCHITECTURES if other == form] for form, _ in ARCHITECTURES}
    lists = "; ".join(f"in {form}: {', '.join(names)}" for form, names in known.items())
    advice = "others may go through optimum-intel, with --frontend optimum"
    if checkpoint.format == "gguf":
        advice = "export it from its safetensors if their architecture is supported"
    raise CheckpointError(
        f"{checkpoint.path}: architecture {shown(checkpoint.architecture)} in {checkpoint.format} is not supported; "
        f"supported are, {lists}; {advice}"
    )


def _check(spec: ModelSpec, checkpoint: Checkpoint) -> None:
    origin = checkpoint.config.origin
    if spec.num_layers > len(checkpoint.shapes):  # before names are made for them all
        raise ConfigError(
            f"{origin}: {spec.num_layers} layers, and the checkpoint has {len(checkpoint.shapes)} tensors; it is "
            "incomplete, or its config is another model's; download it again"
        )
    check_spec(spec, origin)


def check_spec(spec: ModelSpec, origin: str) -> None:
    """Raises ConfigError for numbers that no decoder of ours can have. origin: the name of the config."""
    if spec.num_heads % spec.num_kv_heads:
        raise ConfigError(f"{origin}: {spec.num_heads} heads cannot share {spec.num_kv_heads} KV heads evenly")
    if not can_rotate(spec.rotary_dim, spec.head_dim):
        raise ConfigError(
            f"{origin}: {spec.rotary_dim} of {spec.head_dim} head dims rotate, expected an even part of them"
        )
    if not 0 < spec.rope_theta < math.inf or not 0 < spec.rms_norm_eps < 1:
        raise ConfigError(
            f"{origin}: rope theta {spec.rope_theta} and norm eps {spec.rms_norm_eps}, expected a base above 0 and an "
            "eps between 0 and 1"
        )


def can_rotate(rotary_dim: int, head_dim: int) -> bool:
    """Whether `rotary_dim` leading dims of a head can rotate: in pairs, and no more than there are."""
    return 2 <= rotary_dim <= head_dim and rotary_dim % 2 == 0


ARCHITECTURES: dict[tuple[FileFormat, str], Architecture] = {
    ("safetensors", "chatglm"): CHATGLM,
    ("safetensors", "glm"): GLM,
    ("safetensors", "glm4"): GLM4,
    ("safetensors", "glm4v"): GLM4V,
    ("safetensors", "llama"): LLAMA,
    ("safetensors", "mistral"): MISTRAL,
    ("safetensors", "qwen2"): QWEN2,
    ("safetensors", "qwen3"): QWEN3,
    ("gguf", "chatglm"): GGUF_CHATGLM,
    ("gguf", "glm4"): GGUF_GLM4,
    ("gguf", "llama"): GGUF_LLAMA,
    ("gguf", "qwen2"): GGUF_QWEN2,
    ("gguf", "qwen3"): GGUF_QWEN3,
}
