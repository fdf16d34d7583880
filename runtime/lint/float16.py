"""Rules about float16, which GPUs and NPUs compute in: whether values were measured, and whether they fit.

In: a `Subject` and a `Target`. Out: what does not hold. What an export measured and folded is in the bundle's record;
how is in export/float16/. Knows no devices of this machine.
"""

from __future__ import annotations

from edge.runtime.lint.rule import Rule, Source
from edge.runtime.lint.subject import Subject
from edge.runtime.lint.target import Target

LARGEST = 65_504  # float16's
SUMS, SQUARES = "sums of ", "squares of "  # begin the names of values that only some kernels keep in float16

GLM = Source("github.com/intel/ipex-llm/pull/12455", "2024-11-27", "GLM-4-9B overflows in its last MLP but one on GPUs")
EXCLAMATIONS = Source("github.com/intel/ipex-llm/pull/11299", "2024-06-13", 'all that GLM-4-9B says is "!!!!"')
ADVICE = "export it again with --device {}"


def _made(subject: Subject, target: Target) -> str | None:
    record = subject.float16
    if subject.planned or (record is not None and record.device in (target.family, "NPU")):
        return None
    if record is None:
        return f"its values were not measured, so nobody knows whether all of them are below {LARGEST:,}"
    return f"it was made for a {record.device}, whose norms are known to compute in float32"


def _range(subject: Subject, _target: Target) -> str | None:
    if subject.float16 is None:
        return None
    over = {
        kind: bits
        for kind, bits in subject.float16.headroom.items()
        if bits < 0 and not kind.startswith((SUMS, SQUARES))
    }
    if not over:
        return None
    worst = min(over, key=lambda kind: over[kind])
    return f"{', '.join(over)} pass {LARGEST:,} on the text that was measured ({worst} by {-over[worst]:.1f} bits)"


def _run(subject: Subject, _target: Target) -> str | None:
    record = subject.float16
    if record is None or (record.kld is not None and record.kld <= record.bound):
        return None
    found = "is not finite" if record.kld is None else f"is {record.kld:.2g} nats/token from exact arithmetic"
    return f"emulated {record.numerics} {found}, expected {record.bound:g} or less"


def _sums(subject: Subject, _target: Target) -> str | None:
    if subject.float16 is None:
        return None
    over = [kind for kind, bits in subject.float16.headroom.items() if bits < 0 and kind.startswith(SUMS)]
    if not over:
        return None
    return f"{', '.join(over)} over a group pass {LARGEST:,} before they are scaled"


def _rules(family: str) -> tuple[Rule, ...]:
    name = family.lower()
    return (
        Rule(
            id=f"{name}-float16-made",
            family=family,
            severity="unknown",
            title=f"Values were measured and folded for {'an NPU' if family == 'NPU' else 'a GPU'}",
            why=(
                "GLM-4-9B passes float16's largest number, and then says nothing but exclamation marks. An export for "
                "the device measures that on text and moves powers of two between weights."
            ),
            advice=ADVICE.format(family),
            sources=(EXCLAMATIONS, GLM),
            evidence="emulated",
            seen="checkpoints that were made to overflow: infinite in emulated float16 before folds, right with them",
            check=_made,
        ),
        Rule(
            id=f"{name}-float16-range",
            family=family,
            severity="garbage",
            title="Values that were measured fit into float16",
            why="What passes 65,504 is infinite, and whatever is computed from it is not a number.",
            advice=f"export it again with --device {family}; if it was, use the CPU",
            sources=(GLM, EXCLAMATIONS),
            evidence="emulated",
            seen="a residual stream that is 2^14 times as large is NaN, in numpy and through NPUW on the CPU",
            check=_range,
        ),
        Rule(
            id=f"{name}-float16-run",
            family=family,
            severity="unknown",
            title="The emulated run of the export stays within its bound",
            why=(
                "Numpy rounds as the worst kernel that is known does: norms that overflow give finite garbage, which "
                "no check for infinity finds."
            ),
            advice="measure it on the device before you rely on it, or use the CPU",
            sources=(
                Source(
                    "export/float16/targets.py", "OpenVINO 2026.4", "which numerics stand for which device, and why"
                ),
            ),
            evidence="emulated",
            seen="honest runs of the demo's model give 5e-5 to 7e-5 nats/token, norms that overflow 6.3",
            check=_run,
        ),
    )


RULES = (
    *_rules("NPU"),
    *_rules("GPU"),
    Rule(
        id="gpu-group-sums",
        family="GPU",
        severity="garbage",
        title="Sums over a group of 4-bit weights fit into float16",
        why=(
            "Some kernels sum activations times integers of a group in float16 and scale afterwards: NaN for prompts "
            "of certain lengths. The plugin's own scaling is off for language models."
        ),
        advice="export it again with --device GPU, or with whole rows or 8 bits",
        sources=(
            Source("github.com/openvinotoolkit/openvino/pull/34704", "2026-03-15", "NaN on Arc; was not merged"),
            Source("github.com/openvinotoolkit/openvino/pull/27291", "2024-10-29", "the same, cured by scaling"),
            Source("github.com/openvinotoolkit/openvino/pull/28632", "2025-01-23", "scaling is off for LLMs"),
        ),
        evidence="emulated",
        seen="sums of 207,564 are infinite in numpy, and right after folds",
        check=_sums,
    ),
)
