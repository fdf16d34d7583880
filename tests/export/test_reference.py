"""Our graph computes what transformers computes, however the tokens arrive."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import PreTrainedModel

from edge.export.architectures.registry import describe
from edge.export.checkpoint.checkpoint import open_checkpoint
from edge.export.pipeline import export
from edge.runtime.kv.pool import CacheSequence
from edge.runtime.llm import LLM
from tests.conftest import EXACT
from tests.tiny import TINIES, Tiny, make, reference_logits, to_remote_code, write_tokenizer

# Our float32 logits may be this many times as far from float64 as transformers' own float32 logits are: the same
# roundings in another order. Two independent orders differ by sqrt(2) typically; the largest of many thousand logits of
# one can meet the smallest of the other.
TIMES_FLOAT32 = 8

IDS = np.random.default_rng(3).integers(0, 256, 70).tolist()


def logits_in_chunks(llm: LLM, ids: list[int], sizes: list[int]) -> np.ndarray:
    """Logits of every token, run in chunks of these sizes: (T, vocab)."""
    sequence, rows = CacheSequence(llm.engine.pool), []
    start = 0
    for size in sizes:
        part = np.array(ids[start : start + size], np.int64)
        rows.append(llm.engine.forward(part, sequence, np.arange(part.size)).copy())
        start += size
    assert start == len(ids)
    sequence.trim(0)
    return np.concatenate(rows)


def largest_errors(bundle: Path, expected: np.ndarray, *chunkings: list[int]) -> list[float]:
    """For each list of sizes, of the logits of IDS on either engine, run in chunks of these sizes."""
    llms = [LLM(bundle, exact) for exact in EXACT.values()]
    return [
        max(float(np.abs(logits_in_chunks(llm, IDS, sizes) - expected).max()) for llm in llms) for sizes in chunkings
    ]


@pytest.mark.parametrize("tiny", TINIES, ids=lambda tiny: tiny.name)
def test_float_export_equals_transformers(tiny: Tiny, tmp_path: Path) -> None:
    model = make(tiny, tmp_path / "checkpoint")
    export(tmp_path / "checkpoint", tmp_path / "bundle", "fp32")
    expected, float32_error = reference_logits(model, IDS)
    assert float32_error > 0, "the reference must have rounded somewhere"
    bound = TIMES_FLOAT32 * float32_error

    chunkings = {"one shot": [70], "chunked": [33, 1, 31, 5], "token by token": [1] * 70}
    errors = largest_errors(tmp_path / "bundle", expected, *chunkings.values())
    for name, error in zip(chunkings, errors, strict=True):
        assert error <= bound, f"{name}: off by {error:.2e}, float32 itself by {float32_error:.2e}"


@pytest.mark.parametrize("theta", [10_000.0, 5_000_000.0], ids=["base, no rope_ratio", "chat, rope_ratio 500"])
def test_remote_code_layout_equals_transformers(theta: float, tmp_path: Path) -> None:
    model = make(Tiny("chatglm", rope_theta=theta), tmp_path / "hf")
    to_remote_code(tmp_path / "hf", tmp_path / "checkpoint")
    export(tmp_path / "checkpoint", tmp_path / "bundle", "fp32")
    expected, float32_error = reference_logits(model, IDS)
    (error,) = largest_errors(tmp_path / "bundle", expected, [64, 6])
    assert error <= TIMES_FLOAT32 * float32_error


def test_text_part_of_a_checkpoint_with_an_image_tower(tmp_path: Path) -> None:
    model = make(Tiny("4v"), tmp_path / "hf")
    to_remote_code(tmp_path / "hf", tmp_path / "checkpoint", vision=True)
    manifest = export(tmp_path / "checkpoint", tmp_path / "bundle", "fp32")
    why = "because config.json has no vision_config"
    assert manifest.warnings == (f"the picture tower (2 tensors) is left out, {why}; the bundle answers to text alone",)
    expected, float32_error = reference_logits(model, IDS)
    (error,) = largest_errors(tmp_path / "bundle", expected, [70])
    assert error <= TIMES_FLOAT32 * float32_error


WRONG = {
    "k before q": lambda w, s: w.update(qkv=np.roll(w["qkv"], s.kv_size, axis=0)),
    "k and v swapped": lambda w, s: w.update(
        qkv=np.concatenate([w["qkv"][: s.q_size], w["qkv"][s.q_size + s.kv_size :], w["qkv"][s.q_size : -s.kv_size]])
    ),
    "gate and up swapped": lambda w, s: w.update(gate_up=np.roll(w["gate_up"], s.intermediate_size, axis=0)),
    "rope base": lambda w, s: w.update(theta=5e6),
}


@pytest.mark.parametrize("mistake", WRONG, ids=str)
def test_a_wrong_reading_would_be_seen(mistake: str, tmp_path: Path) -> None:
    """The comparison above is sharp: each classic mistake moves the logits a thousand times further than rounding."""
    model = make(Tiny("chatglm"), tmp_path / "hf")
    to_remote_code(tmp_path / "hf", tmp_path / "checkpoint")
    spec = describe(open_checkpoint(tmp_path / "checkpoint"))[0]
    path = tmp_path / "checkpoint" / "model.safetensors"
    tensors = load_file(path)
    layer = "transformer.encoder.layers.1."
    names = {"qkv": f"{layer}self_attention.query_key_value.weight", "gate_up": f"{layer}mlp.dense_h_to_4h.weight"}
    chosen = {key: tensors[name] for key, name in names.items()}
    WRONG[mistake](chosen, spec)
    theta = float(chosen.pop("theta")) if "theta" in chosen else None
    save_file(tensors | {names[key]: np.ascontiguousarray(value) for key, value in chosen.items()}, path)
    export(tmp_path / "checkpoint", tmp_path / "bundle", "fp32", rope_theta=theta)
    expected, float32_error = reference_logits(model, IDS)
    (error,) = largest_errors(tmp_path / "bundle", expected, [70])
    assert error > 1000 * TIMES_FLOAT32 * float32_error


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_checkpoints_are_read_exactly(dtype: str, tmp_path: Path) -> None:
    model = make(Tiny("half", dtype=dtype), tmp_path / "checkpoint")
    export(tmp_path / "checkpoint", tmp_path / "bundle", "fp32")
    expected, float32_error = reference_logits(model, IDS)
    (error,) = largest_errors(tmp_path / "bundle", expected, [70])
    assert error <= TIMES_FLOAT32 * float32_error


def test_fp16_recipe_rounds_weights_and_nothing_else(tmp_path: Path) -> None:
    """A checkpoint that is float16 already loses nothing under `fp16`."""
    model = make(Tiny("half", dtype="float16"), tmp_path / "checkpoint")
    manifest = export(tmp_path / "checkpoint", tmp_path / "bundle", "fp16")
    expected, float32_error = reference_logits(model, IDS)
    (error,) = largest_errors(tmp_path / "bundle", expected, [70])
    assert error <= TIMES_FLOAT32 * float32_error
    assert manifest.bits_per_weight == 16


def test_sharded_checkpoint_equals_one_file(tiny_checkpoint: Path, tmp_path: Path) -> None:
    from transformers import GlmForCausalLM

    model = GlmForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    one, many = (describe(open_checkpoint(path))[1] for path in (tiny_checkpoint, tmp_path / "shards"))
    for name in one.sources:
        np.testing.assert_array_equal(one.read(name), many.read(name))


def test_gguf_llama_equals_transformers(tmp_path: Path) -> None:
    """A llama GGUF, quantized as its converter would: q and k interleaved, gate and up apart."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, rope_theta=1e5, max_position_embeddings=128, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    path = tmp_path / "llama.gguf"
    write_llama_gguf(model, path)
    export(path, tmp_path / "bundle", "fp32")
    expected, float32_error = reference_logits(model, IDS)
    (error,) = largest_errors(tmp_path / "bundle", expected, [64, 6])
    assert error <= TIMES_FLOAT32 * float32_error


@pytest.mark.parametrize("split", [False, True], ids=["one file", "two parts"])
@pytest.mark.parametrize("fused", [True, False], ids=["attn_qkv", "attn_q, attn_k, attn_v"])
@pytest.mark.parametrize("architecture", ["chatglm", "glm4"])
def test_gguf_glm_equals_transformers(architecture: str, fused: bool, split: bool, tmp_path: Path) -> None:
    """chatglm as made from the remote code (fused) or GlmForCausalLM (apart), glm4 from GLM-4-0414."""
    tiny = Tiny(architecture, architecture="glm4" if architecture == "glm4" else "glm", rope_theta=5e6)
    model = make(tiny, tmp_path / "hf")
    path = write_plain_gguf(model, tmp_path, architecture, fused, split)
    export(path, tmp_path / "bundle", "fp32")
    expected, float32_error = reference_logits(model, IDS)
    (error,) = largest_errors(tmp_path / "bundle", expected, [64, 6])
    assert error <= TIMES_FLOAT32 * float32_error


def write_plain_gguf(
    model: PreTrainedModel, folder: Path, architecture: str, fused: bool = False, split: bool = False
) -> Path:
    """As llama.cpp's converter writes GLM and Qwen: rows as they are, gate and up as they are; one kind in f16."""
    config = model.config
    out = folder / ("model.gguf" if not split else "model-00001-of-00002.gguf")
    first, second = (
        gguf.GGUFWriter(out, architecture),
        gguf.GGUFWriter(folder / "model-00002-of-00002.gguf", architecture),
    )
    first.add_context_length(config.max_position_embeddings)
    first.add_embedding_length(config.hidden_size)
    first.add_block_count(config.num_hidden_layers)
    first.add_feed_forward_length(config.intermediate_size)
    first.add_head_count(config.num_attention_heads)
    first.add_head_count_kv(config.num_key_value_heads)
    first.add_key_length(config.head_dim)
    first.add_rope_freq_base(config.rope_theta)
    if "glm" in architecture:
        first.add_rope_dimension_count(config.head_dim // 2)
    first.add_layer_norm_rms_eps(config.rms_norm_eps)
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.o_proj": "attn_output",
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "mlp.gate_up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
        "post_self_attn_layernorm": "post_attention_norm", "post_mlp_layernorm": "post_ffw_norm",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    }  # fmt: skip
    tensors = {}
    for name, parameter in model.named_parameters():
        stem, kind = name.rsplit(".", 1)
        prefix, key = ("", stem) if stem in names else (f"blk.{stem.split('.')[2]}.", stem.split(".", 3)[3])
        values = parameter.detach().numpy()
        if key == "mlp.down_proj":  # a matrix in float16: the model is given the rounded one
            values = values.astype(np.float16)
            with torch.no_grad():
                parameter.copy_(torch.from_numpy(values.astype(np.float32)))
        tensors[f"{prefix}{names[key]}.{kind}"] = values
    if fused:
        for layer in range(config.num_hidden_layers):
            for kind in ("weight", "bias"):
                parts = [tensors.pop(f"blk.{layer}.attn_{x}.{kind}") for x in "qkv"]
                tensors[f"blk.{layer}.attn_qkv.{kind}"] = np.concatenate(parts)
    for i, (name, values) in enumerate(tensors.items()):
        (second if split and i % 2 else first).add_tensor(name, values)
    if split:
        for number, writer in enumerate((first, second)):
            writer.add_uint16("split.no", number)
            writer.add_uint16("split.count", 2)
            writer.add_int32("split.tensors.count", len(tensors))
    for writer in (first, second) if split else (first,):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    write_tokenizer(folder)  # beside the file
    return out


def write_llama_gguf(model: PreTrainedModel, path: Path) -> None:
    """Write a model as Q8_0 GGUF, and load the rounded weights back into it."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = [*sorted(ByteLevel.alphabet()), "<|end|>", "ab"]
    writer.add_token_list(tokens + [f"[PAD{i}]" for i in range(config.vocab_size - len(tokens))])
    writer.add_token_types([1] * 256 + [3, 1] + [5] * (config.vocab_size - 258))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(256)
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.o_proj": "attn_output",
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    heads = {"self_attn.q_proj": config.num_attention_heads, "self_attn.k_proj": config.num_key_value_heads}
    for name, parameter in model.named_parameters():
        stem = name.removesuffix(".weight")
        prefix, key = ("", stem) if stem in names else (f"blk.{stem.split('.')[2]}.", stem.split(".", 3)[3])
        values = parameter.detach().numpy()
        if key in heads:  # halves to pairs, as llama.cpp's converter does
            values = values.reshape(heads[key], 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        if values.ndim == 1:
            writer.add_tensor(f"{prefix}{names[key]}.weight", values)
            continue
        packed = gguf.quantize(values, gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(f"{prefix}{names[key]}.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        values = gguf.dequantize(packed, gguf.GGMLQuantizationType.Q8_0)
        if key in heads:
            values = values.reshape(heads[key], -1, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(values)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


PROMPTS = (
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "def fibonacci(n):",
    "List three colors and say what each reminds you of.",
    "Explain to a child why the sky is blue.",
)


@pytest.mark.slow
def test_demo_model_in_float_equals_transformers_greedy(demo_gguf: Path, tmp_path: Path) -> None:
    """32 greedy tokens for each of 5 prompts, against transformers reading the same GGUF. About 30 s."""
    from transformers import AutoModelForCausalLM

    export(demo_gguf, tmp_path / "bundle", "fp32")
    engines = {engine: LLM(tmp_path / "bundle", exact) for engine, exact in EXACT.items()}
    llm = engines["openvino"]
    model = AutoModelForCausalLM.from_pretrained(demo_gguf.parent, gguf_file=demo_gguf.name, dtype=torch.float32)
    for prompt in PROMPTS:
        ids = llm.tokenizer.encode(llm.render([{"role": "user", "content": prompt}]))
        with torch.no_grad():
            theirs = model.generate(
                torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=32, min_new_tokens=32,
                do_sample=False, eos_token_id=None, pad_token_id=0,
            )[0, len(ids) :].tolist()  # fmt: skip
        for engine, ours in engines.items():
            stream = ours.generate(ids, max_new_tokens=32, ignore_stop_ids=True)
            assert [i for chunk in stream for i in chunk.token_ids] == theirs, (engine, prompt)
