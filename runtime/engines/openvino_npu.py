"""OpenVINO on NPUs: the bundle's stateful IR through the NPU plugin's pipeline for language models (NPUW).

In: an IR and settings. Out: an `Engine` with one context, which it keeps to itself. Knows nothing about tokenizers or
sampling. With device CPU, the same pipeline computes on the CPU; what was measured, was measured so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import openvino as ov

from edge.runtime.arrays import Ids, Logits
from edge.runtime.bundle import Bundle
from edge.runtime.engines import openvino_npu_compile
from edge.runtime.engines.devices import device_here
from edge.runtime.engines.engine import TEXT, EngineInfo, Inputs, Step, StepInterrupted
from edge.runtime.engines.limits import cache_budget, context_limit
from edge.runtime.engines.openvino_core import make_core
from edge.runtime.engines.openvino_npu_compile import PLUGIN, compiled_model
from edge.runtime.engines.openvino_npu_context import Context
from edge.runtime.engines.openvino_npu_lengths import Lengths, lengths
from edge.runtime.engines.openvino_npu_properties import check_precisions, is_exact
from edge.runtime.errors import ContextLengthError, DeviceError, SettingsError, shown, telling_line
from edge.runtime.kv.memory import NoMemory
from edge.runtime.kv.opaque import OpaqueMemory
from edge.runtime.kv.pool import BlockPool, CacheSequence
from edge.runtime.lint import check as lint
from edge.runtime.lint import refuse, target_here
from edge.runtime.machine import family_of
from edge.runtime.settings import EngineSettings
from edge.runtime.spec import ModelSpec
from edge.runtime.terminal_text import on_one_line

T = TypeVar("T")
NAME = "openvino_npu"
VALUE_BYTES = {"f16": 2, "f32": 4}


class OpenVINONpuEngine:
    """One compiled model with one context. Raises BundleError, DeviceError and SettingsError."""

    def __init__(self, bundle: Bundle, settings: EngineSettings) -> None:
        spec = bundle.manifest.spec
        limit = context_limit(settings, spec)
        check_precisions(settings)
        self.lengths = _lengths(settings, spec)
        kv_precision = settings.kv_precision or "f16"
        token_bytes = spec.kv_values_per_token * VALUE_BYTES[kv_precision]
        _check_room(token_bytes * self.lengths.capacity, cache_budget(settings), str(self.lengths))
        self._model: Any = compiled_model(bundle, settings, self.lengths)
        self._context: Context | None = None  # also after a failure
        self._ending = False
        self._reuses = not settings.reproducible  # then nothing of an earlier sequence takes part
        self.info = EngineInfo(
            name=NAME,
            device=settings.device,
            max_context=min(self.lengths.context, limit),
            max_prompt=min(self.lengths.prompt, limit - 1),
            prefill_chunk=self.lengths.chunk,
            kv_bytes_per_token=token_bytes,
            kv_precision=kv_precision,
            reproducible=bool(settings.reproducible),
            max_sequences=1,
            max_step_rows=1,
            logits_rows="last",
            can_trim=False,
            can_fork=False,
            can_snapshot=False,
            holds_last=True,
        )
        self.pool = BlockPool(1, self.info.max_context, OpaqueMemory(token_bytes * self.lengths.capacity))
        self.identity = {
            "engine": NAME,
            "engine version": ov.get_version(),
            "device": family_of(settings.device),
            "kv precision": kv_precision,
            "inference precision": settings.inference_precision or "the device's own",
            "lengths": f"{self.lengths.prompt}+{self.lengths.response}/{self.lengths.chunk}",
        }

    def resume(self, most: int) -> int:
        """Keep up to the first `most` tokens of the last sequence for the next one; return how many are kept."""
        if self._context is None:
            return 0
        return self._guarded(partial(Context.keep, most=most if self._reuses else 0))

    def forward(self, ids: Ids, sequence: CacheSequence, rows: Ids, inputs: Inputs = TEXT) -> Logits:
        assert inputs.are_text, "the graph takes ids, and counts positions itself"
        assert rows.tolist() == [ids.size - 1], "there are logits of the last row alone"
        past = sequence.num_tokens
        self._reserve(sequence, ids.size)
        logits = self._guarded(partial(self._read, ids=ids, past=past))
        sequence.commit(ids.size)
        return logits

    def decode(self, steps: list[Step]) -> list[Logits]:
        found = []
        for sequence, ids, positions in steps:
            assert ids.size == 1, "one token at a time"
            assert positions is None, "the graph counts positions itself"
            past = sequence.num_tokens
            self._reserve(sequence, 1)
            found.append(self._guarded(partial(self._step, ids=ids, past=past)))
            sequence.commit(1)
        return found

    def interrupt(self, *, final: bool) -> None:
        """Act only on a final interrupt, between two tokens: a chunk that was begun is always read."""
        self._ending = self._ending or final

    def close(self) -> None:
        """Release the compiled model."""
        self._context = self._model = None
        self.pool.memory = NoMemory()

    def _read(self, context: Context, ids: Ids, past: int) -> Logits:
        """Read what can be read, and decode the rest: an answer that is computed again may end after `prompt`."""
        done = 0
        if past == 0 or context.can_read(past):
            part = ids[: self.lengths.prompt - past]
            logits = context.read(part, past) if past else context.begin(part)
            done = part.size
        for i in range(done, ids.size):
            if self._ending:
                raise StepInterrupted
            logits = _decode(context, int(ids[i]), past + i)
        return logits

    def _step(self, context: Context, ids: Ids, past: int) -> Logits:
        if past == 0 or context.pending:
            return self._read(context, ids, past)
        return _decode(context, int(ids[0]), past)

    def _reserve(self, sequence: CacheSequence, count: int) -> None:
        if (end := sequence.num_tokens + count) > self.lengths.capacity:
            raise ContextLengthError(f"{end} tokens exceed the {self.lengths.capacity} that the model is compiled for")
        sequence.reserve(count)

    def _guarded(self, function: Callable[[Context], T]) -> T:
        """Call a function with the context; after a failure, forget the context."""
        context, self._context = self._context or Context(self._model, self.lengths), None
        try:
            found = function(context)
        except BaseException as error:
            context.close()  # an error may hold a reference to it for long
            if not isinstance(error, RuntimeError):
                raise
            raise DeviceError(
                f"the engine failed: {on_one_line(telling_line(error, last=True))}; ask again, or use another engine"
            ) from error
        self._context = context
        return found


def check(bundle: Bundle, settings: EngineSettings) -> None:
    """Raise DeviceError unless there is an NPU, or its pipeline is to run on the CPU; LintError for what crashes there.

    Reads no weights. Raises SettingsError for settings that no NPU can have.
    """
    family = family_of(settings.device)
    emulated, core = family == "CPU", None
    if not emulated:
        try:
            if family != PLUGIN:
                raise DeviceError(f"device {shown(settings.device)}: the {NAME} engine runs on NPUs")
            core = make_core()
            device_here(settings.device, core.available_devices)
        except DeviceError as error:
            raise DeviceError(
                f"{error}; to try the NPU's pipeline without one, use --engine {NAME} --device CPU"
            ) from error
    check_precisions(settings)
    found = _lengths(settings, bundle.manifest.spec)
    target = replace(
        target_here(PLUGIN, settings, emulated=emulated, core=core),
        max_prompt=found.prompt,
        max_response=found.response,
        chunk=found.chunk,
    )
    refuse(lint(bundle, target))


def compile_ahead(bundle: Bundle, settings: EngineSettings) -> tuple[Path, int, str]:
    """Compile and keep the result; return its path, its bytes, and for what lengths it is. Raises OutputError."""
    found = _lengths(settings, bundle.manifest.spec)
    path, size = openvino_npu_compile.compile_ahead(bundle, settings, found)
    return path, size, str(found)


def _lengths(settings: EngineSettings, spec: ModelSpec) -> Lengths:
    return lengths(settings, context_limit(settings, spec), whole=is_exact(settings))


def _decode(context: Context, token_id: int, past: int) -> Logits:
    if context.held != past:
        raise DeviceError(f"the engine holds {context.held} tokens, and not the {past} that come first; ask again")
    return context.decode(token_id)


def _check_room(needed: int, budget: int, what: str) -> None:
    if needed > budget:
        raise SettingsError(
            f"the KV cache for {what} takes {needed:,} bytes, {budget:,} are allowed; lower max_prompt_tokens or "
            "max_response_tokens, or raise kv_cache_bytes",
            param="kv_cache_bytes",
        )
