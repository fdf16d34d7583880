"""The small files of a bundle: tokenizer, chat template, configurations for us and for others.

In: an open checkpoint and its spec. Out: the files, the tokenizer, the ids that end an answer and what is doubtful
about them. Knows nothing about weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.export.architectures.architecture import Architecture
from edge.export.architectures.registry import architecture_of
from edge.export.checkpoint.checkpoint import Checkpoint
from edge.export.interop.prompt_check import check_prompts, possible_ids
from edge.runtime import bundle, graph_names
from edge.runtime.spec import ModelSpec
from edge.runtime.tokenizer import Tokenizer

# What makes a folder a text generation servable of OpenVINO Model Server: one calculator around openvino_genai, which
# calls itself until the answer ends (openvinotoolkit/model_server, docs/llm/reference.md); all else is its default.
_SERVER_GRAPH = """\
input_stream: "HTTP_REQUEST_PAYLOAD:input"
output_stream: "HTTP_RESPONSE_PAYLOAD:output"
node {
  name: "LLMExecutor"
  calculator: "HttpLLMCalculator"
  input_side_packet: "LLM_NODE_RESOURCES:llm"
  input_stream: "HTTP_REQUEST_PAYLOAD:input"
  input_stream: "LOOPBACK:loopback"
  output_stream: "HTTP_RESPONSE_PAYLOAD:output"
  output_stream: "LOOPBACK:loopback"
  input_stream_info { tag_index: "LOOPBACK:0" back_edge: true }
  input_stream_handler {
    input_stream_handler: "SyncSetInputStreamHandler"
    options {
      [mediapipe.SyncSetInputStreamHandlerOptions.ext] { sync_set { tag_index: "LOOPBACK:0" } }
    }
  }
  node_options {
    [type.googleapis.com/mediapipe.LLMCalculatorOptions] { models_path: "./" }
  }
}
"""

# onnxruntime-genai takes memory for keys and values of all max_length tokens when an answer begins: 10.7 GB with the
# context of glm-4-9b-chat. So this is the default; who generates may set it as high as context_length.
_GENAI_MAX_LENGTH = 4096
_GENAI_IDS = ("bos_token_id", "pad_token_id")


@dataclass(frozen=True)
class Sidecars:
    """What the rest of an export needs of them."""

    tokenizer: Tokenizer
    stop_ids: tuple[int, ...]
    warnings: tuple[str, ...]


def write_sidecars(
    checkpoint: Checkpoint, spec: ModelSpec, folder: Path, template: str | None, *, own_config: bool = False
) -> Sidecars:
    """Write them all, and try a conversation. Raises TokenizerError and ConfigError.

    template: the chat template, if there is one. own_config: config.json stays the checkpoint's, for a graph that is
    not ours.
    """
    doubts = checkpoint.write_tokenizer(folder / bundle.TOKENIZER)
    if template is not None:
        (folder / bundle.CHAT_TEMPLATE).write_bytes(template.encode())
    num_ids = Tokenizer(folder / bundle.TOKENIZER).num_tokens
    tokenizer = Tokenizer(folder / bundle.TOKENIZER, spec.vocab_size)
    checked = check_prompts(checkpoint, spec, tokenizer, num_ids, template)
    config = checkpoint.config.values if own_config else _config(architecture_of(checkpoint), spec, checked.stop_ids)
    _write_configs(checkpoint, config, spec, checked.stop_ids, folder)
    return Sidecars(tokenizer, checked.stop_ids, (*doubts, *checked.warnings))


def write_server_graph(folder: Path) -> None:
    """What makes the folder a servable of OpenVINO Model Server."""
    (folder / bundle.SERVER_GRAPH).write_text(_SERVER_GRAPH, encoding="utf-8")


def write_genai_config(checkpoint: Checkpoint, spec: ModelSpec, stops: tuple[int, ...], folder: Path) -> None:
    """What onnxruntime-genai reads besides the tokenizer's files and the chat template, which it takes as they are.

    For GLM-4 its tokenizer gives our ids, up to a NUL in the text; where tokenizer.json splits off digits before
    anything else, as SmolLM2's does, it gives others for spaces and line ends before a digit.
    """
    places = (checkpoint.generation_config(), checkpoint.config)
    found = {name: [i for p in places for i in possible_ids(p, name, spec.vocab_size)] for name in _GENAI_IDS}
    stop_ids = list(stops) or [spec.vocab_size - 1]  # without any, it would take 0 for one
    model = {
        "type": "decoder",  # any model of text; it knows chatglm, which is GLM-3, and neither glm nor glm4
        "context_length": spec.max_position_embeddings,
        "vocab_size": spec.vocab_size,
        "eos_token_id": stop_ids,
        "pad_token_id": (*found["pad_token_id"], *stop_ids)[0],  # fills the shorter prompts of a batch
        "decoder": {
            "filename": bundle.MODEL_ONNX,
            "hidden_size": spec.hidden_size,
            "num_hidden_layers": spec.num_layers,
            "num_attention_heads": spec.num_heads,
            "num_key_value_heads": spec.num_kv_heads,
            "head_size": spec.head_dim,
            "inputs": {
                "input_ids": "input_ids",
                "attention_mask": "attention_mask",
                "past_key_names": graph_names.past_name("%d.key"),
                "past_value_names": graph_names.past_name("%d.value"),
            },
            "outputs": {
                "logits": "logits",
                "present_key_names": graph_names.present_name("%d.key"),
                "present_value_names": graph_names.present_name("%d.value"),
            },
        },
    }
    if found["bos_token_id"]:
        model["bos_token_id"] = found["bos_token_id"][0]
    search = {
        "do_sample": False,
        "max_length": min(spec.max_position_embeddings, _GENAI_MAX_LENGTH),
        "past_present_share_buffer": True,
    }
    _write_json(folder / bundle.GENAI_CONFIG, {"model": model, "search": search})


def _write_configs(
    checkpoint: Checkpoint, config: Mapping[str, Any], spec: ModelSpec, stops: tuple[int, ...], folder: Path
) -> None:
    """config.json and its like, where openvino_genai, optimum-intel and OpenVINO Model Server look."""
    generation = {**checkpoint.generation_config().values, "eos_token_id": list(stops)}
    tokenizer = {
        **checkpoint.named_tokens(),
        "tokenizer_class": "PreTrainedTokenizerFast",
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "model_max_length": spec.max_position_embeddings,
    }
    files = {bundle.GENERATION_CONFIG: generation, bundle.CONFIG: config, bundle.TOKENIZER_CONFIG: tokenizer}
    for name, values in files.items():
        _write_json(folder / name, values)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    text = json.dumps(values, indent=1, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def _config(record: Architecture, spec: ModelSpec, stops: tuple[int, ...]) -> dict[str, Any]:
    """The config.json of our own graph, in the names of transformers."""
    return {
        "architectures": [record.model_class],
        "model_type": record.model_type,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "head_dim": spec.head_dim,
        "partial_rotary_factor": spec.rotary_dim / spec.head_dim,
        "rope_theta": spec.rope_theta,
        "rms_norm_eps": spec.rms_norm_eps,
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.max_position_embeddings,
        "attention_bias": spec.qkv_bias,
        "tie_word_embeddings": spec.tied_embeddings,
        "hidden_act": "silu",
        "eos_token_id": list(stops),
    }
