"""Messages to and from the interpreter in the sandbox: four bytes of length, then JSON.

In: bytes as they come, from a process that is not trusted. Out: objects. The other end is in `child.py`.
"""

from __future__ import annotations

import json
import struct

LONGEST = 4 << 20  # bytes of one message; whoever sends more is not the program at the other end
_HEAD = struct.Struct(">I")


def packed(message: dict[str, object]) -> bytes:
    body = json.dumps(message).encode("ascii")
    return _HEAD.pack(len(body)) + body


def taken(received: bytearray) -> dict[str, object] | None:
    """Remove the first message and return it; None until it is complete. Raises ValueError for anything else."""
    if len(received) < _HEAD.size:
        return None
    (length,) = _HEAD.unpack_from(received)
    if length > LONGEST:
        raise ValueError(f"a message of {length} bytes")
    end = _HEAD.size + length
    if len(received) < end:
        return None
    body = bytes(received[_HEAD.size : end])
    del received[:end]
    try:
        message = json.loads(body)
    except RecursionError:
        raise ValueError("a message that is nested too deep") from None
    if not isinstance(message, dict):
        raise ValueError("a message that is not an object")
    return message
