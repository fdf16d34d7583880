"""Bundles of models that see pictures, and what transformers makes of prompts with rows in place of embeddings.

The rows are drawn at random: what an engine does with them does not depend on where they come from.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import edge
from edge.export.pipeline import export
from edge.runtime.arrays import Hidden, Ids
from edge.runtime.engines.engine import Embedding
from tests.conftest import made_once
from tests.tiny_pictures import BEGIN_ID, END_ID, PLACEHOLDER_ID, make_4v, make_glm4v

KINDS = ("4v", "glm4v")  # heads that onnxruntime's attention cannot turn, one position; heads that it can, three
MAKE: dict[str, Callable[[Path], Any]] = {"4v": make_4v, "glm4v": make_glm4v}
# Our float32 logits may be this many times as far from float64 as transformers' own: as in tests/export/test_reference.
TIMES_FLOAT32 = 8
SIDE = 4  # rows of a picture, down and across


class Oracle:
    """A checkpoint's text model in transformers, in float64 and float32."""

    def __init__(self, kind: str, folder: Path) -> None:
        in_float32 = MAKE[kind](folder)
        self._models, self._sections = (in_float32, copy.deepcopy(in_float32).double()), kind == "glm4v"
        self.width = int(in_float32.get_input_embeddings().weight.shape[1])

    @torch.no_grad()
    def logits(self, prompt: edge.Prompt, answer: tuple[int, ...] = ()) -> tuple[np.ndarray[Any, Any], float]:
        """Float64 logits (T, vocab) of a prompt and the start of its answer, and the largest error of float32."""
        in_float32, in_float64 = (self._logits(model, prompt, answer) for model in self._models)
        return in_float64, float(np.abs(in_float32 - in_float64).max())

    def _logits(self, model: Any, prompt: edge.Prompt, answer: tuple[int, ...]) -> np.ndarray[Any, Any]:
        ids = torch.tensor([*prompt.ids, *answer])
        embeddings = model.get_input_embeddings()(ids)
        for start, rows in prompt.embeddings:
            embeddings[start : start + len(rows)] = torch.from_numpy(rows).to(embeddings.dtype)
        positions = np.arange(len(prompt.ids)) if prompt.positions is None else prompt.positions
        later = positions.max() + 1 + np.arange(len(answer))
        later = np.broadcast_to(later, (*positions.shape[:-1], later.size))
        places = torch.from_numpy(np.concatenate([positions, later], axis=-1))
        if self._sections:
            places = places.expand(3, -1)
        mask = torch.ones(1, len(ids), dtype=torch.long)  # without one, equal positions are taken for packed texts
        decoder = model.model.language_model if self._sections else model.model
        hidden = decoder(
            inputs_embeds=embeddings[None], position_ids=places[..., None, :], attention_mask=mask
        ).last_hidden_state
        found: np.ndarray[Any, Any] = model.lm_head(hidden)[0].double().numpy()
        return found


class Seen(NamedTuple):
    """A model that sees pictures."""

    checkpoint: Path
    bundle: Path
    oracle: Oracle
    kind: str

    def prompt(self, seed: int = 0, before: int = 5, after: int = 4) -> edge.Prompt:
        """Text, a picture of its own, text: laid out as this kind's pictures are."""
        generator = np.random.default_rng(seed)
        text = np.random.default_rng(1).integers(0, 256, before + after).tolist()
        ends, count = (2 if self.kind == "4v" else 0), SIDE * SIDE
        rows = generator.normal(0, 0.3, (count + ends, self.oracle.width)).astype(np.float32)
        ids = [*text[:before], BEGIN_ID, *[PLACEHOLDER_ID] * count, END_ID, *text[before:]]
        keys = list(ids)
        start = before + 1 - ends // 2
        keys[start : start + len(rows)] = [(1 << 32) + 1000 * seed + i for i in range(len(rows))]
        return edge.Prompt(ids, keys, self.positions(before, after), (Embedding(start, rows),))

    def positions(self, before: int, after: int) -> Ids:
        first, later = np.arange(before + 1), np.arange(1 + after)  # with begin, with end
        if self.kind == "4v":
            return np.concatenate([first, np.full(SIDE * SIDE, before + 1), before + 2 + later])
        row, column = np.divmod(np.arange(SIDE * SIDE), SIDE)
        inside = before + 1 + np.stack([np.zeros_like(row), row, column])
        around = [np.broadcast_to(part, (3, part.size)) for part in (first, inside.max() + 1 + later)]
        return np.concatenate([around[0], inside, around[1]], axis=1)


def seen(kind: str, factory: pytest.TempPathFactory, recipe: str = "fp32") -> Seen:
    """One of KINDS, its bundle made once a run."""
    checkpoint = factory.mktemp("seen") / kind
    oracle = Oracle(kind, checkpoint)
    bundle = made_once(factory, f"seen-{kind}-{recipe}", lambda out: export(checkpoint, out, recipe))
    return Seen(checkpoint, bundle, oracle, kind)


def rows_of(prompt: edge.Prompt) -> Hidden:
    """The rows of a prompt's only picture."""
    [(_, rows)] = prompt.embeddings
    return rows
