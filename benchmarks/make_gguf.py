"""Write a Q4_0 GGUF from a GLM checkpoint, for running the same shapes in llama.cpp.

    python benchmarks/make_gguf.py CHECKPOINT OUT.gguf [--quantize-with PYTHON|llama-quantize]

In: a folder with config.json and *.safetensors, as make_checkpoint.py writes it. Out: one file of architecture chatglm,
or glm4 if attention and MLP are followed by norms of their own. Tensors have the names and forms that llama.cpp's own
conversion gives them (conversion/{chatglm,glm}.py of ggml-org/llama.cpp): matrices as stored, rows unchanged, q, k and
v joined; vectors in float32.

The weights go into OUT.unquantized first, tensor by tensor, and llama.cpp's quantizer (llama_model_quantize with its
defaults) converts them to Q4_0; the head gets what llama.cpp gives it. That runs under PYTHON, one that has llama_cpp
(default: this one), or it is llama.cpp's own program of that name. 9B take 18.8 GB in addition to the checkpoint while
it runs, 5.5 GB at the end.

The vocabulary has the right size and one name per id, so that llama.cpp loads it: prompts have to be ids, not text.

`write_like` makes a complete file with other weights, given an existing GGUF, including its tokenizer.
"""

from __future__ import annotations

import argparse
import math
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType

from edge.export.architectures.registry import ARCHITECTURES, describe
from edge.export.checkpoint.checkpoint import open_checkpoint
from edge.export.tensors import Float32Array, to_float32
from edge.export.weights.names import canonical_shapes
from edge.export.weights.source import Weights, rotary_halves
from edge.profiles.reference import FloatWeights
from edge.runtime.errors import EdgeError
from edge.runtime.spec import ModelSpec

STORED = {
    np.dtype(ml_dtypes.bfloat16): GGMLQuantizationType.BF16,
    np.dtype(np.float16): GGMLQuantizationType.F16,
    np.dtype(np.float32): GGMLQuantizationType.F32,
}

GGUF_HEAD = "output.weight"
# What a file says about itself only: how its weights are stored, and the parts it is split into.
NOT_COPIED = ("GGUF.", "general.architecture", "general.file_type", "general.quantization_version", "split.",
              "tokenizer.ggml.add_bos_token")  # fmt: skip

# argv[1:] are the file to read and the one to write.
QUANTIZE = """
import sys, llama_cpp
settings = llama_cpp.llama_model_quantize_default_params()
settings.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
source, out = (path.encode() for path in sys.argv[1:])
sys.exit(1 if llama_cpp.llama_model_quantize(source, out, settings) else 0)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--quantize-with", default=sys.executable, metavar="PYTHON", help="or llama-quantize; default: this one"
    )
    args = parser.parse_args()
    unquantized = args.out.with_name(f"{args.out.name}.unquantized")
    try:
        spec, weights = describe(open_checkpoint(args.checkpoint))
        check_quantizer(args.quantize_with)
        check_space(args.out.parent, weights)
        write_gguf(unquantized, spec, weights)
        quantize(args.quantize_with, unquantized, args.out)
    except (EdgeError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        unquantized.unlink(missing_ok=True)
    print(f"{args.out}: {args.out.stat().st_size:,} bytes")
    return 0


def check_quantizer(python: str) -> None:
    """Raises OSError, before anything is written, if a Python has no quantizer."""
    if is_program(python):
        return
    if subprocess.run([python, "-c", "import llama_cpp"], check=False, capture_output=True).returncode:
        raise OSError(f"{python} has no llama_cpp; --quantize-with names a Python that has it")


def check_space(folder: Path, weights: Weights) -> None:
    """Raises OSError when the weights, and a third of their size for Q4_0, which takes less, do not fit."""
    stored = sum(file.stat().st_size for file in weights.checkpoint.weight_files())
    if (free := shutil.disk_usage(folder).free) < (needed := stored * 4 // 3):
        raise OSError(f"{folder}: {needed:,} bytes needed, {free:,} are free")


def write_gguf(path: Path, spec: ModelSpec, weights: Weights) -> None:
    """Write all weights, unquantized, with one tensor at a time in memory."""
    name = "glm4" if spec.output_norms else "chatglm"
    writer = gguf.GGUFWriter(path, name)
    add_metadata(writer, spec)
    shapes = canonical_shapes(spec)
    theirs = {ours: parts[0] for ours, parts in gguf_names(name, spec).items()}
    for ours, shape in shapes.items():
        dtype = stored_dtype(weights, ours, shape)
        size = int(np.prod(shape)) * dtype.itemsize
        writer.add_tensor_info(theirs[ours], shape, dtype, size, raw_dtype=STORED[dtype])
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for ours, shape in shapes.items():
            parts = [weights.checkpoint.read(part) for part in weights.sources[ours]]  # not yet in halves: as stored
            tensor = parts[0] if len(parts) == 1 else np.concatenate(parts)
            stored = tensor.astype(stored_dtype(weights, ours, shape), copy=False)
            writer.write_tensor_data(stored.view(np.uint8))
            weights.checkpoint.release()
    finally:
        writer.close()


def write_like(path: Path, like: Weights, weights: FloatWeights) -> None:
    """Write a GGUF with float32 `weights`, and the metadata and tokenizer of the one that `like` comes from.

    Shapes are those of `like`, except for a head that may have been untied. llama.cpp reads ids as they are given: no
    token is put before a text, whatever the original file said. One weight at a time is in memory.
    """
    writer = gguf.GGUFWriter(path, like.checkpoint.architecture)
    for field in gguf.GGUFReader(like.checkpoint.weight_files()[0]).fields.values():
        if not field.name.startswith(NOT_COPIED):
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], inner)
    writer.add_add_bos_token(False)
    parts_of = {
        name: {part: like.checkpoint.shapes[part] for part in like.sources.get(name, ())} or {GGUF_HEAD: shape}
        for name, shape in canonical_shapes(weights.spec).items()
    }
    for parts in parts_of.values():
        for part, shape in parts.items():
            writer.add_tensor_info(part, shape, np.dtype(np.float32), 4 * math.prod(shape))
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, parts in parts_of.items():
            weight, start = as_stored(name, to_float32(weights.read(name)), like), 0
            for shape in parts.values():
                writer.write_tensor_data(np.ascontiguousarray(weight[start : start + shape[0]]))
                start += shape[0]
            like.checkpoint.release()
    finally:
        writer.close()


def as_stored(name: str, weight: Float32Array, like: Weights) -> Float32Array:
    """Rows of q and k from halves back to pairs, where the GGUF has those."""
    in_pairs = like.layout.stored == "pairs" and ".attn.qkv." in name
    return weight[np.argsort(rotary_halves(like.spec))] if in_pairs else weight


def gguf_names(architecture: str, spec: ModelSpec) -> Mapping[str, tuple[str, ...]]:
    """Canonical name -> the one tensor in a GGUF in which q, k and v are joined, and so are gate and up."""
    return ARCHITECTURES["gguf", architecture].sources(spec, ["blk.0.attn_qkv.weight"])


def stored_dtype(weights: Weights, name: str, shape: tuple[int, ...]) -> np.dtype:
    """The checkpoint's dtype, but float32 for norms and biases: llama.cpp accepts nothing else there."""
    is_matrix = len(shape) == 2
    return weights.checkpoint.read(weights.sources[name][0]).dtype if is_matrix else np.dtype(np.float32)


def add_metadata(writer: gguf.GGUFWriter, spec: ModelSpec) -> None:
    writer.add_block_count(spec.num_layers)
    writer.add_context_length(spec.max_position_embeddings)
    writer.add_embedding_length(spec.hidden_size)
    writer.add_feed_forward_length(spec.intermediate_size)
    writer.add_head_count(spec.num_heads)
    writer.add_head_count_kv(spec.num_kv_heads)
    writer.add_layer_norm_rms_eps(spec.rms_norm_eps)
    writer.add_rope_dimension_count(spec.rotary_dim)
    writer.add_rope_freq_base(spec.rope_theta)
    tokens = [f"<{i}>" for i in range(spec.vocab_size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("chatglm-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens))
    writer.add_token_merges([f"{tokens[0]} {tokens[1]}"])  # llama.cpp refuses a file without any


def is_program(python: str) -> bool:
    """Whether this is llama.cpp's own quantizer."""
    return Path(python).is_file() and Path(python).name.startswith("llama-quantize")


def quantize(python: str, source: Path, out: Path) -> None:
    """Run llama.cpp's quantizer. Raises OSError, leaving nothing."""
    files = [str(source), str(out)]
    command = [python, *files, "Q4_0"] if is_program(python) else [python, "-c", QUANTIZE, *files]
    try:
        if subprocess.run(command, check=False).returncode:
            raise OSError(f"{source}: llama.cpp's quantizer failed; it says why above")
    except BaseException:  # an interrupt too
        out.unlink(missing_ok=True)
        raise


if __name__ == "__main__":
    sys.exit(main())
