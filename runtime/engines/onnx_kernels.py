"""Which of a bundle's ONNX graphs are run: those with the kernels that settings and onnxruntime's version ask for.

In: a bundle and settings. Out: `OnnxKernels`, and the type of a cache's numbers. Raises DeviceError for a version that
runs none of them. Knows nothing about sessions.
"""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import onnxruntime as ort

from edge.runtime.bundle import Bundle, OnnxKernels
from edge.runtime.errors import DeviceError
from edge.runtime.rotary import FloatKind
from edge.runtime.settings import CachePrecision, EngineSettings

MIN_VERSION = "1.23"  # the first whose GatherBlockQuantized supports 8 bits; 1.22.1 refuses the graph
JOINS_HEADS = "1.32"  # the version that such graphs were run with; 1.23.0 does not know GroupQueryAttention's `causal`
CACHE_TYPES: dict[CachePrecision, FloatKind] = {"f32": np.float32, "f16": np.float16}  # any width


def check_version() -> None:
    """Raise DeviceError for an onnxruntime that cannot run our graphs."""
    if _is_older_than(MIN_VERSION):
        raise DeviceError(
            f"onnxruntime {ort.__version__} is too old: its GatherBlockQuantized does not support 8 bits; expected "
            f"{MIN_VERSION} or newer; pip install --upgrade onnxruntime"
        )


def kernels_of(bundle: Bundle, settings: EngineSettings, threads: int | None) -> OnnxKernels:
    """The kernels to run a bundle with. threads: None where onnxruntime chooses how many.

    As many heads are joined as leave each thread a product of its own; older bundles have no graphs for that. With
    `reproducible`, a token alone has to give the same bits as among others, so it is not computed otherwise.
    """
    bits, heads = bundle.manifest.fewest_bits, bundle.manifest.spec.num_heads
    group = settings.dynamic_quantization_group
    int8 = bits < 16 and (bits <= 4 if group is None else group > 0)
    kernels = OnnxKernels(int8, settings.kv_precision == "f16")
    if kernels.float16_cache or settings.reproducible or threads is None or _is_older_than(JOINS_HEADS):
        return kernels
    joined = (replace(kernels, joined_heads=rows) for rows in range(heads // threads, 1, -1))
    return next((one for one in joined if bundle.onnx_parts(one)), kernels)


def _is_older_than(version: str) -> bool:
    found, wanted = (tuple(int(part) for part in re.findall(r"\d+", one)[:2]) for one in (ort.__version__, version))
    return found < wanted
