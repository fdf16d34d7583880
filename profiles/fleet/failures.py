"""What is lost, and when: replicas that share a fate, such as those of one rack.

In: which share of a fleet, when, and for how long. Out: the replicas. Knows nothing about requests.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge.runtime.errors import SettingsError


@dataclass(frozen=True, slots=True)
class Outage:
    """Neighbouring replicas end at once, with what they hold, and are back after a while with empty caches."""

    at_s: float
    share: float  # of all replicas
    for_s: float
    resumes: bool = True  # whether an answer that has begun goes on elsewhere from its tokens; else it is broken

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or self.at_s < 0 or self.for_s <= 0:
            raise SettingsError(
                f"an outage of {self.share:g} of all replicas at {self.at_s:g} s for {self.for_s:g} s, expected a "
                "share above 0 and up to 1, and a time to be back after"
            )

    def replicas(self, count: int) -> range:
        """Those of a fleet that are lost: at least one, and not all unless all are asked for."""
        lost = max(round(self.share * count), 1)
        return range(lost if self.share == 1 else min(lost, max(count - 1, 1)))
