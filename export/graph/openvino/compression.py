"""What a graph says about how its weights were compressed, in NNCF's words.

In: weights by canonical name. Out: entries of rt_info at nncf/weight_compression, which devices choose by: the NPU
plugin looks for a group_size of -1 and an int8 mode, and not at the weights. Knows nothing about recipes.

NNCF speaks of the blocks' matrices, and of all of them at once. Where they differ, nothing is said of what differs: a
device then takes the weights as they are.
"""

from __future__ import annotations

from collections.abc import Mapping

from edge.export.tensors import PackedTensor, Weight

COMPRESSION = ("nncf", "weight_compression")
PER_ROW = -1


def compression_of(weights: Mapping[str, Weight]) -> dict[str, str]:
    """Return "mode" and "group_size" as far as they hold for the matrices of all blocks, 4 bits before 8."""
    packed = [w for name in weights if name.startswith("layers.") and isinstance(w := weights[name], PackedTensor)]
    if not packed:
        return {}
    bits = min(tensor.bits for tensor in packed)
    main = [tensor for tensor in packed if tensor.bits == bits]
    found = {}
    symmetric = {tensor.zero_point is None for tensor in main}
    if len(symmetric) == 1:
        found["mode"] = f"int{bits}_{'sym' if symmetric.pop() else 'asym'}"
    sizes = {tensor.group_size for tensor in main}
    if all(tensor.groups == 1 for tensor in packed):
        found["group_size"] = str(PER_ROW)
    elif len(sizes) == 1 and any(tensor.groups > 1 for tensor in main):
        found["group_size"] = str(sizes.pop())
    return found
