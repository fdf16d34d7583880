"""What an answer continues: token ids, and what they represent if that is more than text.

In: token ids, from a tokenizer or a caller. Out: a checked `Prompt`. Knows nothing about text, requests or engines.

Ids alone are enough for a sampler and a drafter. They are not for a cache: two pictures may have the same placeholder
ids. So a prompt has `keys`, one per token; tokens with equal cache keys have equal keys and values. For text, they are
the ids themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge.runtime.arrays import Ids
from edge.runtime.engines.engine import TEXT, Embedding, EngineInfo, Inputs
from edge.runtime.errors import ContextLengthError, PromptError, SettingsError, not_expected, shown
from edge.runtime.settings import GenerationSettings

FIRST_KEY = 2**32  # of a picture's rows; smaller keys are ids
POSITION_ROWS = 3  # time, row and column, of models whose tokens have several positions


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """The tokens of a prompt.

    Raises PromptError for invalid ids, and for keys, positions and embeddings that do not fit them.
    """

    ids: Sequence[int]  # (T,) what sampler and drafts see; kept as a list
    keys: Sequence[int] | None = None  # (T,) what cache and snapshots compare; None: the ids
    positions: Ids | None = None  # (T,) or (3, T) int64, 0 or more; None: 0 to T - 1
    embeddings: tuple[Embedding, ...] = ()  # rows that replace those of some ids; in order, not overlapping
    num_answered: int = 0  # of the ids: the last ones, which began the answer elsewhere and which its reader has

    def __post_init__(self) -> None:
        ids = _whole_numbers(self.ids, "ids")
        keys = ids if self.keys is None else _whole_numbers(self.keys, "keys")
        if len(keys) != len(ids):
            raise PromptError(f"the prompt has {len(ids)} ids and {len(keys)} keys, expected as many", param="keys")
        object.__setattr__(self, "ids", ids)
        object.__setattr__(self, "keys", keys)
        if self.positions is not None:
            object.__setattr__(self, "positions", _checked_positions(self.positions, len(ids)))
        if not isinstance(self.embeddings, tuple | list):
            raise PromptError(
                f"embeddings are {shown(self.embeddings)}, expected a list of edge.Embedding", param="embeddings"
            )
        object.__setattr__(self, "embeddings", tuple(self.embeddings))
        if not 0 <= self.num_answered < max(len(ids), 1) or (self.num_answered and not self.is_text):
            raise PromptError(
                f"num_answered is {shown(self.num_answered)}, expected fewer than the {len(ids)} ids of a text",
                param="num_answered",
            )
        end = 0
        for embedding in self.embeddings:
            end = _checked_end(embedding, end, len(ids))

    @property
    def cache_keys(self) -> list[int]:
        """`keys` as a list; without any given, the ids."""
        assert isinstance(self.keys, list)
        return self.keys

    @property
    def is_text(self) -> bool:
        """Whether the ids say everything."""
        return self.positions is None and not self.embeddings

    @property
    def length_told(self) -> str:
        """How many tokens it has, in words."""
        rows = sum(key >= FIRST_KEY for key in self.cache_keys)
        return f"{len(self.ids):,} tokens, {rows:,} of them of pictures" if rows else f"{len(self.ids)} tokens"

    @property
    def next_position(self) -> int:
        """Position of the first token of the answer, in each row: the one after the largest of any token."""
        return len(self.ids) if self.positions is None else int(self.positions.max(initial=-1)) + 1

    def inputs(self, begin: int, end: int) -> Inputs:
        """Return positions and embeddings of the tokens from `begin` up to `end`."""
        if self.is_text:
            return TEXT
        found = []
        for start, rows in self.embeddings:
            first, last = max(start, begin), min(start + len(rows), end)
            if first < last:
                found.append(Embedding(first - begin, rows[first - start : last - start]))
        return Inputs(None if self.positions is None else self.positions[..., begin:end], tuple(found))

    def check_fits(self, info: EngineInfo, settings: GenerationSettings) -> None:
        """Raise PromptError if an engine cannot take this prompt's positions or embeddings.

        Raises ContextLengthError if it is too long to be read, and SettingsError if the engine cannot give what the
        settings ask about the prompt.
        """
        if info.max_prompt is not None and len(self.ids) > info.max_prompt:
            raise ContextLengthError(
                f"the prompt has {self.length_told}, and the model was compiled for prompts of up to "
                f"{info.max_prompt}; use a shorter prompt, or load with a larger max_prompt_tokens",
                param="prompt",
            )
        if settings.prompt_logprobs is not None and info.logits_rows == "last":
            raise SettingsError(
                f"the {info.name} engine gives the logits of a prompt's last token only; leave prompt_logprobs out, or "
                "use another engine",
                param="prompt_logprobs",
            )
        # Embeddings first: a picture has both, and is what the user knows of.
        for _, rows in self.embeddings:
            if info.embedding_size is None:
                raise PromptError(
                    f"the prompt has embeddings, as pictures do, and this model on the {info.name} engine takes only "
                    "token ids; use a model for pictures, on the CPU with the openvino or onnx engine",
                    param="embeddings",
                )
            if rows.shape[1] != info.embedding_size:
                raise PromptError(
                    f"embeddings are {rows.shape[1]} wide, expected {info.embedding_size}, the model's hidden size",
                    param="embeddings",
                )
        if self.positions is None:
            return
        if not info.takes_positions:
            raise PromptError(
                f"the prompt has positions, and this model on the {info.name} engine counts tokens itself; leave "
                "positions out, or use another engine",
                param="positions",
            )
        if self.positions.ndim == 2 and len(self.positions) != info.position_rows:
            raise PromptError(
                f"positions have {len(self.positions)} rows, and this model turns all of a token by one position; "
                f"expected whole numbers of shape ({len(self.ids)},)",
                param="positions",
            )


def _whole_numbers(values: Iterable[object], name: str) -> list[int]:
    """Return whole numbers, 0 or more, as a list. Raises PromptError for anything else."""
    if isinstance(values, str | bytes | dict) or not isinstance(values, Iterable):
        raise PromptError(f"{name} are {shown(values)}, expected a list of whole numbers", param=name)
    found: list[int] = []
    for index, value in enumerate(values.tolist() if isinstance(values, np.ndarray) else values):
        number = int(value) if isinstance(value, np.integer) else value
        if type(number) is not int or number < 0:
            raise not_expected(f"{name}[{index}]", value, "a whole number, 0 or more")
        found.append(number)
    return found


def _checked_positions(positions: object, count: int) -> Ids:
    """Return positions as (T,) or (3, T) int64. Raises PromptError."""
    shapes = ((count,), (POSITION_ROWS, count))
    if not isinstance(positions, np.ndarray) or positions.dtype.kind not in "iu" or positions.shape not in shapes:
        raise PromptError(
            f"positions are {_described(positions)}, expected whole numbers of shape ({count},), one per token, or "
            f"({POSITION_ROWS}, {count}) for a model that has so many per token",
            param="positions",
        )
    if (positions < 0).any():
        raise PromptError(f"positions hold {positions.min()}, expected 0 or more", param="positions")
    checked: npt.NDArray[np.int64] = positions.astype(np.int64)
    return checked


def _checked_end(embedding: object, begin: int, count: int) -> int:
    """Return where an embedding ends. Raises PromptError, also if it starts before `begin`."""
    if not isinstance(embedding, Embedding):
        raise PromptError(f"embeddings hold {shown(embedding)}, expected edge.Embedding", param="embeddings")
    start, rows = embedding
    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.dtype != np.float32:
        raise PromptError(
            f"rows of an embedding are {_described(rows)}, expected float32 of shape (tokens, hidden size)",
            param="embeddings",
        )
    if type(start) is not int or not begin <= start <= start + len(rows) <= count:
        raise PromptError(
            f"an embedding of {len(rows)} tokens starts at {shown(start)}, expected {begin} or more and an end within "
            f"the {count} tokens of the prompt",
            param="embeddings",
        )
    return start + len(rows)


def _described(value: object) -> str:
    return f"{value.dtype} of shape {value.shape}" if isinstance(value, np.ndarray) else shown(value)
