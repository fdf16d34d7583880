"""Groups of weights that share a scale, as ONNX's operators take them."""

from __future__ import annotations

from edge.runtime.errors import RecipeError

# Weights that share a scale in onnxruntime's kernels (core/mlas/lib/qnbitgemm.cpp); larger groups repeat theirs.
ONNX_BLOCKS = range(16, 256 + 1)


def block_size(name: str, group_size: int, limit: int = ONNX_BLOCKS[-1]) -> int:
    """Weights that share a scale in ONNX's operators: a power of two up to `limit` in a group. Raises RecipeError."""
    size = min(group_size & -group_size, 1 << limit.bit_length() - 1)
    if size < ONNX_BLOCKS[0]:
        raise RecipeError(
            f"{name} has groups of {group_size} weights, ONNX's operators take multiples of {ONNX_BLOCKS[0]}; "
            "use --format openvino, or a recipe with smaller groups"
        )
    return size
