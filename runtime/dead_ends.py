"""Dead ends in a constraint: a text that it allows, but that nothing may follow, not even the end.

In: llguidance's matcher over single bytes, and words from the constraint. Out: such a text, or None. This is a search
of some milliseconds, not a proof: it tries every byte where few may come, one of each kind where many may, and every
place once. Knows nothing about schemas or models.

When it reads a constraint, the library finds most of those that nothing can match. It does not find a property name
that can never come after a comma (`patternProperties` that `properties` has used up), or a constraint that exceeds the
library's own limits once it is followed.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

STATES = 1500  # to visit; 20 to 50 µs each
SECONDS = 0.3  # limit for grammars whose steps take milliseconds
LONGEST = 600  # bytes of a text
FEW = 8  # allowed bytes that are all tried
FREE = 128  # more allowed bytes than this are free text
CONTEXT = 20  # last bytes: with these and the allowed bytes equal, it is the same place
_WORDS = 200  # of the constraint, tried where names are free
_CLOSING = b'",:]}[{ -.eE+\n'  # bytes that end a value, or come after one


def dead_end(matcher: Any, words: Iterable[str]) -> tuple[str, str] | None:  # llguidance has no types
    """Return a text that nothing may follow, and the library's reason if it has one; None if none was found.

    The matcher must be at its beginning, and is useless afterwards.
    """
    names = [word.encode("utf-8", "replace") + b'"' for _, word in zip(range(_WORDS), words, strict=False)]
    waiting: deque[tuple[bytes, int]] = deque([(b"", 0)])  # texts, not copies of the matcher: one may have a megabyte
    seen: set[tuple[bytes, bytes]] = set()
    give_up = time.monotonic() + SECONDS
    for _ in range(STATES):
        if not waiting or time.monotonic() > give_up:
            break
        text, free = waiting.popleft()
        matcher.reset()
        if matcher.consume_tokens(list(text)) and (forced := matcher.compute_ff_bytes()):
            matcher.consume_tokens(list(forced))
            text, free = text + forced, 0
        if matcher.is_error():
            return _shown(text), matcher.get_error()
        if matcher.is_stopped() or len(text) > LONGEST:
            continue
        bits = matcher.compute_bitmask()
        if matcher.is_error():
            return _shown(text), matcher.get_error()
        allowed = np.flatnonzero(np.unpackbits(np.frombuffer(bits, np.uint8), count=256, bitorder="little")).tolist()
        if not allowed:
            if not matcher.is_accepting():
                return _shown(text), ""
            continue
        chosen = _representatives(allowed, free)
        if len(chosen) > 1:
            place = (bits, text[-CONTEXT:])
            if place in seen:
                continue
            seen.add(place)
        runs = free + 1 if len(allowed) > FEW else 0
        waiting += [(text + bytes((byte,)), runs) for byte in chosen]
        if len(allowed) > FREE and text.endswith((b'{"', b', "', b',"')):
            waiting += [(text + name, 0) for name in names if matcher.validate_tokens(list(name)) == len(name)]
    return None


def _representatives(allowed: Sequence[int], free: int) -> list[int]:
    """Return the bytes to try: all of a few, one of each kind of many, and only an end, if any, after free text."""
    if len(allowed) <= FEW:
        return list(allowed)
    quote = [34] if 34 in allowed else []
    if len(allowed) > FREE:
        return quote if quote and free else [*quote, 97 if 97 in allowed else allowed[-1]]
    closing = [byte for byte in allowed if byte in _CLOSING]
    if closing and free:
        return closing
    kinds: dict[int, int] = {}
    for byte in allowed:
        kinds.setdefault(0 if byte in range(48, 58) else 1 if byte in range(97, 123) else 2 if byte < 128 else 3, byte)
    # If only some of all letters may come, each begins another word.
    letters = [byte for byte in allowed if byte in range(65, 123)] if len(allowed) < 64 and not closing else []
    return sorted({*closing, *kinds.values(), *letters})


def _shown(text: bytes) -> str:
    return text.decode("utf-8", "replace")
