"""What an export did so that a device which computes in float16 can hold a model, as `manifest.json` says it.

In: an object of the manifest. Out: a `Float16Record`, typed and within bounds. Knows nothing about how folds are chosen
(edge/export/float16/) or what float16 does to a model (docs/float16.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from edge.runtime.errors import EXPORT_AGAIN, BundleError
from edge.runtime.json_object import ObjectReader
from edge.runtime.spec import MAX_EXPONENT, ModelSpec

Norms = Literal["plain", "safe"]
MOST_BITS = 99.0  # of headroom that are told; values that are all 0 have any number


@dataclass(frozen=True, slots=True)
class Float16Record:
    """Folds, exact powers of two by their exponents, and what is left of float16's range after them."""

    device: str  # that the bundle was made for: "GPU" or "NPU"
    norms: Norms  # safe: rows are divided by their largest magnitude before they are squared
    residual: int
    output: int
    head: int
    up: tuple[int, ...]  # of each block, as are the next three
    values: tuple[int, ...]
    qkv: tuple[int, ...]
    gate_up: tuple[int, ...]
    headroom: Mapping[str, float]  # bits between float16's largest number and the largest value of each kind
    left: tuple[str, ...]  # values that have less headroom than they should, in words
    numerics: str  # of the emulated run
    kld: float | None  # of that run from exact arithmetic on the same weights, nats/token; None: it was not finite
    bound: float  # above which an export warns
    text: str  # name and hash of the text that values were measured on

    @property
    def folded(self) -> bool:
        """Whether any weight was changed."""
        return bool(
            self.residual or self.output or self.head or any((*self.up, *self.values, *self.qkv, *self.gate_up))
        )

    @classmethod
    def read(cls, read: ObjectReader, spec: ModelSpec) -> Float16Record:
        """Raises BundleError where a field is not of its type, or not what the spec of the model says."""
        blocks = {name: read.wholes(name, 0, MAX_EXPONENT) for name in ("up", "values", "qkv", "gate_up")}
        if wrong := [name for name, found in blocks.items() if len(found) != spec.num_layers]:
            given = f"float16.{wrong[0]} has {len(blocks[wrong[0]])} exponents, expected one for each of"
            raise BundleError(f"manifest.json: {given} {spec.num_layers} blocks; {EXPORT_AGAIN}")
        headroom = read.inside("headroom")
        read.word("norms", "safe" if spec.safe_norms else "plain", "what the spec says")
        return cls(
            device=read.word("device", "GPU|NPU", "GPU or NPU"),
            norms="safe" if spec.safe_norms else "plain",
            residual=read.whole("residual", spec.residual_exponent, spec.residual_exponent),
            output=read.whole("output", spec.output_exponent, spec.output_exponent),
            head=read.whole("head", 0, MAX_EXPONENT),
            **blocks,
            headroom={name: headroom.number(name, -MOST_BITS, MOST_BITS) for name in headroom.names()},
            left=read.texts("left"),
            numerics=read.word("numerics"),
            kld=None if read.value("kld") is None else read.number("kld", -1e-3),
            bound=read.number("bound", 0),
            text=read.text("text"),
        )
