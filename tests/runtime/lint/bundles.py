"""A bundle that suits every device, and what breaks each rule and no other.

In: a folder with an honest bundle, which may be changed. Out: the target to check it for. Hashes are made to fit again,
so that the rules alone can tell.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from edge.commands.recipes import GLM4_9B
from edge.runtime.bundle import MODEL_XML
from edge.runtime.lint import Target
from tests.forging import forge_file, forge_manifest

NPU = Target("NPU", platform="4000", driver="1004724", openvino="2026.4.1", memory_bytes=32 << 30, found=True)
GPU = Target("GPU", platform="v20.4.4", openvino="2026.4.1", memory_bytes=16 << 30, found=True)
WIDE = "layers.1.mlp.down.weight"  # 128 wide
TAG = '<nncf><weight_compression><mode value="{mode}" /><group_size value="{group}" /></weight_compression></nncf>'
Breaker = Callable[[Path], Target]


def tag(bundle: Path, group: int | None, mode: str = "int4_sym") -> None:
    """Let the graph say how its weights were rounded; None: nothing."""
    text = (bundle / MODEL_XML).read_text(encoding="utf-8")
    text = re.sub(r"\s*<nncf>.*?</nncf>", "", text, flags=re.DOTALL)
    if group is not None:
        text = text.replace("<rt_info>", f"<rt_info>{TAG.format(mode=mode, group=group)}", 1)
    forge_file(bundle, MODEL_XML, text.encode())


def tensor(bundle: Path, name: str = WIDE, **changes: Any) -> None:
    """Record something else of a matrix."""
    forge_manifest(bundle, lambda data: data["tensors"][name].update(changes))


def spec(bundle: Path, **changes: Any) -> None:
    """Record something else of the model, and as many folds as it has blocks."""

    def change(data: dict[str, Any]) -> None:
        data["spec"].update(changes)
        for name, value in data["float16"].items():
            if isinstance(value, list) and name != "left":
                data["float16"][name] = [0] * data["spec"]["num_layers"]

    forge_manifest(bundle, change)


def _weights(bundle: Path, **changes: Any) -> Target:
    tensor(bundle, **changes)
    return NPU


def _groups(bundle: Path) -> Target:
    tensor(bundle, precision="int4-sym-g64")
    tag(bundle, 64)
    spec(bundle, num_layers=6)
    return NPU


def _blocks(bundle: Path) -> Target:
    tensor(bundle, precision="int4-sym-g128", shape=[64, 256])
    tag(bundle, 128)
    return NPU


def _tagged(bundle: Path, group: int | None) -> Target:
    tag(bundle, group)
    return NPU


def _widths(bundle: Path) -> Target:
    """Rows and groups, so that the graph cannot say that all are rows."""
    tensor(bundle, shape=[64, 96])
    tensor(bundle, "layers.0.mlp.down.weight", precision="int4-sym-g128", shape=[64, 256])
    tag(bundle, None)
    spec(bundle, num_layers=6)
    return NPU


def _large(bundle: Path) -> Target:
    spec(bundle, **GLM4_9B.to_json())
    return replace(NPU, memory_bytes=16 << 30, max_prompt=2048)


def _allocation(bundle: Path) -> Target:
    tensor(bundle, "lm_head.weight", nbytes=5 << 30)
    return GPU


def _float16(target: Target, bundle: Path, **changes: Any) -> Target:
    """Record something else of what was measured; nothing: no measurement at all."""
    if changes:
        forge_manifest(bundle, lambda data: data["float16"].update(changes))
    else:
        forge_manifest(bundle, lambda data: data.pop("float16"))
    return target


def _only(target: Target, **changes: Any) -> Breaker:
    return lambda _: replace(target, **changes)


BREAKERS: dict[str, Breaker] = {
    "npu-four-bits": partial(_weights, precision="int8-sym"),
    "npu-symmetric": partial(_weights, precision="int4-asym-channel"),
    "npu-groups": _groups,
    "npu-width-64": _widths,
    "npu-blocks": _blocks,
    "npu-low-rank": partial(_weights, note="with a product of rank 16 added"),
    "npu-vocabulary": partial(_weights, name="lm_head.weight", precision="fp16"),
    "npu-rt-info": partial(_tagged, group=None),
    "npu-rt-info-true": partial(_tagged, group=128),
    "npu-prompt-3720": _only(NPU, platform="3720", max_prompt=2048),
    "npu-memory": _only(NPU, memory_bytes=1000),
    "npu-memory-16gb": _large,
    "npu-driver": _only(NPU, driver="1003053"),
    "npu-openvino": _only(NPU, openvino="2026.3.0"),
    "npu-plugin": _only(NPU, plugin_problem="its plugin loads and finds no such device"),
    "npu-float32-cache": _only(NPU, kv_precision="f32"),
    "npu-chunk": _only(NPU, chunk=96),
    "gpu-cache-precision": _only(GPU, kv_precision="bf16"),
    "gpu-precision": _only(GPU, inference_precision="bf16"),
    "gpu-openvino": _only(GPU, openvino="2026.3.0"),
    "gpu-memory": _only(GPU, memory_bytes=1000),
    "gpu-allocation": _allocation,
    "gpu-plugin": _only(GPU, plugin_problem="libOpenCL.so.1: cannot open shared object file"),
    "npu-float16-made": partial(_float16, NPU, device="GPU"),
    "npu-float16-range": partial(_float16, NPU, headroom={"residual": -0.5, "squares of the residual": -9.0}),
    "npu-float16-run": partial(_float16, NPU, kld=None),
    "gpu-float16-made": partial(_float16, GPU),
    "gpu-float16-range": partial(_float16, GPU, headroom={"input of down": -0.01}),
    "gpu-float16-run": partial(_float16, GPU, kld=0.02),
    "gpu-group-sums": partial(_float16, GPU, headroom={"sums of gate_up": -1.5}),
}
