"""Memory that nobody but an engine sees: one block, which is a whole context.

In: its size. Out: a `BlockMemory` whose content can be neither copied nor saved. Knows nothing about engines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Never

from edge.runtime.arrays import Array
from edge.runtime.errors import CacheError
from edge.runtime.kv.memory import Form


class OpaqueMemory:
    """The one context of an engine that keeps keys and values to itself."""

    def __init__(self, block_bytes: int) -> None:
        self.block_bytes = block_bytes

    def forms(self, num_tokens: int) -> list[Form]:
        _refuse(num_tokens)

    def read(self, block: int, num_tokens: int) -> list[Array]:  # noqa: ARG002  (there is one)
        _refuse(num_tokens)

    def write(self, block: int, num_tokens: int, arrays: Sequence[Array]) -> None:  # noqa: ARG002
        _refuse(num_tokens)

    def copy(self, source: int, target: int, num_tokens: int) -> None:  # noqa: ARG002
        _refuse(num_tokens)

    def blank(self, blocks: Sequence[int]) -> None:
        """Do nothing: what an earlier sequence left is never shown."""

    def give_back(self, block: int) -> None:
        """Do nothing: the engine keeps its memory."""


def _refuse(num_tokens: int) -> Never:
    raise CacheError(
        f"{num_tokens} tokens: this engine keeps keys and values to itself, so that they can be neither copied nor "
        "saved; use another engine"
    )
