"""Rules about an NPU, its software, its memory and how the model is set up on it.

In: a `Subject` and a `Target`. Out: what does not hold. Knows no devices of this machine; sources are beside each rule.
"""

from __future__ import annotations

from datetime import UTC, date, datetime

from edge.runtime.lint.memory import memory_needed
from edge.runtime.lint.npu_weights import GUIDE
from edge.runtime.lint.rule import Rule, Source
from edge.runtime.lint.subject import Subject
from edge.runtime.lint.target import Target, numbers_of
from edge.runtime.lint.words import gigabytes

GARBLED_FROM = {"3720": 2000}  # tokens of a prompt, about
LARGE_MODEL = 7_000_000_000  # parameters
LARGE_PROMPT = 1024  # tokens
LARGE_MEMORY = 17_500_000_000  # bytes; what machines with 16 GiB have, and a little
OPENVINO = (2026, 4)
WINDOWS_DRIVER = (32, 0, 100, 3104)
LINUX_DRIVER = date(2024, 12, 1)  # 1.10.1 was released on 2024-12-18
_SECONDS = (
    1_000_000_000  # a Linux driver's version is the second of 1970 in which it was built, a Windows driver's less
)


def _prompt(_subject: Subject, target: Target) -> str | None:
    limit = GARBLED_FROM.get(target.platform or "")
    if limit is None or target.max_prompt <= limit:
        return None
    return (
        f"the longest prompt is {target.max_prompt} tokens, an NPU {target.platform} gives garbled text from about "
        f"{limit} on, whatever is set"
    )


def _memory(subject: Subject, target: Target) -> str | None:
    if target.memory_bytes is None:
        return None
    needed = memory_needed(subject, target)
    if needed <= target.memory_bytes:
        return None
    return (
        f"weights and a static cache of {target.capacity} tokens take {gigabytes(needed)}, there are "
        f"{gigabytes(target.memory_bytes)}"
    )


def _documented_memory(subject: Subject, target: Target) -> str | None:
    known, parameters = target.memory_bytes, subject.spec.num_parameters
    if known is None or known > LARGE_MEMORY or target.max_prompt <= LARGE_PROMPT or parameters < LARGE_MODEL:
        return None
    return (
        f"the model has {parameters / 1e9:.1f} billion parameters and prompts of up to {target.max_prompt} tokens, for "
        f"which more than 16 GB may be needed; there are {gigabytes(known)}"
    )


def _driver(_subject: Subject, target: Target) -> str | None:
    numbers = numbers_of(target.driver or "")
    if len(numbers) == 1 and numbers[0] >= _SECONDS:
        built = datetime.fromtimestamp(numbers[0], UTC).date()
        if built >= LINUX_DRIVER:
            return None
        return f"the driver was built on {built}, before 1.10.1, the first for language models on NPU 4000"
    if len(numbers) == 1:  # OpenVINO tells the last two of a Windows driver's four numbers as one: 1004512
        numbers = (32, 0, *divmod(numbers[0], 10_000))
    if len(numbers) < len(WINDOWS_DRIVER) or numbers >= WINDOWS_DRIVER:
        return None
    return f"the driver is {'.'.join(map(str, numbers))}, expected {'.'.join(map(str, WINDOWS_DRIVER))} or newer"


def _openvino(_subject: Subject, target: Target) -> str | None:
    if target.openvino is None or numbers_of(target.openvino) >= OPENVINO:
        return None
    return f"OpenVINO is {target.openvino}, expected {'.'.join(map(str, OPENVINO))} or newer"


def _plugin(_subject: Subject, target: Target) -> str | None:
    return None if target.plugin_problem is None else f"OpenVINO cannot use an NPU here: {target.plugin_problem}"


def _float32_cache(_subject: Subject, target: Target) -> str | None:
    if target.kv_precision != "f32" or target.chunk >= target.max_prompt:
        return None
    return (
        f"keys and values are to be float32 and prompts are computed in chunks of {target.chunk} tokens; NPUW keeps "
        "those of chunks in float16"
    )


def _chunk(_subject: Subject, target: Target) -> str | None:
    if target.chunk >= target.max_prompt or (target.chunk > 0 and not target.chunk & (target.chunk - 1)):
        return None
    return f"prompts are to be computed in chunks of {target.chunk} tokens, expected a power of two"


RULES = (
    Rule(
        id="npu-prompt-3720",
        family="NPU",
        severity="garbage",
        title="Prompts on an NPU 3720 stay below about 2,000 tokens",
        why="Longer ones are computed without an error, and the answer is garbled text, whatever MAX_PROMPT_LEN says.",
        advice="choose a shorter longest prompt, like 1024",
        sources=(
            Source(
                "github.com/openvinotoolkit/openvino.genai/issues/3255",
                "2026-01-30",
                "Core Ultra 7 155H, driver 32.0.100.4512, OpenVINO 2025.4.1",
            ),
        ),
        evidence="read",
        seen="2,100 tokens are right through NPUW on the CPU (5.7e-3 of scale): it is the NPU that is wrong",
        check=_prompt,
    ),
    Rule(
        id="npu-memory",
        family="NPU",
        severity="crash",
        title="Weights and the static cache fit into memory",
        why=(
            "An NPU uses the machine's memory, and its cache is taken whole when the model is compiled. Without room, "
            "the driver fails with ZE_RESULT_ERROR_OUT_OF_HOST_MEMORY or the system ends the process."
        ),
        advice="choose shorter prompts and answers or a smaller recipe, or close other programs",
        sources=(
            Source(
                "github.com/openvinotoolkit/openvino/issues/29095", "2025-02-20", "14B runs out of memory on an NPU"
            ),
            Source("github.com/openvinotoolkit/openvino/issues/25241", "2024-06-27", "the driver's own limit is lower"),
        ),
        evidence="arithmetic",
        seen="",
        check=_memory,
    ),
    Rule(
        id="npu-memory-16gb",
        family="NPU",
        severity="unknown",
        title="Large models with long prompts have more than 16 GB",
        why="More than 16 GB may be needed for prompts beyond 1,024 tokens with models beyond 7 billion parameters.",
        advice="keep the longest prompt at 1024, or use a machine with more memory",
        sources=(GUIDE,),
        evidence="read",
        seen="",
        check=_documented_memory,
    ),
    Rule(
        id="npu-driver",
        family="NPU",
        severity="unknown",
        title="The driver is not older than language models on NPUs",
        why="With older ones, execution fails, either silently or with errors.",
        advice="install the latest NPU driver",
        sources=(
            Source(GUIDE.place, GUIDE.when, "32.0.100.3104 or newer on Windows"),
            Source("github.com/intel/linux-npu-driver/pull/63", "2024-12-18", "1.10.1 enables LLMs on Lunar Lake"),
        ),
        evidence="read",
        seen="",
        check=_driver,
    ),
    Rule(
        id="npu-openvino",
        family="NPU",
        severity="crash",
        title="OpenVINO is 2026.4 or newer",
        why="Older ones refuse the properties that this engine sets, or compute prompts in other ways.",
        advice="pip install --upgrade openvino",
        sources=(
            Source("pyproject.toml", "2026.4", "what edgeglm is developed with"),
            Source(GUIDE.place, GUIDE.when, "prompts in chunks came with 2025.3"),
        ),
        evidence="read",
        seen="",
        check=_openvino,
    ),
    Rule(
        id="npu-plugin",
        family="NPU",
        severity="unknown",
        title="OpenVINO finds the NPU",
        why="Without the driver, or on a machine without an NPU, OpenVINO lists no such device.",
        advice="install the NPU driver, or take what follows as a check for another machine",
        sources=(
            Source(
                "docs.openvino.ai/2026/openvino-workflow/running-inference/inference-devices-and-modes/npu-device.html",
                "OpenVINO 2026",
                "an NPU needs its driver",
            ),
        ),
        evidence="read",
        seen="the plugin loads without an NPU and finds no device",
        check=_plugin,
    ),
    Rule(
        id="npu-float32-cache",
        family="NPU",
        severity="garbage",
        title="Keys and values are not float32 while prompts are computed in chunks",
        why="NPUW keeps those of earlier chunks in float16: a mismatch of types, NaN, or wrong answers without a word.",
        advice="leave out --kv-precision, or make the chunk as long as the longest prompt",
        sources=(
            Source(
                "openvino 2026.4.1 (22982), NPU plugin with NPUW_DEVICES=CPU",
                "2026-11-29",
                "KV_CACHE_PRECISION f32 with chunks: ParameterMismatch, NaN, or errors as large as the logits",
            ),
        ),
        evidence="NPUW on the CPU",
        seen='"Failed to set tensor for input with precision: f32" with chunks of 64; right with a single chunk',
        check=_float32_cache,
    ),
    Rule(
        id="npu-chunk",
        family="NPU",
        severity="crash",
        title="Chunks of a prompt are a power of two",
        why="NPUW refuses to compile other sizes.",
        advice="choose 128, 256, 512 or 1024",
        sources=(
            Source("github.com/openvinotoolkit/openvino/pull/31860", "2025-08-23", "throws if it is not a power of 2"),
        ),
        evidence="NPUW on the CPU",
        seen='"chunk size (96) is not power of 2"',
        check=_chunk,
    ),
)
