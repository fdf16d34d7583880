"""All rules, and what checks a bundle or a plan against them.

In: a bundle or the weights of a planned export, and a target. Out: findings, the worst first. To add a rule, write a
record in the table of its device, and a bundle that breaks it in `tests/runtime/lint/`; docs/lint.md is made of these.
"""

from __future__ import annotations

from collections.abc import Mapping

from edge.runtime.bundle import Bundle
from edge.runtime.lint import float16, gpu, npu_device, npu_weights
from edge.runtime.lint.findings import SEVERITIES, Finding
from edge.runtime.lint.rule import Rule
from edge.runtime.lint.subject import Subject, planned_subject, subject_of
from edge.runtime.lint.target import Target
from edge.runtime.spec import ModelSpec
from edge.runtime.tensor_records import TensorRecord

RULES: dict[str, Rule] = {rule.id: rule for rule in (*npu_weights.RULES, *npu_device.RULES, *gpu.RULES, *float16.RULES)}


def check(bundle: Bundle, target: Target) -> tuple[Finding, ...]:
    """Return what is wrong with a bundle for a target, the worst first. Reads no weights. Raises BundleError."""
    return findings(subject_of(bundle), target)


def suits(spec: ModelSpec, tensors: Mapping[str, TensorRecord], device: str, recipe: str = "") -> tuple[Finding, ...]:
    """Return what is wrong with these weights on any device of this kind, the worst first; () if they suit it.

    tensors: a manifest's, or the `record()` of every assignment of a planned export.
    """
    found = _found(planned_subject(spec, tensors, recipe), Target(device.upper()), weights_alone=True)
    return tuple(finding for finding in found if finding.severity != "slow")


def findings(subject: Subject, target: Target) -> tuple[Finding, ...]:
    """Return what the rules find, the worst first."""
    return _found(subject, target, weights_alone=False)


def _found(subject: Subject, target: Target, *, weights_alone: bool) -> tuple[Finding, ...]:
    rules = [rule for rule in RULES.values() if rule.of_weights or not weights_alone]
    found = [finding for rule in rules if (finding := rule.finding(subject, target)) is not None]
    return tuple(sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)))
