"""What a model takes of memory on an engine, told before anything is read.

In: a ModelSpec, bytes of weights, and how it will be run. Out: a `Footprint` in bytes. Reads no weights and opens no
engine. Every constant was measured, or read where the hardware is missing; the comment beside it says which.

Measured with openvino 2026.4.1 and onnxruntime 1.32.0 on Linux x86-64, one fresh process a run: the demo model in int4,
int8, fp16 and fp32, and models of GLM-4-9B's widths with 2 and 8 blocks in int4 and int8, prompts of 32, 1,024 and
4,096 tokens, on both engines. `benchmarks/fit.py` repeats that and prints the errors.

Two kinds of memory are told apart. What a process allocates cannot be dropped, and decides whether a model fits:
`peak`. Pages of mapped files that were read stay until the system needs them; they count in what tools show as
resident: `resident_peak`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from edge.runtime.machine import family_of
from edge.runtime.spec import ModelSpec
from edge.runtime.tensor_records import TensorRecord
from edge.runtime.vision.record import VisionRecord
from edge.runtime.vision.spec import VisionSpec

EMBEDDING, HEAD = "embed.weight", "lm_head.weight"  # canonical names, as in a manifest

# --- What a process takes whatever the model is, without packages of its caller ---------------------------------------
BASE = {
    "onnx": 70_000_000,  # session of a model with 2 blocks, without its weights and tables
    "openvino": 60_000_000,  # compiled model with 2 blocks in int8: 61 MB
    "openvino_npu": 60_000_000,  # not measured on an NPU
}
GPU_BASE = 1_030_000_000  # published for Llama-3-8B int4 on a 155H, 5,569 MB resident, less its weights and cache
UNKNOWN = "openvino"  # whose figures stand for an engine of one's own
OF_LAYER = {"onnx": 400_000, "openvino": 1_400_000, "openvino_npu": 1_400_000}  # of the graph, from 2 and 8 blocks
# tokenizer.json of GLM-4, 20.0 MB: 190 MB in two engines; of the demo model, 3.5 MB: nothing that loading the weights
# does not use again.
TOKENIZER_TIMES, TOKENIZER_REUSED = 11.5, 40_000_000
TOKENIZER_ENTRY_BYTES = 120  # GLM-4 has 132, the demo model 72

# --- What a group of weights takes besides its integers ---------------------------------------------------------------
GROUP_BYTES = {
    "onnx": 12.0,  # slope from 2 to 8 blocks of int4-asym-g128: 12.4 with the graph's share
    "openvino": 8.0,  # scale and zero point in float32: 12.7 MB a block of GLM-4-9B's widths, 8.0 bytes a group
}
# Of them, what a token reads: a scale, and a zero point or the sum of the group's integers, in float32 in both engines'
# kernels (onnxruntime: core/mlas/lib/sqnbitgemm_kernel_avx512_int8_blklen128.h).
READ_GROUP_BYTES = 8.0
ONNX_LARGEST_BLOCK = 256  # groups are cut into blocks of at most so many weights
ONNX_LARGEST_OF_2_BITS = 128  # the same of 2 bits
ONNX_HEAD_BLOCK = 32  # of a head whose inputs are rounded to int8

# --- While tokens are computed ----------------------------------------------------------------------------------------
ACTIVATIONS_TIMES = 1.3  # of the widest values of a token: 1.21 to 1.36 on openvino, 1.2 to 1.4 on onnx
TERMS = 3  # of inputs, where 8-bit weights meet float ones on onnx (export/graph/onnx/fused.py)
BLOCK_TOKENS = {"CPU": 32, "GPU": 16}  # of openvino's caches
ONNX_LOADING = 0.04  # of the head, at the peak of a load above what stays: 25 MB with GLM-4's, 4 with the demo model's
ONNX_PAGES, OPENVINO_PAGES = 50_000_000, 75_000_000  # of libraries and graphs, mapped: 49 to 54 and 70 to 80 MB

# --- The tower of pictures --------------------------------------------------------------------------------------------
TOWER_LAYERS = "vision.layers."  # begins the names of its layers' weights
TOWER_PART = 12_000_000  # of a graph, without its weights
# Values of a patch while a layer is computed: times the width of what its MLP computes at once, and times the hidden
# size. From one layer of GLM-4V-9B in int8 with 6,400 patches: 771 MB at the peak on openvino, 439 on onnx.
TOWER_VALUES = {"onnx": (1, 4), "openvino": (2, 11)}
TOWER_16_BITS = 0.8  # of that in bfloat16, where sums and what goes from graph to graph stay float32: 632 MB
TOWER_LEFT = {"onnx": 0, "openvino": 4}  # hidden sizes of float32 a patch, which a graph that stays loaded keeps
TOWER_KEPT = {"onnx": 12_000_000, "openvino": 45_000_000}  # besides, of five parts of GLM-4.1V's tower: 1,337 MB
TOWER_PIECES = 4  # that patches are cut into for an MLP (export/graph/tower.py)
USUAL_PATCHES = 6400  # of a picture that a KV cache leaves room for: 1,120 x 1,120 pixels

# --- Devices that are not here ----------------------------------------------------------------------------------------
NPU_COMPILING = 2.0  # times the weights; read: documents ask for more than 16 GB for 7B models (genai, NPU guide)


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of memory, by what takes them."""

    weights: int  # as the engine keeps them: repacked, with scales in its own type
    kv: int  # of all sequences at the given context
    activations: int  # at the largest step
    compile_peak: int  # above what stays, while the model is loaded or compiled
    base: int  # libraries, graph, tokenizer, tables of positions
    droppable: int  # pages of mapped files, which the system takes back when it needs them
    about: bool = False  # whether it is a guess for a device or an engine that was never measured

    def beside(self, draft: Footprint) -> Footprint:
        """Both of two models in one process, of which the draft model is loaded first."""
        return Footprint(
            weights=self.weights + draft.weights,
            kv=self.kv + draft.kv,
            activations=self.activations + draft.activations,
            compile_peak=max(self.compile_peak, draft.compile_peak - self.loaded),
            base=self.base + draft.base,
            droppable=self.droppable + draft.droppable,
            about=self.about or draft.about,
        )

    @property
    def loaded(self) -> int:
        """After the load, before the first token."""
        return self.base + self.weights

    @property
    def peak(self) -> int:
        """The most that cannot be dropped, at the given context or while loading."""
        return self.loaded + max(self.compile_peak, self.kv + self.activations)

    @property
    def resident_peak(self) -> int:
        """The most that tools show as resident."""
        return self.peak + self.droppable


def footprint(
    spec: ModelSpec,
    weight_bytes: int,
    *,
    engine: str,
    context_tokens: int,
    kv_precision: str,
    prefill_chunk: int,
    sequences: int = 1,
    device: str = "CPU",
    tensors: Mapping[str, TensorRecord] | None = None,
    max_context: int | None = None,
    tokenizer_bytes: int | None = None,
) -> Footprint:
    """What a model takes.

    context_tokens: that one sequence will hold. kv_precision: as `kv_bytes` takes it. tensors: what every weight is, as
    in a manifest; without it, what a recipe makes of that many bytes is guessed. max_context: for which engines make
    tables (default: the model's). tokenizer_bytes: of tokenizer.json, if it is there.
    """
    records = tensors or guessed_tensors(spec, weight_bytes)
    family = "NPU" if engine == "openvino_npu" else family_of(device)
    measured, engine = engine in BASE, engine if engine in BASE else UNKNOWN
    context = max(context_tokens, 1)
    chunk, values = min(prefill_chunk, context), _values(spec)
    kv = sequences * kv_bytes(spec, context, kv_precision, None if engine == "onnx" else family)
    base = (GPU_BASE if family == "GPU" else BASE[engine]) + _tokenizer(spec, tokenizer_bytes)
    if family != "CPU":  # an NPU takes the whole cache when it compiles; 16 bits an activation on both
        compiling = int(NPU_COMPILING * weight_bytes) if family == "NPU" else 0
        return Footprint(weight_bytes, kv, int(ACTIVATIONS_TIMES * values * chunk * 2), compiling, base, 0, about=True)
    base += OF_LAYER[engine] * spec.num_layers
    bits = _fewest_bits(records)
    if engine == "onnx":
        length = max_context or spec.max_position_embeddings
        base += (spec.rotary_dim * (4 if kv_precision == "f32" else 2) + 2 * 8) * length  # cos, sin, positions, ones
        terms = TERMS * 2 * spec.intermediate_size if bits == 8 else 0
        weights, activations = kept_bytes(records, engine), int((ACTIVATIONS_TIMES * values + terms) * chunk * 4)
        head = records.get(HEAD) or records.get(EMBEDDING) or max(records.values(), key=lambda record: record.nbytes)
        loading = int(ONNX_LOADING * head.nbytes) if bits < 16 else 4 * math.prod(head.shape) * (bits == 16)
        # Files are mapped while they are read, the head's at the peak of that; later, next to none of them is.
        above = weights + base + max(loading, kv + activations)
        pages = max(ONNX_PAGES, weights + base + loading + head.nbytes + ONNX_PAGES - above)
        return Footprint(weights, kv, activations, loading, base, pages)
    size = 4 if bits > 4 else 2  # bytes of an activation: float32 beside 8 bits and more, else bfloat16 here
    activations = int(ACTIVATIONS_TIMES * values * chunk * size) + chunk * context * 4
    pages = OPENVINO_PAGES + (0 if bits == 16 else sum(record.nbytes for record in read_tensors(records).values()))
    # Weights are repacked one after the other at the first token, so that compiling has no peak of its own.
    return Footprint(kept_bytes(records, engine), kv, activations, 0, base, pages, about=not measured)


@dataclass(frozen=True, slots=True)
class TowerFootprint:
    """Bytes that a picture takes while it becomes rows."""

    part: int  # weights of the largest of its graphs, as the engine keeps them
    parts: int  # of all of them, with what each keeps of a picture
    activations: int
    rows: int  # of the picture

    @property
    def least(self) -> int:
        """With one graph at a time."""
        return self.part + self.activations + self.rows

    @property
    def whole(self) -> int:
        """With all graphs loaded."""
        return self.parts + self.activations + self.rows


def tower_footprint(vision: VisionRecord, patches: int, *, engine: str, value_bytes: int = 4) -> TowerFootprint:
    """What a picture of so many patches takes. value_bytes: of an activation, as the engine computes."""
    spec, engine = vision.spec, engine if engine in GROUP_BYTES else UNKNOWN
    sizes = {name: _kept(name, record, engine, record.bits) for name, record in vision.tensors.items()}
    layers = sum(size for name, size in sizes.items() if name.startswith(TOWER_LAYERS))
    largest = max((math.prod(record.shape) for record in vision.tensors.values()), default=0)
    once = TOWER_PART + (4 * largest if engine == "onnx" else 0)  # onnx unpacks one matrix at a time
    rest = sum(sizes.values()) - layers  # patches, merge and adapter, which two of the graphs have
    part = int(layers / spec.num_layers * math.ceil(spec.num_layers / vision.segments) + rest) + once
    of_mlp, of_hidden = TOWER_VALUES[engine]
    middle = spec.intermediate_size if spec.kind == "eva" else 3 * spec.intermediate_size
    values = patches * (of_mlp * middle // TOWER_PIECES + of_hidden * spec.hidden_size)
    activations = int(4 * values * (1 if value_bytes == 4 else TOWER_16_BITS))
    rows = 4 * spec.out_size * math.ceil(patches / spec.merge_size**2)
    left = 4 * TOWER_LEFT[engine] * spec.hidden_size * patches
    parts = int(layers + rest) + once + vision.segments * (TOWER_KEPT[engine] + left)
    return TowerFootprint(part, parts, activations, rows)


def most_patches(spec: VisionSpec) -> int:
    """Return the patches of the largest picture that a tower takes."""
    return spec.side**2 if spec.is_fixed else spec.max_pixels // (spec.frames * spec.patch_size**2)


def kv_bytes(spec: ModelSpec, tokens: int, precision: str, family: str | None = "CPU") -> int:
    """Bytes of keys and values of one sequence.

    precision: one of CachePrecision. family: of the device whose blocks they are in, None for arrays as long as the
    sequence. 8 and 4 bits have scales and zero points: by channel for keys, by token for values.
    """
    size = {"f32": 4, "f16": 2, "bf16": 2}.get(precision)
    if family is None or (size is not None and family == "NPU"):
        return spec.kv_values_per_token * (size or 1) * tokens
    block = BLOCK_TOKENS.get(family, BLOCK_TOKENS["CPU"])
    blocks, dim = math.ceil(tokens / block), spec.head_dim
    if size is not None:
        return spec.kv_values_per_token * size * block * blocks
    # Shapes of compiled models on the CPU: key (40, D) and value (32, D + 8) at 8 bits, (48, D) and (32, D + 16) at 4.
    # Of a GPU, read: key (D, 16 + 4), value (16, D + 4).
    more, bits = (16, 4) if precision == "u4" else (4, 8) if family == "GPU" else (8, 8)
    numbers = (block + more) * dim + block * (dim + more)
    return spec.num_layers * spec.num_kv_heads * blocks * numbers * bits // 8


class _Kind(NamedTuple):
    """What a record's precision says."""

    bits: int
    group: int  # weights that share a scale


def _kind(record: TensorRecord) -> _Kind:
    return _Kind(record.bits, _group_of(record.precision) or max(record.shape[-1:], default=1))


@lru_cache(256)
def _group_of(precision: str) -> int | None:
    found = re.search(r"-g(\d+)", precision)
    return None if found is None else int(found[1])


def guessed_tensors(spec: ModelSpec, weight_bytes: int) -> dict[str, TensorRecord]:
    """What a recipe would give each matrix, were its weights to have this many bytes: 8 bits for the vocabulary."""
    h, f, qkv = spec.hidden_size, spec.intermediate_size, spec.q_size + 2 * spec.kv_size
    shapes = {"attn.qkv": (qkv, h), "attn.o": (h, spec.q_size), "mlp.gate_up": (2 * f, h), "mlp.down": (h, f)}
    in_blocks = spec.num_layers * sum(math.prod(shape) for shape in shapes.values())
    outside = spec.vocab_size * h * (1 if spec.tied_embeddings else 2)
    mean = 8 * weight_bytes / (in_blocks + outside)
    if mean > 12:
        block = vocabulary = "fp16" if mean < 24 else "fp32"
    else:
        mean = 8 * max(weight_bytes - outside, 0) / in_blocks if in_blocks else 8
        kinds = ((4.05, "int4-sym-channel"), (4.25, "int4-asym-g128"), (6, "int4-asym-g64"), (math.inf, "int8-asym"))
        block, vocabulary = next(kind for most, kind in kinds if mean < most), "int8-asym"
    found = {EMBEDDING: _guessed((spec.vocab_size, h), vocabulary)}
    if not spec.tied_embeddings:
        found[HEAD] = _guessed((spec.vocab_size, h), vocabulary)
    for layer in range(spec.num_layers):
        found |= {f"layers.{layer}.{name}.weight": _guessed(shape, block) for name, shape in shapes.items()}
    return found


def _guessed(shape: tuple[int, int], precision: str) -> TensorRecord:
    record = TensorRecord(shape, precision, 0, "")
    (bits, group), count = _kind(record), math.prod(shape)
    scales = 0 if bits > 8 else count // group * (2 if "sym" in precision.split("-") else 3)
    return TensorRecord(shape, precision, count * bits // 8 + scales, "")


def read_tensors(records: Mapping[str, TensorRecord]) -> dict[str, TensorRecord]:
    """Weights that are read whole for every token: all but an embedding of its own, of which rows are looked up."""
    return {name: record for name, record in records.items() if name != EMBEDDING or HEAD not in records}


def kept_bytes(records: Mapping[str, TensorRecord], engine: str, bits: int | None = None) -> int:
    """Weights that are read whole for a token, as an engine on a CPU keeps them. bits: only those with so many.

    MatMulNBits of onnx keeps packed integers and sums of blocks, and float32 of all else. openvino repacks integers
    beside the mapped file; 16 bits become float32 twice there, as a constant and packed. Not counted: a first prompt of
    32 tokens on an 8-bit model with tied embeddings unpacks the head (113 MB of the demo model), one of 100 does not.
    """
    fewest = _fewest_bits(records)
    found = (
        _kept(name, record, engine, fewest)
        for name, record in read_tensors(records).items()
        if bits is None or record.bits == bits
    )
    return int(sum(found))


def read_bytes(records: Mapping[str, TensorRecord], engine: str) -> int:
    """Bytes of weights that a CPU reads from memory for a token, as an engine keeps them."""
    fewest, total = _fewest_bits(records), 0.0
    for name, record in read_tensors(records).items():
        (bits, group), count = _packed(name, record, engine, fewest), math.prod(record.shape)
        total += 4 * count if bits >= 16 else count * bits / 8 + READ_GROUP_BYTES * count / group
    return int(total)


def _fewest_bits(records: Mapping[str, TensorRecord]) -> int:
    return min((record.bits for record in records.values() if len(record.shape) == 2), default=32)


def _kept(name: str, record: TensorRecord, engine: str, fewest_bits: int) -> float:
    bits, group = _packed(name, record, engine, fewest_bits)
    count = math.prod(record.shape)
    if bits >= 16:
        return count * (8.0 if bits == 16 and engine == "openvino" else 4.0)
    return count * bits / 8 + GROUP_BYTES[engine] * count / group


def _packed(name: str, record: TensorRecord, engine: str, fewest_bits: int) -> _Kind:
    """What an engine's kernel is given: onnx's cut groups into blocks."""
    bits, group = _kind(record)
    if engine == "onnx" and bits < 16:
        limit = ONNX_HEAD_BLOCK if fewest_bits <= 4 and name in (HEAD, EMBEDDING) else ONNX_LARGEST_BLOCK
        group = min(group & -group, limit, ONNX_LARGEST_OF_2_BITS if bits == 2 else limit)
    return _Kind(bits, group)


def _values(spec: ModelSpec) -> int:
    """Numbers that a token is while a block is computed, at its widest."""
    return 3 * spec.intermediate_size + spec.q_size + 2 * spec.kv_size + 4 * spec.hidden_size


def _tokenizer(spec: ModelSpec, size: int | None) -> int:
    given = TOKENIZER_ENTRY_BYTES * spec.vocab_size if size is None else size
    return max(int(TOKENIZER_TIMES * given) - TOKENIZER_REUSED, 0)
