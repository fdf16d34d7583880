"""Rules about what NPUs and GPUs need of a bundle, each with a source: told before anything is compiled for one.

findings = check(bundle, target_here("NPU", settings))
refuse(findings)  # raises LintError for what would crash or give garbage
"""

from edge.runtime.lint.findings import REFUSED, SEVERITIES, Finding, Severity, refuse
from edge.runtime.lint.registry import RULES, check, suits
from edge.runtime.lint.target import Target, target_here

__all__ = [
    "REFUSED",
    "RULES",
    "SEVERITIES",
    "Finding",
    "Severity",
    "Target",
    "check",
    "refuse",
    "suits",
    "target_here",
]
