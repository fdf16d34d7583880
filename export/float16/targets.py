"""What is known of the devices that compute in float16, and what a bundle for one of them gets.

In: nothing. Out: `TARGETS`, by the kind of device. None of it was seen on a device: it was read, at the places that are
named, or follows from arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edge.export.graph.emulated import Numerics

# Of an emulated run from exact arithmetic on the same weights, nats/token. Honest runs of the demo's model give 5e-5 to
# 7e-5, one whose norms overflow 6.3, and one that is not finite nothing (docs/float16.md).
KLD_BOUND = 1e-2


@dataclass(frozen=True, slots=True)
class Target:
    """A kind of device. The emulation takes the worst that is known of one of its kernels for all."""

    safe_norms: bool  # its norms are not known to compute in float32
    numerics: Numerics


# GPU: the kernel of a fused RMS norm accumulates in float32 whatever its inputs are (openvino
# src/plugins/intel_gpu/src/kernel_selector/kernels/rms/rms_kernel_base.cpp, GetAccumulatorType, at 017e42648f46). The
# safe form would not be fused. Some of its kernels for 4 bits sum a group in float16 before they scale it (openvino
# pull requests 27291 and 34704).
# NPU: NPUW asks the compiler for higher precision by names of operations, "Sqrt,Power,ReduceMean,Add_RMSNorm"
# (src/plugins/intel_npu/src/plugin/npuw/llm_compiled_model.cpp, get_baseline_common_config). The sum with eps is not
# among them, since only optimum-intel's graphs have one called so, and no page says what a compiler makes of the rest.
TARGETS: Mapping[str, Target] = {
    "GPU": Target(
        safe_norms=False,
        numerics=Numerics("float16, sums of groups as well", "float16", group_sums=True),
    ),
    "NPU": Target(
        safe_norms=True,
        numerics=Numerics(
            "float16, sums of groups and steps of norms as well", "float16", stepwise_norms=True, group_sums=True
        ),
    ),
}
