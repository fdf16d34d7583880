"""An answer as blocks, one after the other: what the model thought, its text, and each call of a tool.

In: an answer, or its chunks one by one. Out: blocks, or the steps in which they open, grow and close. Both ways give
the same blocks. Knows nothing about how a protocol writes a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from edge.runtime.chunk import Answer, Chunk
from edge.runtime.messages import ToolCall


@dataclass(slots=True)
class Block:
    """Thoughts, a run of text, or a call."""

    index: int  # within the answer
    id: str = ""  # of the call
    name: str | None = None  # of the called tool; None: this is no call
    pieces: list[str] = field(default_factory=list)
    is_whole: bool = True  # a limit or a deadline cuts the last one
    is_thought: bool = False

    @property
    def content(self) -> str:
        """The text, or the arguments of the call."""
        return "".join(self.pieces)

    @property
    def call(self) -> ToolCall:
        """The call that this is."""
        assert self.name is not None
        return ToolCall(self.name, self.content, self.id)


class BlockStep(NamedTuple):
    """What happens to a block."""

    kind: Literal["open", "grow", "close"]
    block: Block
    piece: str = ""  # what it grows by


class BlockReader:
    """The blocks of one answer while it is written."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self._open: Block | None = None

    def push(self, chunk: Chunk) -> Iterator[BlockStep]:
        """Take a chunk. Its thoughts come before its text, and that before its calls."""
        for text, is_thought in ((chunk.reasoning, True), (chunk.text, False)):
            if text:
                last = self._open
                if last is None or last.name is not None or last.is_thought != is_thought:
                    yield from self._next(Block(len(self.blocks), is_thought=is_thought))
                yield from self._grow(text)
        for piece in chunk.calls:
            if piece.name:
                yield from self._next(Block(len(self.blocks), piece.id, piece.name))
            if piece.arguments:
                yield from self._grow(piece.arguments)

    def end(self, *, is_whole: bool, at_least_one: bool) -> Iterator[BlockStep]:
        """Close the last block. at_least_one: an empty answer becomes an empty text."""
        if at_least_one and not self.blocks:
            yield from self._next(Block(0))
        if self._open is not None:
            self._open.is_whole = is_whole
            yield from self._close()

    def _next(self, block: Block) -> Iterator[BlockStep]:
        yield from self._close()
        self.blocks.append(block)
        self._open = block
        yield BlockStep("open", block)

    def _grow(self, piece: str) -> Iterator[BlockStep]:
        assert self._open is not None, "a piece of a call before its name"
        self._open.pieces.append(piece)
        yield BlockStep("grow", self._open, piece)

    def _close(self) -> Iterator[BlockStep]:
        block, self._open = self._open, None
        if block is not None:
            yield BlockStep("close", block)


def blocks_of(answer: Answer, *, at_least_one: bool) -> list[Block]:
    """Return the blocks of a whole answer. at_least_one: as in `BlockReader.end`."""
    blocks = [Block(0, pieces=[answer.reasoning], is_thought=True)] if answer.reasoning else []
    if answer.text:
        blocks.append(Block(len(blocks), pieces=[answer.text]))
    for call in answer.tool_calls:
        blocks.append(Block(len(blocks), call.id, call.name, [call.arguments]))
    if at_least_one and not blocks:
        blocks.append(Block(0))
    if blocks:
        blocks[-1].is_whole = ended_by_itself(answer)
    return blocks


def ended_by_itself(answer: Answer) -> bool:
    """Whether neither a limit nor a deadline cut an answer."""
    return answer.finish_reason in ("stop", "tool_calls")
