"""What a rule is: an id, when it applies, how bad it is to break it, where that is known from, and its check.

In: nothing. Out: the records that the tables of rules are made of. Knows no single rule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from edge.runtime.lint.findings import Finding, Severity
from edge.runtime.lint.subject import Subject
from edge.runtime.lint.target import Target

# How a rule's claim was checked by this project: by NPUW, the NPU plugin's pipeline, on a CPU; by numpy that rounds as
# a device does; by arithmetic on numbers that are known; or only read in the source that is named.
Evidence = Literal["NPUW on the CPU", "emulated", "arithmetic", "read"]
EVIDENCE: tuple[Evidence, ...] = get_args(Evidence)
Check = Callable[[Subject, Target], str | None]  # what was found and what was expected; None: the rule holds


@dataclass(frozen=True, slots=True)
class Source:
    """Where a rule is known from."""

    place: str  # a page, an issue, or a file at a commit
    when: str  # its date, version or commit
    says: str  # in a few words


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that a device needs, or is known to get wrong."""

    id: str
    family: str  # of devices: "NPU" or "GPU"
    severity: Severity  # of what happens where it does not hold
    title: str  # what has to hold
    why: str
    advice: str  # what to do where it does not hold
    sources: tuple[Source, ...]
    evidence: Evidence
    seen: str  # what this project saw of it, or did not
    check: Check
    of_weights: bool = False  # whether it is about the weights alone, and so tells which recipes suit a device

    def finding(self, subject: Subject, target: Target) -> Finding | None:
        """What it finds, if anything."""
        if target.family != self.family or (message := self.check(subject, target)) is None:
            return None
        # What only a compiler for hardware would get wrong does not keep anybody from trying the pipeline on a CPU.
        bears = target.emulated and self.evidence != "NPUW on the CPU"
        refused = self.severity in ("crash", "garbage") and not bears
        return Finding(self.id, self.severity, message, self.advice, self.sources[0].place, refused)
