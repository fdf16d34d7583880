"""What a rule found, and the refusal of what would crash or give garbage.

In: findings. Out: the error that names them. Knows no rules, bundles or devices.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from edge.runtime.errors import LintError

# The process or the driver ends, or nothing compiles; answers are wrong without a word; it works, but badly; what
# happens is not known.
Severity = Literal["crash", "garbage", "slow", "unknown"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)
REFUSED: tuple[Severity, ...] = ("crash", "garbage")


@dataclass(frozen=True, slots=True)
class Finding:
    """One rule that does not hold."""

    rule: str  # its id, like "npu-width-64"; docs/lint.md has a section for each
    severity: Severity
    message: str  # what was found and what was expected
    advice: str  # what to do about it
    source: str  # where that is known from
    refused: bool  # whether a compile has to be refused; False for what only the emulated target would bear

    def __str__(self) -> str:
        return f"{self.rule}: {self.message}; {self.advice}"


def refuse(findings: Iterable[Finding]) -> None:
    """Raise LintError if a finding says that the result would be a crash or garbage; it names all such findings."""
    refused = [finding for finding in findings if finding.refused]
    if refused:
        raise LintError("; ".join(f"{finding} [{finding.severity}]" for finding in refused))
