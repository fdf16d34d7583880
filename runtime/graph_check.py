"""Whether a graph was made for the model that a manifest describes, judged by its inputs and outputs before it runs.

In: what an engine's library says about an opened graph, and a `ModelSpec`. Out: nothing, or a BundleError. Knows
nothing about any library.

Hashes show that the files belong to the manifest; this shows that the manifest belongs to the files. Without it, a
number that was changed in the manifest, or a missing part of the graph, would be noticed only in a step, or never.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from edge.runtime.errors import EXPORT_AGAIN, BundleError, shown
from edge.runtime.graph_names import cached_names
from edge.runtime.json_reader import parse_json
from edge.runtime.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Cached:
    """An input or state that holds keys or values."""

    name: str  # "0.key"
    dims: tuple[int, ...]  # the fixed dims of its shape


def check_spec(line: str | None, spec: ModelSpec, graph: Path) -> None:
    """Compare the spec that a graph carries, if any. Raises BundleError."""
    if line is None:  # an older bundle, or not one of our graphs
        return
    theirs, ours = parse_json(line, f"{graph}: its spec", BundleError, EXPORT_AGAIN), spec.to_json()
    if theirs == ours:
        return
    named = theirs if isinstance(theirs, dict) else {}
    name = next((name for name, value in ours.items() if named.get(name) != value), "spec")
    raise BundleError(
        f"{graph} was made for a model whose {name} is {shown(named.get(name))}, the manifest says "
        f"{shown(ours.get(name))}; {EXPORT_AGAIN}"
    )


def check_cached(found: Iterable[Cached], spec: ModelSpec, graph: Path) -> None:
    """Compare what a graph, or all its parts together, cache. Raises BundleError."""
    found = sorted(found, key=lambda cached: cached.name)
    expected = (spec.num_kv_heads, spec.head_dim)
    if [cached.name for cached in found] != sorted(cached_names(range(spec.num_layers))):
        raise BundleError(
            f"{graph} caches {len(found)} keys and values, the manifest says keys and values of {spec.num_layers} "
            f"layers; {EXPORT_AGAIN}"
        )
    for cached in found:
        if cached.dims not in ((), expected):
            raise BundleError(
                f"{graph} caches {cached.name} as {list(cached.dims)}, the manifest says {spec.num_kv_heads} heads of "
                f"{spec.head_dim}; {EXPORT_AGAIN}"
            )


def check_last(found: object, expected: int, what: str, graph: Path) -> None:
    """Compare the last dim of an input or output, unless it varies and is not a number. Raises BundleError."""
    if isinstance(found, int) and found != expected:
        raise BundleError(f"{graph} has {what} of {found}, the manifest says {expected}; {EXPORT_AGAIN}")
