"""Parts of sentences that several rules need: which matrices, how many bytes.

In: matrices, numbers. Out: words. Knows no rules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from edge.runtime.lint.subject import Matrix

NAMED = 2  # matrices that a message names


def some(matrices: Sequence[Matrix]) -> str:
    """`12 of the matrices, like "layers.0.mlp.down.weight"`; the first of each shape and precision are named."""
    kinds = {(matrix.precision, matrix.width, matrix.rows): matrix.name for matrix in reversed(matrices)}
    names = list(reversed(kinds.values()))
    shown = ", ".join([*names[:NAMED], *(["..."] if len(names) > NAMED else [])])
    return f"{len(matrices)} {'matrix' if len(matrices) == 1 else 'matrices'} ({shown})"


def precisions(matrices: Sequence[Matrix]) -> str:
    """The precisions of matrices, the most frequent first: "int8-sym, int4-sym-g128"."""
    return ", ".join(name for name, _ in Counter(matrix.precision for matrix in matrices).most_common())


def gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
