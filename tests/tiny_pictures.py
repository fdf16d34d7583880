"""Seeded tiny checkpoints of models that see pictures: GLM-4V-9B's layout, and glm4v as transformers writes it.

Every name, shape and number of their configurations is written out here from the published ones, so that nothing that
the reader under test does is repeated. Matrices in front of norms are small: with ordinary ones an eps cannot be seen.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import Glm4vConfig, Glm4vForConditionalGeneration, PreTrainedModel

from tests.tiny import SPECIAL, STOP_IDS, TEMPLATE, TINIES, VOCAB, make, to_remote_code

IMAGE_SIZE = 56  # pixels of a side: 4 x 4 patches
PATCH = 14
LAYERS = 3
SMALL = 2e-3  # standard deviation of matrices in front of norms
SPREAD = 0.15  # of the others

BEGIN, END, PLACEHOLDER = "<|begin_of_image|>", "<|end_of_image|>", "<|image|>"
VIDEO = ("<|begin_of_video|>", "<|end_of_video|>")
THINKING = ("<think>", "</think>", "<answer>", "</answer>")
# Ids: 256 bytes, then SPECIAL (256 ... 260), then these.
BEGIN_ID, END_ID, PLACEHOLDER_ID = 261, 262, 265
THINK_ID, END_THINK_ID = 267, 268
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

# As GLM-4.1V's, shortened: parts of a message in their order; `{think}` ends a prompt where the template opens it.
PARTS_TEMPLATE = """[gMASK]<sop>
{%- for m in messages %}<|{{ m['role'] }}|>
{% if m['content'] is string %}{{ m['content'] }}
{%- else %}
{%- for part in m['content'] %}
{%- if part['type'] == 'image' or 'image' in part %}<|begin_of_image|><|image|><|end_of_image|>
{%- elif part['type'] == 'text' %}{{ part['text'] }}
{%- endif %}
{%- endfor %}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>
{think}{%- endif %}"""


@dataclass(frozen=True)
class TinyTower:
    """Shapes of a tiny tower of GLM-4V's kind."""

    hidden_size: int = 64
    num_heads: int = 4
    intermediate_size: int = 128
    num_layers: int = LAYERS
    image_size: int = IMAGE_SIZE


def make_4v(folder: Path, tower: TinyTower | None = None, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Write a checkpoint as glm-4v-9b was published, and return its text part, a GlmForCausalLM in float32.

    Beside `folder` its text part alone is written, to a folder named `<name>-text`.
    """
    tower = tower or TinyTower()
    text = folder.with_name(f"{folder.name}-text")
    model = make(TINIES[0], text)
    to_remote_code(text, folder)
    path = folder / "model.safetensors"
    tensors = load_file(path) | tower_tensors(tower, model.config.hidden_size, model.config.intermediate_size)
    save_file({name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}, path)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "pad_token_id": STOP_IDS[0],
        "boi_token_id": BEGIN_ID,
        "eoi_token_id": END_ID,
        "vision_config": {
            "dropout_prob": 0.0,
            "hidden_act": "gelu",
            "in_channels": 3,
            "num_hidden_layers": tower.num_layers,
            "hidden_size": tower.hidden_size,
            "patch_size": PATCH,
            "num_heads": tower.num_heads,
            "intermediate_size": tower.intermediate_size,
            "layer_norm_eps": 1e-6,
            "num_positions": (tower.image_size // PATCH) ** 2 + 1,
            "image_size": tower.image_size,
            "scaling_factor": 8,
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    write_picture_tokenizer(folder, TEMPLATE)
    return model


def tower_tensors(tower: TinyTower, out: int, merger: int) -> dict[str, torch.Tensor]:
    """All tensors of a tower by the names of the published checkpoint. out, merger: sizes of the text model."""
    generator = torch.Generator().manual_seed(11)
    h, f, prefix = tower.hidden_size, tower.intermediate_size, "transformer.vision."

    def drawn(*shape: int, mean: float = 0.0, spread: float = SPREAD) -> torch.Tensor:
        return mean + spread * torch.randn(shape, generator=generator)

    tensors = {
        "patch_embedding.proj.weight": drawn(h, 3, PATCH, PATCH, spread=0.05),
        "patch_embedding.proj.bias": drawn(h),
        "patch_embedding.cls_embedding": drawn(1, h),
        "patch_embedding.position_embedding.weight": drawn((tower.image_size // PATCH) ** 2 + 1, h),
        "conv.weight": drawn(out, h, 2, 2),
        "conv.bias": drawn(out),
        "linear_proj.linear_proj.weight": drawn(out, out, spread=SMALL),
        "linear_proj.norm1.weight": drawn(out, mean=1.0),
        "linear_proj.norm1.bias": drawn(out),
        "linear_proj.gate_proj.weight": drawn(merger, out),
        "linear_proj.dense_h_to_4h.weight": drawn(merger, out),
        "linear_proj.dense_4h_to_h.weight": drawn(out, merger),
        "boi": drawn(1, 1, out),
        "eoi": drawn(1, 1, out),
    }
    for layer in range(tower.num_layers):
        tensors |= {
            f"transformer.layers.{layer}.{name}": tensor
            for name, tensor in {
                "attention.query_key_value.weight": drawn(3 * h, h),
                "attention.query_key_value.bias": drawn(3 * h),
                "attention.dense.weight": drawn(h, h, spread=SMALL),
                "attention.dense.bias": drawn(h, spread=SMALL),
                "input_layernorm.weight": drawn(h, mean=1.0),
                "input_layernorm.bias": drawn(h),
                "mlp.fc1.weight": drawn(f, h),
                "mlp.fc1.bias": drawn(f),
                "mlp.fc2.weight": drawn(h, f, spread=SMALL),
                "mlp.fc2.bias": drawn(h, spread=SMALL),
                "post_attention_layernorm.weight": drawn(h, mean=1.0),
                "post_attention_layernorm.bias": drawn(h),
            }.items()
        }
    return {prefix + name: tensor for name, tensor in tensors.items()}


def make_glm4v(
    folder: Path, *, opens_thinking: bool = False, dtype: torch.dtype = torch.float32
) -> Glm4vForConditionalGeneration:
    """Write a checkpoint as transformers does, and return the model in float32.

    opens_thinking: the template ends a prompt with <think>, instead of leaving that to the model.
    """
    torch.manual_seed(13)
    hidden, merger = 128, 96
    text = {
        "vocab_size": VOCAB,
        "hidden_size": hidden,
        "intermediate_size": 128,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "rope_scaling": {"type": "default", "mrope_section": [2, 3, 3]},
        "max_position_embeddings": 256,
        "attention_bias": True,
        "eos_token_id": list(STOP_IDS),
        "pad_token_id": STOP_IDS[0],
        "tie_word_embeddings": False,
        "attn_implementation": "eager",
    }
    vision = {
        "depth": LAYERS,
        "hidden_size": 64,
        "num_heads": 4,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH,
        "out_hidden_size": hidden,
        "intermediate_size": merger,
        "rms_norm_eps": 1e-5,
        "attn_implementation": "eager",
    }
    config = Glm4vConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=PLACEHOLDER_ID,
        image_start_token_id=BEGIN_ID,
        image_end_token_id=END_ID,
        video_start_token_id=263,
        video_end_token_id=264,
        video_token_id=266,
        tie_word_embeddings=False,
        eos_token_id=list(STOP_IDS),
        pad_token_id=STOP_IDS[0],
    )
    model = Glm4vForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = "norm" in name and name.endswith("weight")
            small = name.endswith(("merger.proj.weight", "patch_embed.proj.weight"))
            parameter.normal_(1.0 if is_norm else 0.0, SMALL if small else SPREAD)
    model.to(dtype).save_pretrained(folder)
    image_processor = {
        "size": {"shortest_edge": 2 * 28 * 28, "longest_edge": 2 * 112 * 112},
        "do_rescale": True,
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": list(MEAN),
        "image_std": list(STD),
        "image_processor_type": "Glm4vImageProcessor",
        "processor_class": "Glm4vProcessor",
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(image_processor))
    opened = "<think>" if opens_thinking else ""
    write_picture_tokenizer(folder, PARTS_TEMPLATE.replace("{think}", opened))
    read: Glm4vForConditionalGeneration = Glm4vForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    return read.eval()


def write_picture_tokenizer(folder: Path, template: str) -> None:
    """As `tests.tiny.write_tokenizer`, with the tokens of pictures, videos and thinking."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = (*SPECIAL, BEGIN, END, *VIDEO, PLACEHOLDER, "<|video|>")
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in THINKING])
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in ("[gMASK]", "<sop>")])
    assert [tokenizer.token_to_id(text) for text in (BEGIN, END, PLACEHOLDER, *THINKING[:2])] == [
        BEGIN_ID,
        END_ID,
        PLACEHOLDER_ID,
        THINK_ID,
        END_THINK_ID,
    ]
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(template)
