"""Bytes in words, as every message has them.

In: a number. Out: text.
"""

from __future__ import annotations


def human_bytes(count: float) -> str:
    """`85.8 MB`; decimal units, as disks are sold."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
