"""What a replica's KV cache keeps of earlier requests, and the room that it has, counted in blocks.

In: requests that begin, grow and end. Out: how many tokens of a prompt need not be read. As in the real cache, the
tokens of a system prompt are shared by all, those of a conversation by its turns, and what was used least recently goes
first. Knows nothing about time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from edge.profiles.fleet.workload import Ask


class Kept:
    """The blocks of one replica."""

    def __init__(self, blocks: int, block: int) -> None:
        self.total, self.block = blocks, block
        self.free = blocks
        self.has_system = False  # the keys and values of the system prompt
        self.system_blocks = 0
        self._kept: OrderedDict[int, tuple[int, int]] = OrderedDict()  # conversation -> its tokens, its own blocks
        self._evictable = 0

    @property
    def room(self) -> int:
        """Blocks that are free or can be made so. A system prompt stays: nothing is used more recently."""
        return self.free + self._evictable

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block)

    def count_match(self, ask: Ask) -> int:
        """How many of a prompt's tokens are kept; the last one is always read, as its logits are needed."""
        tokens, _ = self._kept.get(ask.conversation, (0, 0))
        return min(max(tokens, ask.system_tokens if self.has_system else 0), ask.length - 1)

    def fits(self, ask: Ask, running: Iterable[Ask]) -> bool:
        """Whether a request's tokens so far have room, and each answer, this one included, has a block to grow into."""
        others = list(running)
        needed = self.blocks_for(min(ask.length + 1, ask.longest))
        if others:
            needed += self.blocks_for(ask.longest) > needed
        return needed - (self._shared(ask) if self.has_system else 0) <= self.room - sum(map(self._promised, others))

    def _promised(self, ask: Ask) -> int:
        """Blocks that a running request may still take before another one is let in."""
        has = ask.blocks + (self._shared(ask) if ask.shares_system else 0)
        soon = max(has, self.blocks_for(min(ask.length + 1, ask.longest)))
        return soon - has + (self.blocks_for(ask.longest) > soon)

    def begin(self, ask: Ask) -> None:
        """Start a request from what is kept of its conversation, or of the system prompt."""
        ask.computed = self.count_match(ask)
        _, ask.blocks = self._kept.pop(ask.conversation, (0, 0))
        self._evictable -= ask.blocks
        ask.shares_system = self.has_system
        self.grow(ask, ask.computed)

    def grow(self, ask: Ask, tokens: int) -> bool:
        """Make room for so many tokens of a request in all; False if there is none."""
        shared = self._shared(ask) if ask.shares_system else 0
        missing = self.blocks_for(tokens) - shared - ask.blocks
        if missing <= 0:
            return True
        while self.free < missing and self._kept:
            _, (_, own) = self._kept.popitem(last=False)
            self.free += own
            self._evictable -= own
        if self.free < missing:
            return False
        self.free -= missing
        ask.blocks += missing
        return True

    def note_read(self, ask: Ask) -> None:
        """A prompt has been read: others may share what it begins with."""
        if not ask.system_tokens or ask.shares_system:
            return
        own = min(self._shared(ask), ask.blocks)
        ask.blocks -= own
        if self.has_system:
            self.free += own
        else:
            self.system_blocks = own
        self.has_system = ask.shares_system = True

    def release(self, ask: Ask) -> None:
        """A request has ended, or gives way: what was computed of it is kept."""
        if ask.system_tokens and not ask.shares_system:  # it was still being read
            self.free += ask.blocks
        else:
            _, before = self._kept.pop(ask.conversation, (0, 0))
            self._evictable += ask.blocks - before
            self.free += before
            self._kept[ask.conversation] = (ask.computed, ask.blocks)
        ask.blocks = ask.computed = 0

    def check_integrity(self, running: Iterable[Ask]) -> None:
        """Assert that every block is free, the system prompt's, kept, or a running request's."""
        kept = sum(own for _, own in self._kept.values())
        assert kept == self._evictable, "the count of kept blocks is wrong"
        held = sum(ask.blocks for ask in running)
        assert self.free + self.system_blocks + kept + held == self.total, "a block is lost"
        assert self.free >= 0, "more blocks than there are"

    def _shared(self, ask: Ask) -> int:
        """Full blocks of the system prompt."""
        return ask.system_tokens // self.block
