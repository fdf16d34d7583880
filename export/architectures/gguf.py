"""GGUF files: their metadata, and what llama.cpp calls tensors, which is the same for every architecture.

Sources: gguf-py/gguf/constants.py and conversion/{chatglm,glm,llama,qwen}.py of ggml-org/llama.cpp.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from edge.export.architectures.architecture import GLM_LAYOUT, HALVES, Architecture, weight_sources
from edge.export.checkpoint.checkpoint import Checkpoint
from edge.export.weights.names import Layout, Sources
from edge.runtime.errors import ConfigError
from edge.runtime.spec import ModelSpec

SCALES = "rope_freqs.weight"  # what each rotary frequency is divided by, in files of Llama 3.1 and later


def _gguf_spec(checkpoint: Checkpoint) -> ModelSpec:
    config, name = checkpoint.config, checkpoint.architecture
    config.require(f"{name}.rope.scaling.type", "none")
    config.require(f"{name}.rope.dimension_sections")  # GLM-4.1V, whose q and k rows are in another order
    config.require(f"{name}.expert_count", 0)
    config.require(f"{name}.nextn_predict_layers", 0)
    if SCALES in checkpoint.shapes:
        raise ConfigError(
            f"{config.origin}: {SCALES} scales positions, as Llama 3.1 does, expected none: it is not implemented; "
            "export from its safetensors with --frontend optimum"
        )
    num_heads = config.positive(f"{name}.attention.head_count")
    hidden_size = config.positive(f"{name}.embedding_length")
    head_dim = config.positive(f"{name}.attention.key_length", default=hidden_size // num_heads)
    rotary_dim = head_dim // 2 if name in ("chatglm", "glm4") else head_dim
    return ModelSpec(
        architecture=name,
        num_layers=config.positive(f"{name}.block_count"),
        hidden_size=hidden_size,
        intermediate_size=config.positive(f"{name}.feed_forward_length"),
        num_heads=num_heads,
        num_kv_heads=config.positive(f"{name}.attention.head_count_kv", default=num_heads),
        head_dim=head_dim,
        rotary_dim=config.positive(f"{name}.rope.dimension_count", default=rotary_dim),
        rope_theta=config.read(float, f"{name}.rope.freq_base", default=10000.0),
        rms_norm_eps=config.read(float, f"{name}.attention.layer_norm_rms_epsilon"),
        vocab_size=_rows(checkpoint, "token_embd.weight") or config.positive(f"{name}.vocab_size"),
        max_position_embeddings=config.positive(f"{name}.context_length"),
        qkv_bias=bool({"blk.0.attn_q.bias", "blk.0.attn_qkv.bias"} & checkpoint.shapes.keys()),
        tied_embeddings="output.weight" not in checkpoint.shapes,
        output_norms=name == "glm4",
        qk_norms="blk.0.attn_q_norm.weight" in checkpoint.shapes,
    )


def _rows(checkpoint: Checkpoint, name: str) -> int:
    """Rows of a matrix; 0 where there is no such tensor or it has no dims."""
    shape = checkpoint.shapes.get(name, ())
    return shape[0] if shape else 0


def _gguf_sources(spec: ModelSpec, names: Collection[str]) -> Sources:
    """q, k and v, and gate and up, are joined or apart, as in the model that the file was made from."""
    together = "blk.0.attn_qkv.weight" in names
    qkv = ("attn_qkv",) if together else ("attn_q", "attn_k", "attn_v")
    gate_up = ("ffn_gate.weight", "ffn_up.weight") if "blk.0.ffn_gate.weight" in names else ("ffn_up.weight",)
    block = {
        "input_norm.weight": ("attn_norm.weight",),
        "attn.qkv.weight": tuple(f"{x}.weight" for x in qkv),
        "attn.qkv.bias": tuple(f"{x}.bias" for x in qkv),
        "attn.q_norm.weight": ("attn_q_norm.weight",),
        "attn.k_norm.weight": ("attn_k_norm.weight",),
        "attn.o.weight": ("attn_output.weight",),
        "attn.out_norm.weight": ("post_attention_norm.weight",),
        "post_norm.weight": ("ffn_norm.weight",),
        "mlp.gate_up.weight": gate_up,
        "mlp.down.weight": ("ffn_down.weight",),
        "mlp.out_norm.weight": ("post_ffw_norm.weight",),
    }
    outside = {
        "embed.weight": "token_embd.weight",
        "norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    return weight_sources(spec, outside, "blk.{}.", block)


GGUF_CHATGLM = Architecture(_gguf_spec, _gguf_sources, GLM_LAYOUT, "glm", "GlmForCausalLM")
GGUF_GLM4 = replace(GGUF_CHATGLM, model_type="glm4", model_class="Glm4ForCausalLM")
# llama.cpp's converter reorders q and k of llama from halves to pairs (conversion/llama.py, `permute`).
GGUF_LLAMA = replace(
    GGUF_CHATGLM, layout=Layout(stored="pairs", trained="halves"), model_type="llama", model_class="LlamaForCausalLM"
)
GGUF_QWEN2 = replace(GGUF_CHATGLM, layout=HALVES, model_type="qwen2", model_class="Qwen2ForCausalLM")
GGUF_QWEN3 = replace(GGUF_QWEN2, model_type="qwen3", model_class="Qwen3ForCausalLM")
