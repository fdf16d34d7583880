"""Rules for GPUs: how the model is set up, their software, their memory, and what float16 does not hold.

In: a `Subject` and a `Target`. Out: what does not hold. Knows no devices of this machine; sources are beside each rule.
"""

from __future__ import annotations

from edge.runtime.lint.memory import memory_needed
from edge.runtime.lint.rule import Rule, Source
from edge.runtime.lint.subject import Subject
from edge.runtime.lint.target import Target, numbers_of
from edge.runtime.lint.words import gigabytes, some

OPENVINO = (2026, 4)
LARGEST_ALLOCATION = 4_294_959_104  # bytes, as drivers of Arc and UHD GPUs report it
CACHES = ("f16", "u8", "i8")
PRECISIONS = ("f32", "f16")


def _cache_precision(_subject: Subject, target: Target) -> str | None:
    if target.kv_precision is None or target.kv_precision in CACHES:
        return None
    return f"keys and values are to be {target.kv_precision}, a GPU takes {', '.join(CACHES)}"


def _precision(_subject: Subject, target: Target) -> str | None:
    if target.inference_precision is None or target.inference_precision in PRECISIONS:
        return None
    return f"the precision to compute in is {target.inference_precision}, a GPU takes {', '.join(PRECISIONS)}"


def _openvino(_subject: Subject, target: Target) -> str | None:
    if target.openvino is None or numbers_of(target.openvino) >= OPENVINO:
        return None
    return f"OpenVINO is {target.openvino}, expected {'.'.join(map(str, OPENVINO))} or newer"


def _memory(subject: Subject, target: Target) -> str | None:
    if target.memory_bytes is None:
        return None
    needed = memory_needed(subject, target)
    if needed <= target.memory_bytes:
        return None
    return (
        f"weights and a cache of {target.capacity} tokens take {gigabytes(needed)}, the GPU has "
        f"{gigabytes(target.memory_bytes)}"
    )


def _allocation(subject: Subject, _target: Target) -> str | None:
    large = [matrix for matrix in subject.matrices if matrix.nbytes > LARGEST_ALLOCATION]
    if not large:
        return None
    size = gigabytes(max(matrix.nbytes for matrix in large))
    return f"{some(large)} take up to {size} in one piece, a GPU gives {gigabytes(LARGEST_ALLOCATION)} at most"


def _plugin(_subject: Subject, target: Target) -> str | None:
    return None if target.plugin_problem is None else f"OpenVINO cannot use a GPU here: {target.plugin_problem}"


RULES = (
    Rule(
        id="gpu-cache-precision",
        family="GPU",
        severity="crash",
        title="Keys and values are f16, u8 or i8",
        why="The kernels of paged attention have no others, so that nothing implements the operation.",
        advice="leave out --kv-precision, or choose f16 or u8",
        sources=(
            Source(
                "github.com/openvinotoolkit/openvino: src/plugins/intel_gpu/src/runtime/execution_config.cpp",
                "OpenVINO 2026.4",
                "a cache of paged attention is i8 unless another precision is asked for",
            ),
            Source("github.com/openvinotoolkit/openvino/pull/27821", "2024-11-29", "u8 is taken for i8, as on CPUs"),
        ),
        evidence="read",
        seen="",
        check=_cache_precision,
    ),
    Rule(
        id="gpu-precision",
        family="GPU",
        severity="crash",
        title="The precision to compute in is f32 or f16",
        why="The plugin refuses others when it compiles.",
        advice="leave out the precision, or choose f32 or f16",
        sources=(
            Source(
                "github.com/openvinotoolkit/openvino: src/plugins/intel_gpu/src/runtime/execution_config.cpp",
                "commit 01ba5efb",
                "InferencePrecisionValidator takes f16 and f32",
            ),
        ),
        evidence="read",
        seen="",
        check=_precision,
    ),
    Rule(
        id="gpu-openvino",
        family="GPU",
        severity="garbage",
        title="OpenVINO is 2026.4 or newer",
        why=(
            "2026.3 gave wrong answers without an error for a 4-bit model on Arc 140V, B390 and B60; until March 2026, "
            "long prompts overflowed float16 in 4-bit products on iGPUs."
        ),
        advice="pip install --upgrade openvino",
        sources=(
            Source(
                "github.com/openvinotoolkit/openvino/issues/37419", "2026-08-15", "wrong in 2026.3, right in 2026.4"
            ),
            Source("github.com/openvinotoolkit/openvino/pull/34528", "2026-03-06", "overflow with long prompts, fixed"),
        ),
        evidence="read",
        seen="",
        check=_openvino,
    ),
    Rule(
        id="gpu-memory",
        family="GPU",
        severity="crash",
        title="Weights and cache fit into the GPU's memory",
        why="An iGPU uses the machine's memory; without room, the process is ended by the system or the driver.",
        advice="choose a shorter --max-context, a smaller --kv-precision or a smaller recipe",
        sources=(
            Source("github.com/openvinotoolkit/openvino/issues/34187", "2026-02-18", "memory fills up, all is killed"),
        ),
        evidence="arithmetic",
        seen="",
        check=_memory,
    ),
    Rule(
        id="gpu-allocation",
        family="GPU",
        severity="crash",
        title="No matrix takes more than 4 GiB",
        why="Drivers give no more in one piece, and OpenVINO stops with exceed_allocatable_mem_size.",
        advice="choose 8 or 4 bits for it (--embedding, --head)",
        sources=(
            Source(
                "github.com/openvinotoolkit/openvino.genai/issues/2406", "2025-07-06", "4,294,959,104 bytes at most"
            ),
            Source("github.com/ggml-org/llama.cpp/issues/29087", "2026-09-18", "the same on UHD Graphics 770"),
        ),
        evidence="arithmetic",
        seen="",
        check=_allocation,
        of_weights=True,
    ),
    Rule(
        id="gpu-plugin",
        family="GPU",
        severity="unknown",
        title="OpenVINO finds the GPU",
        why=(
            "The plugin needs an OpenCL driver (libOpenCL, intel-opencl-icd) that knows the GPU, and takes only "
            "devices that OpenCL calls GPUs."
        ),
        advice="install the GPU's driver, or take what follows as a check for another machine",
        sources=(
            Source(
                "docs.openvino.ai/2024/get-started/configurations/configurations-intel-gpu.html",
                "OpenVINO 2024",
                "a GPU needs its OpenCL driver",
            ),
        ),
        evidence="read",
        seen="without libOpenCL.so.1 the plugin does not load",
        check=_plugin,
    ),
)
