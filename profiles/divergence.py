"""How long a bundle's greedy text stays the one that the float model would write.

In: a loaded bundle and prompts; then the float weights and what was written. Out: a `Divergence`. The float model does
not write, which would take a pass over all its weights for every token. It reads what the bundle wrote, once and a
block at a time: up to the first token that is not its own most probable one, both have read the same, so that is where
its own text would differ. Knows nothing about recipes or settings.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edge.export.text.windows import Windows
from edge.profiles.kept_rows import ReferenceSettings
from edge.profiles.reference import FloatWeights, build
from edge.profiles.student import standard_error
from edge.profiles.typed_json import read_fields
from edge.runtime.errors import ProfileError

if TYPE_CHECKING:
    from edge.runtime.llm import LLM

BEST = 128  # most probable tokens that are kept, so that one of them can be written
TokenRows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Divergence:
    """After how many tokens greedy texts diverge from those of the float model."""

    lengths: tuple[int, ...]  # tokens in common, one number a prompt
    new_tokens: int  # written; a text that never diverges counts as this many
    mean: float
    median: float
    never: float  # share of texts that never diverge

    @property
    def stderr(self) -> float | None:
        """Standard error of the mean over prompts."""
        return standard_error(self.lengths)

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: object) -> Divergence:
        """Raises ProfileError for something else than `to_json` gave."""
        return cls(**read_fields(cls, data, "a record of a divergence", ProfileError, "run `edge profile run` again"))


def write_greedily(llm: LLM, prompts: TokenRows, new_tokens: int) -> TokenRows:
    """Append the most probable token to each prompt, `new_tokens` times: (n, P) -> (n, P + new_tokens).

    Stop ids do not end a text. Raises what `generate` raises.
    """
    settings: dict[str, Any] = {"max_new_tokens": new_tokens, "ignore_stop_ids": True}
    answers = llm.generate_batch(prompts.tolist(), **settings)
    for answer in answers:
        if answer.error is not None:
            raise answer.error
    return np.concatenate([prompts, np.array([answer.token_ids for answer in answers], np.int64)], axis=1)


def first_divergence(weights: FloatWeights, texts: TokenRows, prompt_tokens: int, num_tokens: int) -> Divergence:
    """How much of texts (n, T), after their prompts, is what the float model writes greedily.

    num_tokens: of the tokenizer; a model may have more ids, which are never written. Raises CalibrationError for texts
    that the model cannot read, TensorError for weights that give NaN.
    """
    written = texts.shape[1] - prompt_tokens
    with TemporaryDirectory() as folder:
        top = min(BEST, weights.spec.vocab_size)
        settings = ReferenceSettings(first_scored=prompt_tokens - 1, top=top, samples=1)
        windows = Windows(texts, ("",) * len(texts))
        read = build(weights, windows, Path(folder) / "reference.npz", key="", settings=settings)
    best = read.rows.top_ids  # (n, written, top)
    own = np.take_along_axis(best, (best < num_tokens).argmax(axis=2)[..., None], axis=2)[..., 0]
    others = own != texts[:, prompt_tokens:]
    lengths = np.where(others.any(axis=1), others.argmax(axis=1), written)
    return Divergence(
        tuple(lengths.tolist()),
        written,
        float(lengths.mean()),
        float(np.median(lengths)),
        float(np.mean(lengths == written)),
    )
