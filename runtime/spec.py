"""What a decoder-only model is, in numbers.

In: plain values (from a checkpoint's config at export, from the manifest at run time). Out: one frozen `ModelSpec` that
every later stage reads. Knows nothing about files, tensors or engines.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, dataclass, fields
from typing import TYPE_CHECKING

from edge.runtime.errors import EXPORT_AGAIN, BundleError
from edge.runtime.json_object import ObjectReader

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


MAX_EXPONENT = 12  # of a power of two that values are divided by: beyond it, float16's small end costs accuracy


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The shape of one decoder-only model.

    `rotary_dim` is how many leading dims of each head rotate (GLM-4: half of `head_dim`, GLM-Edge and llama: all).

    Fields with a default came later. They are written only where they differ from it, so that bundles of models without
    them keep their bytes. An edgeglm that is older than such a field opens those, and refuses others, naming the field.
    """

    architecture: str  # the checkpoint's own word: "glm", "chatglm", "llama" ...
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rotary_dim: int
    rope_theta: float
    rms_norm_eps: float
    vocab_size: int
    max_position_embeddings: int
    qkv_bias: bool
    tied_embeddings: bool
    output_norms: bool  # attention and MLP are followed by norms of their own (GLM-4-0414)
    qk_norms: bool = False  # each head of q and k is normed before it rotates (Qwen3)
    # The same function in other numbers, for devices that compute in float16 (docs/float16.md):
    residual_exponent: int = 0  # the residual stream is that of the checkpoint times 2 to minus this power
    output_exponent: int = 0  # and so are outputs of attention and MLP before norms of their own
    safe_norms: bool = False  # norms divide a row by its largest magnitude before they square it
    # How many rotary frequencies turn by each of a token's positions (time, row, column); none: all by its only one.
    rope_sections: tuple[int, ...] = ()

    @property
    def q_size(self) -> int:
        """Width of all query heads together."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key (or value) heads together."""
        return self.num_kv_heads * self.head_dim

    @property
    def kv_values_per_token(self) -> int:
        """Keys and values that one token leaves in the cache, of all layers."""
        return 2 * self.num_layers * self.kv_size

    @property
    def stream_eps(self) -> float:
        """The eps of norms that read the residual stream."""
        return self.rms_norm_eps * 4.0**-self.residual_exponent

    @property
    def output_eps(self) -> float:
        """The eps of norms after attention and MLP."""
        return self.rms_norm_eps * 4.0**-self.output_exponent

    @property
    def num_parameters(self) -> int:
        """Weights and biases; a tied embedding counts once."""
        h, f = self.hidden_size, self.intermediate_size
        qkv = self.q_size + 2 * self.kv_size
        layer = h * qkv + self.q_size * h + 3 * h * f + 2 * h + (qkv if self.qkv_bias else 0)
        layer += (2 * h if self.output_norms else 0) + (2 * self.head_dim if self.qk_norms else 0)
        heads = 1 if self.tied_embeddings else 2
        return self.num_layers * layer + heads * self.vocab_size * h + h

    def inverse_frequencies(self) -> npt.NDArray[np.float32]:
        """Radians that each pair of rotated dims turns by a position: theta^(-2i / rotary_dim), (rotary_dim / 2,)."""
        import numpy as np

        exponents = np.arange(0, self.rotary_dim, 2, dtype=np.float64) / self.rotary_dim
        return (1.0 / np.float64(self.rope_theta) ** exponents).astype(np.float32)

    def to_json(self) -> dict[str, object]:
        later = {field.name: field.default for field in fields(self) if field.default is not MISSING}
        told = {name: value for name, value in asdict(self).items() if name not in later or value != later[name]}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in told.items()}

    def to_line(self) -> str:
        """On one line, the same for the same model: a graph carries it, to tell what it was made for."""
        return json.dumps(self.to_json(), sort_keys=True)

    @classmethod
    def from_json(cls, data: object, path: str = "manifest: spec") -> ModelSpec:
        """Raises BundleError when a field is missing, unknown, of another type, or a number that no model has.

        intermediate_size, rotary_dim, rope_theta and rms_norm_eps are 0 in bundles of foreign graphs without them.
        """
        read = ObjectReader(data, path, BundleError, EXPORT_AGAIN)
        read.has_only({field.name for field in fields(cls)})
        head_dim = read.whole("head_dim", 1, 1 << 16)
        return cls(
            architecture=read.word("architecture"),
            num_layers=read.whole("num_layers", 1, 10_000),
            hidden_size=read.whole("hidden_size", 1, 1 << 24),
            intermediate_size=read.whole("intermediate_size", 0, 1 << 24),
            num_heads=read.whole("num_heads", 1, 1 << 16),
            num_kv_heads=read.whole("num_kv_heads", 1, 1 << 16),
            head_dim=head_dim,
            rotary_dim=read.whole("rotary_dim", 0, head_dim),
            rope_theta=read.number("rope_theta", 0, 1e30),
            rms_norm_eps=read.number("rms_norm_eps", 0, 1e30),
            vocab_size=read.whole("vocab_size", 1, 1 << 26),
            max_position_embeddings=read.whole("max_position_embeddings", 1, 1 << 40),
            qkv_bias=read.flag("qkv_bias"),
            tied_embeddings=read.flag("tied_embeddings"),
            output_norms=read.flag("output_norms"),
            qk_norms=read.flag("qk_norms") if "qk_norms" in read else False,
            residual_exponent=read.whole("residual_exponent", 0, MAX_EXPONENT) if "residual_exponent" in read else 0,
            output_exponent=read.whole("output_exponent", 0, MAX_EXPONENT) if "output_exponent" in read else 0,
            safe_norms=read.flag("safe_norms") if "safe_norms" in read else False,
            rope_sections=read.wholes("rope_sections", 0, head_dim) if "rope_sections" in read else (),
        )
