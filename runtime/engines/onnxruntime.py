"""ONNX Runtime on the CPU: a bundle's ONNX graph over KV buffers that we own.

In: a bundle and settings. Out: an `Engine`. Knows nothing about tokenizers or sampling.

The graph comes in parts, each with its own session: a session prepares its weights on a single core, so several load in
parallel. Past and present of a layer are one buffer of (num_slots, n_kv, max_context, head_dim): a step writes its new
tokens after the old ones without copying, and trimming only shortens the length. A block of the pool is one row of all
buffers, and holds a whole sequence. A batch is computed in neighbouring rows, which are bound anew when they change.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnxruntime as ort

from edge.runtime.arrays import Array, Ids, Logits
from edge.runtime.bundle import Bundle
from edge.runtime.engines.devices import device_here
from edge.runtime.engines.engine import TEXT, Embedding, EngineInfo, Inputs, Step, StepInterrupted
from edge.runtime.engines.huge_pages import huge_pages
from edge.runtime.engines.limits import (
    addresses_are_limited,
    cache_budget,
    context_limit,
    max_running,
    prefill_chunk,
)
from edge.runtime.engines.onnx_graph import check_parts
from edge.runtime.engines.onnx_kernels import CACHE_TYPES, check_version, kernels_of
from edge.runtime.engines.onnx_session import SessionPart
from edge.runtime.engines.onnx_turns import Turns
from edge.runtime.engines.replacements import replacements
from edge.runtime.errors import (
    COPY_AGAIN,
    BundleError,
    ContextLengthError,
    DeviceError,
    SettingsError,
    shown,
    telling_line,
)
from edge.runtime.graph_names import (
    HIDDEN,
    NEXT_HIDDEN,
    REPLACED,
    REPLACEMENTS,
    ROTARY_ROWS,
    ROTARY_TABLES,
    WANTED_ROWS,
    cached_names,
    past_name,
    present_name,
)
from edge.runtime.kv.memory import TAKEN_LATE, NoMemory, SlotMemory
from edge.runtime.kv.pool import BlockPool, CacheSequence
from edge.runtime.machine import computing_threads, family_of, logical_processors
from edge.runtime.rotary import position_rows
from edge.runtime.settings import EngineSettings
from edge.runtime.spec import ModelSpec

PREFILL_CHUNK = 128  # tokens; with 512, a prefill is not faster, and every part keeps four times the memory
CHOSEN_BY_ORT = 0  # threads
MAX_SLOTS = 16  # sequences kept at once; an unused slot takes no memory


class OnnxRuntimeEngine:
    """The sessions of a graph, and the KV buffers of several sequences. Raises BundleError, DeviceError, SettingsError.

    Defaults: activations are rounded to int8 if the weights have 4 bits, and the cache has 32 bits (the figures are in
    docs/findings.md); there is one thread for each physical core that the process may use, or onnxruntime's own choice
    where these are not known.

    Rows are computed in pairs, and one left over by a kernel that rounds differently. `reproducible` pads to pairs:
    results are then bit-equal however tokens are cut into steps.
    """

    def __init__(self, bundle: Bundle, settings: EngineSettings) -> None:
        check_version()
        _check_settings(settings)
        spec = self._spec = bundle.manifest.spec
        kv_precision = settings.kv_precision or "f32"
        kind = CACHE_TYPES[kv_precision]
        self._reproducible = bool(settings.reproducible)
        self._max_context, slots, max_tokens = _context(spec, kind, settings)
        length = self._max_context + self._reproducible  # of the buffers, as a padded step writes one more token
        threads = computing_threads(settings.threads)
        kernels = kernels_of(bundle, settings, threads)
        paths = bundle.onnx_parts(kernels)
        if not paths:
            raise BundleError(f"{bundle.path}: {kernels.part(0)} is missing; {COPY_AGAIN}")
        with huge_pages(), ThreadPoolExecutor(threads or logical_processors(), "load") as loaders:
            self._parts = list(loaders.map(lambda path: SessionPart(path, threads or CHOSEN_BY_ORT), paths))
        pictures = self._pictures = bundle.manifest.vision is not None
        sessions = [part.session for part in self._parts]
        check_parts(sessions, paths, spec, float16_cache=kernels.float16_cache, pictures=pictures)
        self._positions, self._ones = np.arange(length), np.ones((1, length), np.int64)
        wide = pictures and self._parts[0].reads(ROTARY_TABLES[0]) == "tensor(float)"  # beside any cache
        self._turns = Turns(spec, length, np.float32 if wide else kind)
        self._cached = cached_names(range(spec.num_layers))
        shape = (spec.num_kv_heads, length, spec.head_dim)
        try:
            self._memory = SlotMemory(slots, len(self._cached), shape, kind)
        except SettingsError:  # a system without overcommit: no more slots than the budget fills
            slots = min(max(max_tokens // self._max_context, 1), MAX_SLOTS)
            self._memory = SlotMemory(slots, len(self._cached), shape, kind)
        self.pool = BlockPool(slots, self._max_context, self._memory, max_tokens)
        self._bound_tables: tuple[Array, ...] = ()
        self._bind_tables()
        self._bound_rows: tuple[int, int] | None = None  # rows of the KV buffers: the first, and how many
        self._options = ort.RunOptions()  # of the latest run
        self.info = EngineInfo(
            name="onnx",
            device="CPU",
            max_context=self._max_context,
            prefill_chunk=prefill_chunk(settings, spec, PREFILL_CHUNK),
            max_running=max_running(settings, spec),
            kv_bytes_per_token=sum(view.nbytes for view in self._memory.views(0, 1)),
            kv_precision=kv_precision,
            reproducible=self._reproducible,
            max_sequences=1 if self._reproducible else slots,
            least_rows=2 if self._reproducible else 1,
            decodes_as_it_reads=self._reproducible,
            takes_positions=pictures,
            position_rows=position_rows(spec) if pictures else 1,
            embedding_size=spec.hidden_size if pictures else None,
        )
        self.identity = {
            "engine": self.info.name,
            "engine version": ort.__version__,
            "device": "CPU",
            "reproducible": str(self._reproducible),
            "kv precision": kv_precision,
            "cache": f"[{spec.num_kv_heads}, tokens, {spec.head_dim}]",
            "activations": "int8" if kernels.int8_activations else "f32",
        }

    def forward(self, ids: Ids, sequence: CacheSequence, rows: Ids, inputs: Inputs = TEXT) -> Logits:
        assert self._pictures or inputs.are_text, "attention counts positions itself, and the graph takes ids"
        self._reserve(sequence, ids.size)
        (logits,) = self._infer(ids[None], [sequence], rows, [inputs.positions], inputs.embeddings)
        sequence.commit(ids.size)
        return logits

    def decode(self, steps: list[Step]) -> list[Logits]:
        """Compute single tokens in one run; drafts, and all steps with `reproducible`, take turns.

        Attention accepts several new tokens of one sequence, or one token of each, and rounds these two differently.
        """
        for sequence, ids, _ in steps:
            self._reserve(sequence, ids.size)
        found = self._infer_steps(steps) if len(steps) == 1 else self._infer_several(steps)
        for sequence, ids, _ in steps:
            sequence.commit(ids.size)
        return found

    def _infer_several(self, steps: list[Step]) -> list[Logits]:
        """Return logits (n, vocab) of each step, copied if several runs share the memory of their outputs."""
        shared = [] if self._reproducible else [index for index, step in enumerate(steps) if step.ids.size == 1]
        runs = ([shared] if shared else []) + [[index] for index in range(len(steps)) if index not in shared]
        found: dict[int, Logits] = {}
        for run in runs:
            logits = self._infer_steps([steps[index] for index in run])
            found.update(zip(run, logits if len(runs) == 1 else [rows.copy() for rows in logits], strict=True))
        return [found[index] for index in range(len(steps))]

    def _infer_steps(self, steps: list[Step]) -> list[Logits]:
        """Return logits (n, vocab) of steps that one run can compute."""
        ids = np.stack([step.ids for step in steps])
        sequences, positions = [step.sequence for step in steps], [step.positions for step in steps]
        assert self._pictures or positions == [None] * len(steps), "attention counts positions itself"
        return self._infer(ids, sequences, self._positions[: ids.shape[1]], positions)

    def interrupt(self, *, final: bool) -> None:  # noqa: ARG002  # an interrupted run leaves no trace
        self._options.terminate = True

    def close(self) -> None:
        """Release the sessions and the pool's memory."""
        self._parts, self._bound_tables, self._turns.tables = [], (), ()
        self._memory.close()
        self.pool.memory = NoMemory()

    def _reserve(self, sequence: CacheSequence, count: int) -> None:
        past = sequence.num_tokens
        if past + count > self._max_context:  # the pool would give a second slot
            raise ContextLengthError(f"{past} tokens and {count} more exceed the context of {self._max_context}")
        sequence.reserve(count)

    def _infer(
        self,
        ids: Ids,
        sequences: list[CacheSequence],
        rows: Ids,
        positions: list[Ids | None],
        embeddings: Sequence[Embedding] = (),
    ) -> list[Logits]:
        """Return logits (R, vocab) of each sequence, for the wanted rows R among its new, reserved tokens (B, T).

        B or T is 1: attention accepts nothing else. Only a single sequence may have embeddings.
        """
        try:
            return self._bind_and_run(ids, sequences, rows, positions, embeddings)
        except BaseException:
            self._forget_bindings()
            raise

    def _bind_and_run(
        self,
        ids: Ids,
        sequences: list[CacheSequence],
        rows: Ids,
        positions: list[Ids | None],
        embeddings: Sequence[Embedding],
    ) -> list[Logits]:
        count = rows.size
        if self._reproducible:  # pairs of rows have their own kernel; a token after the others changes none of them
            ids, rows = np.pad(ids, ((0, 0), (0, ids.size % 2))), np.pad(rows, (0, count % 2), mode="edge")
        size, new = ids.shape
        totals = [sequence.num_tokens + new for sequence in sequences]
        places = self._bind_rows({s.block_table[0]: total for s, total in zip(sequences, totals, strict=True)})
        turns = self._turns.rows([total - new for total in totals], new, positions) if self._pictures else None
        if size == 1:
            mask = self._ones[:, : totals[0]]
        else:
            order = np.argsort(places)
            ids = ids[order]
            turns = None if turns is None else turns[order]
            mask = (self._positions[: max(totals)] < np.array(totals)[order, None]).astype(np.int64)
        first, last = self._parts[0], self._parts[-1]
        first.give("input_ids", ids)
        last.give(WANTED_ROWS, rows)
        logits = last.take("logits", (size, rows.size, self._spec.vocab_size))
        for part, following in zip(self._parts, self._parts[1:], strict=False):
            hidden = part.take(NEXT_HIDDEN, (size, new, self._spec.hidden_size))
            following.bind({HIDDEN: hidden})
        for part in self._parts:
            part.bind({"attention_mask": mask})
        if turns is not None:
            self._give_shown(turns, embeddings)
        self._run()
        return [logits[place, :count] for place in places]

    def _give_shown(self, turns: Ids, embeddings: Sequence[Embedding]) -> None:
        """Give what tells of pictures; text costs as good as nothing."""
        self._bind_tables()
        replaced, rows = replacements(embeddings, turns.shape[1], self._spec.hidden_size)
        self._parts[0].give(REPLACED, replaced[None])
        self._parts[0].give(REPLACEMENTS, rows[None])
        for part in self._parts:
            part.give(ROTARY_ROWS, turns)

    def _bind_tables(self) -> None:
        if self._bound_tables is not self._turns.tables:
            for part in self._parts:
                part.bind(dict(zip(ROTARY_TABLES, self._turns.tables, strict=True)))
            self._bound_tables = self._turns.tables

    def _bind_rows(self, totals: dict[int, int]) -> list[int]:
        """Bind keys and values of some blocks; return the place of each block among the bound rows.

        totals: block -> its number of tokens, including the new ones.
        """
        rows, size = self._memory.rows(totals), len(totals)
        if max(rows) - min(rows) >= size:
            self._memory.gather(totals.keys())
            rows = self._memory.rows(totals)
        first = min(rows)
        if (first, size) != self._bound_rows:
            self._bound_rows = None  # until all are bound
            for name, buffer in zip(self._cached, self._memory.buffers, strict=True):
                view = buffer[first : first + size]
                for part in self._parts:
                    part.bind({past_name(name): view, present_name(name): view})
            self._bound_rows = first, size
        return [row - first for row in rows]

    def _run(self) -> None:
        """Run one inference, which `interrupt` can end."""
        options = self._options = ort.RunOptions()
        try:
            for part in self._parts:
                part.run(options)
        except Exception as error:  # pybind's exceptions share no base class
            if options.terminate:
                raise StepInterrupted from error
            raise DeviceError(f"the engine failed: {telling_line(error)}; try a shorter context") from error

    def _forget_bindings(self) -> None:
        """Bind everything anew in the next step: after a failure, it is unknown what is bound."""
        self._bound_rows, self._bound_tables = None, ()
        for part in self._parts:
            part.forget()


def _check_settings(settings: EngineSettings) -> None:
    if family_of(settings.device) != "CPU":
        raise DeviceError(f"device {shown(settings.device)}: the onnx engine runs on the CPU; use --engine openvino")
    device_here(settings.device, ["CPU"])
    if settings.inference_precision not in (None, "f32"):
        raise SettingsError(f"inference_precision is {settings.inference_precision}, the onnx engine has f32")
    if settings.kv_precision not in (None, *CACHE_TYPES):
        raise SettingsError(f"kv_precision is {settings.kv_precision}, the onnx engine has {' and '.join(CACHE_TYPES)}")


def _context(spec: ModelSpec, kind: type[np.floating[Any]], settings: EngineSettings) -> tuple[int, int, int]:
    """Return the tokens of one slot, the number of slots, and the tokens of all together. Raises SettingsError."""
    limit, budget = context_limit(settings, spec), cache_budget(settings)
    bytes_per_token = spec.kv_values_per_token * np.dtype(kind).itemsize
    padding = int(bool(settings.reproducible))
    allowed = budget // bytes_per_token - padding
    if allowed < (1 if settings.max_context is None else limit):
        raise SettingsError(
            f"a context of {limit} tokens needs {(limit + padding) * bytes_per_token:,} bytes of KV cache, "
            f"{budget:,} are allowed; lower max_context, raise kv_cache_bytes, or set kv_precision to f16"
        )
    # A slot takes memory as its tokens come, so there may be more slots than the budget would fill.
    slots = MAX_SLOTS if TAKEN_LATE and not addresses_are_limited() else min(allowed // min(limit, allowed), MAX_SLOTS)
    return min(limit, allowed), slots, allowed
