"""Tables of what every weight of a model gets or became, the layers that are alike in one line.

In: weights by canonical name, each with what is said of it. Out: rows. Knows nothing about recipes or bundles.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping
from typing import TypeVar

AS_SAID = "as the recipe says"  # where a weight has no note
LAYER = re.compile(r"(vision\.|)layers\.(\d+)\.(.+)")
Said = TypeVar("Said", bound=Hashable)


def alike(weights: Mapping[str, Said]) -> Iterator[tuple[str, list[str], Said]]:
    """Weights of which the same is said: "layers.0-39.attn.qkv.weight", their names, what is said of each."""
    found: dict[tuple[str, Said], list[str]] = {}
    for name, said in weights.items():
        match = LAYER.fullmatch(name)
        found.setdefault((match[1] + match[3] if match else name, said), []).append(name)
    for (_, said), names in found.items():
        yield _together(names), names, said


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape as these tables show it."""
    return " x ".join(map(str, shape))


def _together(names: list[str]) -> str:
    """One name for weights of several layers."""
    matches = [match for name in names if (match := LAYER.fullmatch(name))]
    if len(matches) < len(names) or not matches:
        return names[0]
    runs: list[list[int]] = []
    for layer in sorted(int(match[2]) for match in matches):
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    layers = ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
    return f"{matches[0][1]}layers.{layers}.{matches[0][3]}"
