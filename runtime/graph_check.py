"""Whether a graph was made for the model that a manifest describes: told from its inputs and outputs, before it runs.

In: what an engine's library says of an opened graph, and a `ModelSpec`. Out: nothing, or a BundleError. Knows nothing
about any library.

Hashes tell that files are those of the manifest; this, that the manifest is theirs. Otherwise a number that somebody
changed there, or a part of the graph that is missing, would be found by a step, or by nobody.
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
    """An input or state with keys or values."""

    name: str  # "0.key"
    dims: tuple[int, ...]  # of its shape, those that do not vary


def check_spec(line: str | None, spec: ModelSpec, graph: Path) -> None:
    """Compare the spec that a graph carries, where it carries one. Raises BundleError."""
    if line is None:  # of a bundle made earlier, or a graph that is not ours
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
    """Compare what a graph, or all parts of one, keep of earlier tokens. Raises BundleError."""
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
    """Compare the last dim of an input or output; what is no number varies. Raises BundleError."""
    if isinstance(found, int) and found != expected:
        raise BundleError(f"{graph} has {what} of {found}, the manifest says {expected}; {EXPORT_AGAIN}")
