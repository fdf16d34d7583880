"""How near decoding comes to what memory allows.

In: bytes that a step reads, how fast it was, and how fast the machine reads memory. Out: a `Roofline`. Knows nothing
about models, engines, or how any of it was measured.

Each step of decoding reads all weights once, whatever it does with them, and the keys and values of every sequence. A
machine cannot be faster than it reads these.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Roofline:
    """One speed beside the bandwidth of the machine that it was measured on."""

    weight_bytes: int  # that a step reads
    cache_bytes: int  # keys and values of all sequences that a step reads, the mean over the answers
    tokens_per_second: float  # of all sequences together
    machine_gbs: float  # GB/s that all cores read together
    sequences: int = 1  # that a step computes a token of

    @property
    def step_bytes(self) -> int:
        return self.weight_bytes + self.cache_bytes

    @property
    def gbs(self) -> float:
        """GB/s that were read."""
        return self.step_bytes * self.tokens_per_second / self.sequences / 1e9

    @property
    def share(self) -> float:
        """Of the machine's bandwidth. It can exceed 1 where a model fits into the processor's caches."""
        return self.gbs / self.machine_gbs

    @property
    def most_tokens_per_second(self) -> float:
        """What reading at the machine's bandwidth, and nothing else, would give."""
        return self.machine_gbs * 1e9 / self.step_bytes * self.sequences

    def to_json(self) -> dict[str, float]:
        return {
            "weight_bytes": self.weight_bytes,
            "cache_bytes": self.cache_bytes,
            "read_gbs": round(self.gbs, 2),
            "machine_gbs": self.machine_gbs,
            "share": round(self.share, 4),
            "most_tokens_per_second": round(self.most_tokens_per_second, 2),
        }


def mean_context(prompt_tokens: int, new_tokens: int) -> float:
    """Tokens whose keys and values a step of decoding reads, the mean over an answer's steps after the first token.

    The prompt gives the first token. The step that gives token n reads n - 1 new ones, the one it computes included.
    """
    return prompt_tokens + new_tokens / 2
