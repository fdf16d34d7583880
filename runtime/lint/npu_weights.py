"""Rules about the weights of a bundle for NPUs.

In: a `Subject` and a `Target`. Out: what does not hold. Knows no devices of this machine; sources are beside each rule.
"""

from __future__ import annotations

from edge.runtime.lint.rule import Rule, Source
from edge.runtime.lint.subject import Subject
from edge.runtime.lint.target import Target
from edge.runtime.lint.words import precisions, some

WIDTH = 64  # NPUW unpacks 4-bit weights in pieces of so many
GROUPS = (0, 128)  # a whole row, or 128
FEWEST_BLOCKS = 4
EXPORT_FOR_NPU = "export it again with a recipe for NPUs (`edge recipes` shows which), like int4-sym-channel"

GUIDE = Source(
    "docs.openvino.ai/2026/openvino-workflow-generative/inference-with-genai/inference-with-genai-on-npu.html",
    "OpenVINO 2026.3",
    "models have to be exported with 4 bits, symmetric, groups of 128 or whole rows, ratio 1.0",
)


def _four_bits(subject: Subject, _target: Target) -> str | None:
    wrong = [matrix for matrix in subject.block_matrices if matrix.bits != 4]
    if not wrong:
        return None
    return f"{some(wrong)} of blocks have {precisions(wrong)}, an NPU needs 4 bits in every one of them"


def _symmetric(subject: Subject, _target: Target) -> str | None:
    wrong = [matrix for matrix in subject.block_matrices if matrix.bits == 4 and not matrix.symmetric]
    if not wrong:
        return None
    return f"{some(wrong)} have zero points ({precisions(wrong)}), an NPU needs symmetric integers"


def _groups(subject: Subject, _target: Target) -> str | None:
    wrong = [m for m in subject.block_matrices if m.bits == 4 and m.group_size not in GROUPS]
    if not wrong:
        return None
    return f"{some(wrong)} have {precisions(wrong)}; documented for NPUs are groups of 128 and whole rows"


def _widths(subject: Subject, _target: Target) -> str | None:
    unpacked = [m for m in subject.matrices if m.bits == 4 and (m.group_size or not subject.says_rows)]
    wrong = [m for m in unpacked if (m.group_size or m.width) % WIDTH]
    if not wrong:
        return None
    sizes = ", ".join(map(str, sorted({m.group_size or m.width for m in wrong})[:4]))
    return (
        f"{some(wrong)} have groups or rows of {sizes} weights, NPUW unpacks 4 bits only in multiples of {WIDTH} and "
        "ends with an assertion"
    )


def _blocks(subject: Subject, _target: Target) -> str | None:
    grouped = any(m.bits == 4 and m.symmetric and m.group_size for m in subject.block_matrices)
    if not grouped or subject.spec.num_layers >= FEWEST_BLOCKS:
        return None
    return (
        f"the model has {subject.spec.num_layers} blocks with symmetric groups, expected {FEWEST_BLOCKS} or more: with "
        "fewer, NPUW finds no repeated blocks and may not compile them"
    )


def _low_rank(subject: Subject, _target: Target) -> str | None:
    added = [matrix for matrix in subject.matrices if matrix.rank]
    if not added:
        return None
    return (
        f"{some(added)} have a product of rank {added[0].rank} with 8 bits added; for NPUs, only models whose blocks "
        "have nothing but 4 bits are documented"
    )


def _vocabulary(subject: Subject, _target: Target) -> str | None:
    wide = [matrix for matrix in subject.matrices if not matrix.in_block and matrix.is_float]
    if not wide:
        return None
    return (
        f"embedding or head have {precisions(wide)}; with 8 bits, the head takes at most half of the memory, and half "
        "of the time to read it for every token"
    )


def _tagged(subject: Subject, _target: Target) -> str | None:
    groups = {matrix.group_size for matrix in subject.block_matrices if matrix.bits == 4}
    if subject.rt_info is None or "group_size" in subject.rt_info or groups != {0}:
        return None
    return (
        "the graph does not say how its weights were rounded (rt_info nncf/weight_compression), so that NPUW does not "
        "see that a whole row shares a scale"
    )


def _truly_tagged(subject: Subject, _target: Target) -> str | None:
    if not subject.rt_info or (said := subject.rt_info.get("group_size")) is None:
        return None
    groups = {matrix.group_size for matrix in subject.block_matrices if matrix.bits == 4}
    mode = subject.rt_info.get("mode", "")
    if said == "-1" and any(groups):
        return (
            f"the graph says that whole rows share a scale (group_size -1), its matrices have groups of {max(groups)}"
        )
    if said != "-1" and groups == {0}:
        return f"the graph says that {said} weights share a scale, but whole rows do (expected group_size -1)"
    if groups and mode.startswith("int8"):
        return f"the graph says that its weights are {mode}, but its blocks have 4 bits"
    return None


RULES = (
    Rule(
        id="npu-four-bits",
        family="NPU",
        severity="crash",
        title="Every matrix of the blocks has 4 bits",
        why=(
            "With 8-bit weights, the driver ends the process at the first token (0xC0000005, which nothing can catch) "
            "or the compiler fails. Other models with 8 bits have run in reports, slowly, or on one NPU and not "
            "another (openvino#38100); documented are 4 bits alone."
        ),
        advice=EXPORT_FOR_NPU,
        sources=(
            Source("github.com/openvinotoolkit/openvino/issues/35641", "2026-05", "8-bit weights end the process"),
            GUIDE,
        ),
        evidence="read",
        seen="bundles of int8-sym and fp16 do run through NPUW on the CPU: it is the NPU's compiler that cannot",
        check=_four_bits,
        of_weights=True,
    ),
    Rule(
        id="npu-symmetric",
        family="NPU",
        severity="crash",
        title="4-bit weights of the blocks have no zero points",
        why=(
            "Groups with zero points are outside of what NPUs support; the compiler aborts in "
            "StopLocationVerifierPass, as_convolution or ConvertViewOpsToDeclarations, and with it the process. Whole "
            "rows with zero points have run in one report, and are not documented either."
        ),
        advice=EXPORT_FOR_NPU,
        sources=(
            Source("github.com/openvinotoolkit/openvino/issues/34450", "2026-05-01", "confirmed as not supported"),
            Source("github.com/openvinotoolkit/npu_compiler/issues/303", "2026-06-20", "4-bit zero points in slices"),
            GUIDE,
        ),
        evidence="read",
        seen="bundles of int4-asym-g128 do run through NPUW on the CPU: it is the NPU's compiler that cannot",
        check=_symmetric,
        of_weights=True,
    ),
    Rule(
        id="npu-groups",
        family="NPU",
        severity="unknown",
        title="Groups have 128 weights, or a whole row",
        why="Other groups are not documented for NPUs; nobody has told how their compiler takes them.",
        advice="use int4-sym-channel, which has no groups, or a recipe whose groups of 128 divide every width",
        sources=(GUIDE,),
        evidence="read",
        seen="symmetric groups of 64 run through NPUW on the CPU, as accurate as groups of 128",
        check=_groups,
        of_weights=True,
    ),
    Rule(
        id="npu-width-64",
        family="NPU",
        severity="crash",
        title="Groups of 4-bit weights are multiples of 64 wide, and rows in graphs that do not say so",
        why=(
            'NPUW ends with "Assertion from_shape.back() % 64 == 0 failed" while it unpacks the weights. Where the '
            "graph says that whole rows share a scale (rt_info, group_size -1), it does not unpack them."
        ),
        advice="export it again with int4-sym-channel, which takes rows of any width",
        sources=(
            Source(
                "github.com/openvinotoolkit/openvino: src/plugins/intel_npu/src/plugin/npuw/util_xarch.cpp",
                "commit 6d4ba29d",
                "unpack_i4f16 asserts that the last dimension is a multiple of 64",
            ),
        ),
        evidence="NPUW on the CPU",
        seen="groups of 32 end so, and rows of 480 without rt_info; with it they do not, nor do 8 bits",
        check=_widths,
        of_weights=True,
    ),
    Rule(
        id="npu-blocks",
        family="NPU",
        severity="crash",
        title="A model with symmetric groups has four blocks or more",
        why='NPUW folds repeated blocks; with too few, compiling ends with "Model references undeclared parameters".',
        advice="use int4-sym-channel, or a model with more blocks: such small ones are for tests alone",
        sources=(
            Source(
                "openvino 2026.4.1 (22982), NPU plugin with NPUW_DEVICES=CPU",
                "2026-11-29",
                "int4-sym-g128 of GLM with 1 and with 3 blocks does not compile",
            ),
        ),
        evidence="NPUW on the CPU",
        seen="GLM with 1 and 3 blocks ends so; with 2 or 4 to 8, with whole rows, or GLM-4-0414 with 3, it does not",
        check=_blocks,
        of_weights=True,
    ),
    Rule(
        id="npu-low-rank",
        family="NPU",
        severity="unknown",
        title="No product of narrow matrices is added to a matrix",
        why=(
            "LoRA correction adds two narrow products of 8 bits to each matrix. NPUs are documented for blocks of 4 "
            "bits alone, and each product is two more operations for every matrix and token."
        ),
        advice="use a recipe without -lora",
        sources=(GUIDE,),
        evidence="read",
        seen="int4-sym-g128 with rank 16 runs through NPUW on the CPU, as accurate as without",
        check=_low_rank,
        of_weights=True,
    ),
    Rule(
        id="npu-vocabulary",
        family="NPU",
        severity="slow",
        title="Embedding and head have 8 bits or fewer",
        why="The head is read whole for every token: 1.2 GB of float16 for GLM-4-9B, where 8 bits are 0.6 GB.",
        advice="leave out --embedding and --head, or choose 8 bits",
        sources=(GUIDE,),
        evidence="arithmetic",
        seen="a float16 head runs through NPUW on the CPU",
        check=_vocabulary,
        of_weights=True,
    ),
    Rule(
        id="npu-rt-info",
        family="NPU",
        severity="slow",
        title="The graph says that whole rows share a scale, if they do",
        why=(
            "NPUW looks for rt_info nncf/weight_compression/group_size of -1 and only then lets the NPU multiply the "
            "integers of prompts before it scales them (NPUW_DQ)."
        ),
        advice="export it again; earlier versions of edgeglm did not write this",
        sources=(
            Source(
                "github.com/openvinotoolkit/openvino: src/plugins/intel_npu/src/plugin/npuw/llm_compiled_model.cpp",
                "commit e4a97607",
                "is_cw_compressed reads it, get_default_prefill_config acts on it",
            ),
        ),
        evidence="NPUW on the CPU",
        seen="the tag changes logits (their error from 3.4e-2 to 4.2e-2 of scale): another path is taken",
        check=_tagged,
    ),
    Rule(
        id="npu-rt-info-true",
        family="NPU",
        severity="unknown",
        title="What the graph says of its weights is so",
        why="NPUW chooses by rt_info how it takes the weights apart, and does not look at the weights for it.",
        advice="export it again; somebody has changed the graph, or another tool has written it",
        sources=(
            Source(
                "github.com/openvinotoolkit/openvino: src/plugins/intel_npu/src/plugin/npuw/llm_compiled_model.cpp",
                "commit e4a97607",
                "is_cw_compressed and is_int8_compressed read rt_info alone",
            ),
        ),
        evidence="NPUW on the CPU",
        seen="a false -1 on groups of 128 changes logits (4.6e-2 to 5.4e-2 of scale): NPUW believes it",
        check=_truly_tagged,
    ),
)
