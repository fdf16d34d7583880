"""The one context of a model that the NPU plugin runs: what it holds, and how it is continued.

In: a compiled model and its lengths. Out: logits of the last token. Knows nothing about sequences or settings.

The plugin keeps keys and values to itself. A prompt may keep a beginning of what is held: the number of common tokens
is proposed by writing it to a state, and what is granted is read back, whole chunks that were read (not written) by the
plugin. What was granted is a command: the next inference must be the rest of the prompt. The plugin grants nothing of a
prompt unless a token was decoded after it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov

from edge.runtime.arrays import Ids, Logits
from edge.runtime.engines.openvino_npu_lengths import Lengths

STORED = "npuw_stored_tokens_state"


class Context:
    """Keys and values of up to `lengths.capacity` tokens. After an exception in a method, begin again.

    Only one request of a compiled model may exist: two of them count each other's tokens.
    """

    def __init__(self, compiled: Any, lengths: Lengths) -> None:  # ov.CompiledModel, whose methods have no types
        self._compiled, self._lengths = compiled, lengths
        self._takes_beams = any("beam_idx" in port.get_names() for port in compiled.inputs)
        self._request: Any = compiled.create_infer_request()
        self.held = 0  # tokens
        self._read = 0  # the first of them that were read, and not decoded
        self._granted: int | None = None  # what the next inference has to continue; None: no command is pending
        self._decoded = False  # whether a token was decoded since the last read

    @property
    def pending(self) -> bool:
        """Whether the next tokens have to be read, even a single one."""
        return self._granted is not None

    def close(self) -> None:
        """Free the memory."""
        self._request = None

    def keep(self, most: int) -> int:
        """Keep as many as possible of the first `most` tokens for `read`, and return how many."""
        most = min(most, self.held)
        if self._granted is None:
            self._granted = self._propose(most)
        elif self._granted > most:
            self._reset()
        self.held = self._granted or 0
        return self.held

    def begin(self, ids: Ids) -> Logits:
        """Read the beginning of a prompt, forgetting what was held. Returns (1, vocab)."""
        if self._lengths.whole and ids.size == 1 and self.held:  # it would be taken for a token to decode
            self._request = None
            self._request = self._compiled.create_infer_request()
        self._reset()
        return self._infer_read(ids, 0)

    def can_read(self, past: int) -> bool:
        """Whether `read` can continue after the first `past` tokens."""
        fits = past % self._lengths.chunk == 0 and 0 < past < self._lengths.prompt
        return fits and not self._lengths.whole and (self._granted == past or past <= self._read)

    def read(self, ids: Ids, past: int) -> Logits:
        """Read more of a prompt after the first `past` tokens that are held."""
        if self._granted is None:
            self._granted = self._propose(past)
        if self._granted != past:
            raise RuntimeError(f"the NPU plugin keeps {self._granted} tokens of {past}")
        return self._infer_read(ids, past)

    def decode(self, token_id: int) -> Logits:
        """Compute one more token."""
        assert self._granted is None, "what was granted has to be read"
        logits = self._infer(np.array([token_id], np.int64), self.held)
        self.held += 1
        self._decoded = True
        return logits

    def _propose(self, most: int) -> int:
        if most < self._lengths.chunk or self._lengths.whole:
            self._reset()
            return 0
        if not self._decoded:
            self.decode(0)  # any token: it is not kept
        state = self._state()
        state.state = ov.Tensor(np.array([most], np.int64))
        granted = int(state.state.data[0])
        if not granted:
            self._reset()
        return granted

    def _reset(self) -> None:
        self._state().reset()
        self._granted = self.held = self._read = 0
        self._decoded = False

    def _state(self) -> Any:
        return next(state for state in self._request.query_state() if state.name == STORED)

    def _infer_read(self, ids: Ids, past: int) -> Logits:
        logits = self._infer(ids, past)
        self.held = self._read = past + ids.size
        self._granted, self._decoded = None, False
        return logits

    def _infer(self, ids: Ids, past: int) -> Logits:
        end = past + ids.size
        inputs = {
            "input_ids": ids[None],
            "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(past, end, dtype=np.int64)[None],
        }
        if self._takes_beams:
            inputs["beam_idx"] = np.zeros(1, np.int32)
        self._request.infer(inputs)
        logits: Logits = self._request.get_tensor("logits").data[0, -1:].astype(np.float32)  # a copy of what is reused
        return logits
