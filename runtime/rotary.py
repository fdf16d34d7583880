"""Positions of tokens, as the rotary embedding reads them.

In: positions, one or several for each token, and a `ModelSpec`. Out: what each rotary frequency turns by. Knows nothing
about graphs or engines.

Computed in float32, as graphs compute it, so that the same position gives the same bits wherever its angle is made.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edge.runtime.arrays import Array, Ids
from edge.runtime.spec import ModelSpec

FloatKind = type[np.float32] | type[np.float16]


def position_rows(spec: ModelSpec) -> int:
    """How many positions a token of this model may have."""
    return len(spec.rope_sections) or 1


def per_frequency(positions: Ids, spec: ModelSpec) -> npt.NDArray[np.float32]:
    """Return the position that each frequency of each token turns by: (n, rotary_dim / 2).

    positions: (n,), or (rows, n) for a model whose frequencies are divided among as many positions.
    """
    half = spec.rotary_dim // 2
    if positions.ndim == 1:
        return np.broadcast_to(positions.astype(np.float32)[:, None], (positions.size, half))
    assert len(positions) == len(spec.rope_sections), "this model has one position for each token"
    rows = np.repeat(np.arange(len(positions)), spec.rope_sections)  # (rotary_dim / 2,) of each frequency
    return positions.astype(np.float32)[rows].T


def cos_and_sin(positions: Ids, spec: ModelSpec, kind: FloatKind = np.float32) -> tuple[Array, Array]:
    """Return cos and sin of position * theta^(-2i / rotary_dim), (n, rotary_dim / 2); angles in float32."""
    angles = per_frequency(positions, spec) * spec.inverse_frequencies()
    return np.cos(angles).astype(kind), np.sin(angles).astype(kind)


def one_row(positions: Ids) -> Ids | None:
    """Return positions as (n,) if those of each token are the same, as they are for text."""
    if positions.ndim == 1:
        return positions
    return positions[0] if (positions == positions[0]).all() else None
