"""What published checkpoints are known to say wrongly; export warns and continues."""

from __future__ import annotations

from edge.export.architectures.eva import PREFIX
from edge.export.architectures.registry import has_tower
from edge.export.checkpoint.checkpoint import Checkpoint
from edge.runtime.spec import ModelSpec

GLM4_VOCABULARY = 151_552  # rows of GLM-4's embedding; GLM-Edge has another vocabulary


def doubts(checkpoint: Checkpoint, spec: ModelSpec) -> tuple[str, ...]:
    """What a checkpoint leaves out, or says that is known to be wrong in others; export warns and continues."""
    found = []
    tower = sum(name.startswith(PREFIX) for name in checkpoint.shapes)
    if tower and not has_tower(checkpoint):
        found.append(
            f"the picture tower ({tower} tensors) is left out, because config.json has no vision_config; the bundle "
            "answers to text alone"
        )
    found += _lost_rope_base(checkpoint, spec)
    found += _strange_rotary_dim(spec)
    return tuple(found)


def _lost_rope_base(checkpoint: Checkpoint, spec: ModelSpec) -> list[str]:
    """The conversion of glm-4-9b-chat to GlmForCausalLM looked up rope_ratio in a dict with getattr and so lost it
    (huggingface/transformers, models/glm/convert_glm_weights_to_hf.py at eaed17f); the original multiplies by it.
    llama.cpp's conversion reads rope_ratio and seq_length, which GlmForCausalLM's config does not have, and writes
    10000 and the hidden size in their place (ggml-org/llama.cpp, conversion/chatglm.py).
    """
    original = {131072: ("glm-4-9b-chat", 5_000_000), 1048576: ("glm-4-9b-chat-1m", 100_000_000)}
    if spec.vocab_size != GLM4_VOCABULARY or spec.rope_theta != 10_000:
        return []
    if spec.architecture == "glm" and spec.max_position_embeddings in original:
        name, theta = original[spec.max_position_embeddings]
        return [
            f"rope_theta is 10000 for a context of {spec.max_position_embeddings}, as in the published conversion of "
            f"{name}, whose original has {theta}; if this is that model, export it with --rope-theta {theta}"
        ]
    if checkpoint.format == "gguf" and spec.max_position_embeddings == spec.hidden_size:
        return [
            f"rope base 10000 and a context of {spec.hidden_size}, the hidden size, are what llama.cpp writes where a "
            "config does not say; if this is glm-4-9b-chat, export it with --rope-theta 5000000 (1M: 100000000)"
        ]
    return []


def _strange_rotary_dim(spec: ModelSpec) -> list[str]:
    """llama.cpp's conversion of GLM-4-0414 once wrote the whole head as rope.dimension_count, of which half rotates
    (ggml-org/llama.cpp, pull request 12957).
    """
    half, whole = spec.head_dim // 2, spec.head_dim
    known: tuple[int, ...]
    if spec.architecture in ("glm4", "glm4v"):
        known, models = (half,), "GLM-4-0414"
    elif spec.architecture not in ("glm", "chatglm"):
        known, models = (whole,), spec.architecture
    elif spec.vocab_size == GLM4_VOCABULARY:
        known, models = (half,), "GLM-4"
    else:  # GLM-Edge rotates the whole head
        known, models = (half, whole), "GLM-4 and GLM-Edge"
    if spec.rotary_dim in known:
        return []
    return [
        f"{spec.rotary_dim} of {whole} head dims rotate, where every published {models} model rotates "
        f"{' or '.join(map(str, known))}; if this is one of them, export it with --rotary-dim {known[0]}"
    ]
