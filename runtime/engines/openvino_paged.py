"""OpenVINO with paged attention: the bundle's stateful IR, with its KV state replaced by block pools that we own.

In: an IR and settings. Out: an `Engine`. Knows nothing about tokenizers or sampling. The transformation is the one that
openvino_genai uses (openvino src/core/src/pass/sdpa_to_paged_attention.cpp). Block layouts are read from the compiled
model, never assumed (`openvino_caches`); where blocks are depends on the device (`openvino_memory`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino._offline_transformations import paged_attention_transformation

from edge.runtime.arrays import Array, Ids, Logits
from edge.runtime.bundle import MODEL_XML, Bundle
from edge.runtime.engines.devices import device_here
from edge.runtime.engines.engine import TEXT, Embedding, EngineInfo, Inputs, Step, StepInterrupted
from edge.runtime.engines.limits import cache_budget, context_limit, max_running, prefill_chunk
from edge.runtime.engines.openvino_caches import caches_of, head_sizes, tokens_per_block
from edge.runtime.engines.openvino_core import make_core, openvino_told
from edge.runtime.engines.openvino_graph import read_graph
from edge.runtime.engines.openvino_inputs import TURNS, take_replacements, take_turns
from edge.runtime.engines.openvino_memory import MemoryKind, make_memory, memory_kind
from edge.runtime.engines.openvino_properties import properties
from edge.runtime.engines.openvino_rows import keep_wanted_rows
from edge.runtime.engines.replacements import replacements
from edge.runtime.errors import DeviceError, SettingsError, shown, telling_line
from edge.runtime.graph_names import REPLACED, REPLACEMENTS, WANTED_ROWS
from edge.runtime.kv.memory import NoMemory
from edge.runtime.kv.pool import BlockPool, CacheSequence
from edge.runtime.machine import family_of
from edge.runtime.rotary import per_frequency, position_rows
from edge.runtime.settings import KV_PRECISIONS, CachePrecision, EngineSettings
from edge.runtime.spec import ModelSpec

FAMILIES = ("CPU", "GPU")  # kinds of devices whose plugins have paged attention
XATTENTION_BLOCK = 256  # tokens; such attention takes one sequence at a time (paged_attention_inst.cpp of intel_gpu)
PREFILL_CHUNK = 512  # tokens; a prefill takes 2 % longer with 256, 5 % with 128
MAX_SEQUENCES = 256  # in one step, since their logits are in memory at once


class _Run(NamedTuple):
    """What attention sees as one sequence."""

    past: int  # tokens in the cache
    ids: Ids  # (n,) new tokens
    positions: Array  # (n,), or (n, rotary_dim / 2) where each frequency has its own
    blocks: list[int]


def open_paged(bundle: Bundle, settings: EngineSettings, kind: MemoryKind | None = None) -> OpenVINOPagedEngine:
    """Open the engine of a bundle. What rules refuse for a device was refused before (`EngineRecord.check`)."""
    manifest = bundle.manifest
    pictures = manifest.vision is not None
    return OpenVINOPagedEngine(
        bundle.path / MODEL_XML, manifest.spec, manifest.fewest_bits, settings, kind, pictures=pictures
    )


class OpenVINOPagedEngine:
    """One compiled model and its KV pools. Raises BundleError, DeviceError and SettingsError.

    Single-row and multi-row matrix kernels round differently, and so does attention from one query and from several.
    Within each kind, results are bit-equal whatever else is computed at once (measured by benchmarks/kv.py).
    `reproducible` always uses the multi-row products and, while decoding, single-query attention: drafted tokens then
    become sequences of one token each over the same blocks. That is not possible with 8- and 4-bit caches, where a
    block's scale depends on the tokens written into it.
    """

    def __init__(
        self,
        model_xml: Path,
        spec: ModelSpec,
        weight_bits: int,
        settings: EngineSettings,
        kind: MemoryKind | None = None,
        *,
        pictures: bool = False,
    ) -> None:
        """kind: where blocks are; None: as suits the device. pictures: whether rows may replace embeddings."""
        limit, budget = context_limit(settings, spec), cache_budget(settings)
        core = make_core()
        settings = replace(settings, device=_checked_device(core, settings.device))
        family = family_of(settings.device)
        heads: dict[str, int] = {}

        def compile_model() -> Any:
            with openvino_told(f"{settings.device} cannot run {model_xml}"):
                chosen = properties(core, settings, family, spec, weight_bits, budget, limit)
                model = read_graph(core, model_xml, spec)
                paged_attention_transformation(model)
                heads.update(head_sizes(model))
                if pictures:
                    take_replacements(model, spec)
                    if spec.rope_sections:
                        take_turns(model, spec)
                keep_wanted_rows(model)
                return core.compile_model(model, settings.device, chosen)

        self._compile = compile_model
        self._model: Any = compile_model()
        compiled = self._model
        self._request: Any = None  # also after a failure
        self._inputs: dict[str, npt.NDArray[Any]] = {}  # the memory of the request's small inputs
        self._spec, self._pictures = spec, pictures
        self._ending = False  # the latest run was told to end
        self._reproducible = bool(settings.reproducible)

        self.caches = caches_of(compiled)
        if not self.caches:
            raise DeviceError(f"{settings.device} finds no attention over a cache in {model_xml}; export it again")
        self._block_size = tokens_per_block(self.caches, heads)
        self._independent_tokens = all(cache.kind.is_real() for cache in self.caches)
        block_bytes, spare = sum(cache.block_bytes for cache in self.caches), int(self._reproducible)
        wanted, allowed = math.ceil(limit / self._block_size), budget // block_bytes - spare
        if allowed < (1 if settings.max_context is None else wanted):
            raise SettingsError(
                f"a context of {limit} tokens needs {(wanted + spare) * block_bytes:,} bytes of KV cache, "
                f"{budget:,} are allowed; lower max_context, raise kv_cache_bytes, or set kv_precision to u8 or u4"
            )
        self.memory_kind = kind or memory_kind(family, _is_integrated(core, settings.device), self.caches)
        context = None if self.memory_kind == "arrays" else _context(core, settings.device)
        memory, self._tensors = make_memory(self.memory_kind, self.caches, allowed + spare, context)
        self._spare = allowed  # the block that padding rows write to
        memory.blank([self._spare] * spare)
        self.pool = BlockPool(allowed, self._block_size, memory)
        self._request = self._new_request()
        types = dict.fromkeys(cache.kind.to_string() for cache in self.caches)
        self.info = EngineInfo(
            name="openvino",
            device=settings.device,
            max_context=min(limit, allowed * self._block_size),
            prefill_chunk=prefill_chunk(settings, spec, PREFILL_CHUNK),
            max_running=max_running(settings, spec),
            kv_bytes_per_token=block_bytes // self._block_size,
            kv_precision=_precision(types),
            reproducible=self._reproducible,
            max_sequences=1 if family != "CPU" and self._block_size == XATTENTION_BLOCK else MAX_SEQUENCES,
            least_rows=2 if self._reproducible else 1,
            ragged=True,
            takes_positions=True,
            position_rows=position_rows(spec) if pictures else 1,
            embedding_size=spec.hidden_size if pictures else None,
        )
        self.identity = {
            "engine": self.info.name,
            "engine version": ov.get_version(),  # each version may lay out a block in its own way
            "device": family,
            "reproducible": str(self._reproducible),
            "kv precision": "/".join(types),
            "cache": " ".join(dict.fromkeys(str(cache.shape) for cache in self.caches)),
            "inference precision": compiled.get_property("INFERENCE_PRECISION_HINT").to_string(),
            "group of rounded activations": str(compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE")),
        }

    def forward(self, ids: Ids, sequence: CacheSequence, rows: Ids, inputs: Inputs = TEXT) -> Logits:
        assert self._pictures or not inputs.embeddings, "the graph takes ids"
        sequence.reserve(ids.size)
        run = self._run_of(sequence, ids, inputs.positions)
        if self._reproducible and self._independent_tokens and ids.size == 1:
            # A single token would use the single-row kernels, so it runs twice; the copy's keys overwrite nothing.
            more = [self._spare] if self.pool.blocks_for(run.past + 2) > len(run.blocks) else []
            run = _Run(run.past, np.repeat(ids, 2), np.repeat(run.positions, 2, axis=0), run.blocks + more)
        wanted = np.repeat(rows, 2) if self._reproducible and rows.size == 1 else rows
        logits = self._infer([run], wanted, inputs.embeddings)
        sequence.commit(ids.size)
        return logits[: rows.size]

    def decode(self, steps: list[Step]) -> list[Logits]:
        for step in steps:
            step.sequence.reserve(step.ids.size)
        runs: list[_Run] = []
        for sequence, ids, positions in steps:
            run = self._run_of(sequence, ids, positions)
            if self._reproducible and self._independent_tokens:
                runs += [self._single(run, i) for i in range(ids.size)]
            else:
                runs.append(run)
        if self._reproducible and len(runs) == len(steps) == steps[0].ids.size == 1:
            runs.append(_Run(0, steps[0].ids, np.zeros_like(runs[0].positions), [self._spare]))
        logits = self._infer(runs, np.arange(sum(run.ids.size for run in runs), dtype=np.int64))
        ends = list(accumulate(step.ids.size for step in steps))
        for step in steps:
            step.sequence.commit(step.ids.size)
        return [logits[end - step.ids.size : end] for step, end in zip(steps, ends, strict=True)]

    def interrupt(self, *, final: bool) -> None:
        """Act only on a final interrupt: after a cancelled run, the CPU plugin keeps stale shapes and fails later."""
        request = self._request
        if final and request is not None:
            self._ending = True
            request.cancel()

    def close(self) -> None:
        """Release the compiled model and the pool's memory."""
        self._request = self._model = None
        self._inputs.clear()
        self._tensors = {}
        self.caches = []  # their types are the model's, and keep it in memory
        self.pool.memory = NoMemory()

    def _run_of(self, sequence: CacheSequence, ids: Ids, positions: Ids | None) -> _Run:
        """Return the run of new tokens after those of a sequence."""
        past = sequence.num_tokens
        if positions is None:
            positions = np.arange(past, past + ids.size)
        places = per_frequency(positions, self._spec) if self._has_turns else positions
        # Exactly the blocks that hold past and new tokens; an interrupted step may have reserved more.
        return _Run(past, ids, places, sequence.block_table[: self.pool.blocks_for(past + ids.size)])

    def _single(self, run: _Run, i: int) -> _Run:
        """Return one token of a run as a run of its own; the same inference computes those before it."""
        past = run.past + i
        return _Run(past, run.ids[i : i + 1], run.positions[i : i + 1], run.blocks[: self.pool.blocks_for(past + 1)])

    @property
    def _has_turns(self) -> bool:
        """Whether each rotary frequency turns by a position of its own."""
        return self._pictures and bool(self._spec.rope_sections)

    def _infer(self, runs: list[_Run], rows: Ids, embeddings: Sequence[Embedding] = ()) -> Logits:
        """Return logits (R, vocab) of the wanted rows, counted over the tokens of all runs, as `embeddings` are."""
        if self._request is None:
            self._request = self._new_request()
        try:
            self._set("input_ids", np.concatenate([run.ids for run in runs]))
            positions = np.concatenate([run.positions for run in runs])
            if self._has_turns:
                self._set(TURNS, positions[:, None])
            else:
                self._set("position_ids", positions)
            if self._pictures:
                mask, replaced = replacements(embeddings, len(positions), self._spec.hidden_size)
                self._set(REPLACED, mask[:, None])
                self._set(REPLACEMENTS, replaced[:, None])
            self._set("past_lens", np.array([run.past for run in runs], np.int32))
            self._set("subsequence_begins", np.array([0, *accumulate(run.ids.size for run in runs)], np.int32))
            self._set("block_indices", np.array([block for run in runs for block in run.blocks], np.int32))
            self._set("block_indices_begins", np.array([0, *accumulate(len(run.blocks) for run in runs)], np.int32))
            self._set("max_context_len", np.array(max(run.past + run.ids.size for run in runs), np.int32))
            self._set(WANTED_ROWS, rows)
            self._run()
        except BaseException:
            self._inputs.clear()  # which of them were set is unknown, so set all again
            raise
        logits: Logits = self._request.get_output_tensor(0).data
        return logits.reshape(rows.size, -1)

    def _new_request(self) -> Any:
        """Return a request with the caches set; after a failure, compile the model anew first."""
        if self._model is None:
            self._model = self._compile()
        request = self._model.create_infer_request()
        for name, tensor in self._tensors.items():
            request.set_tensor(name, tensor)
        return request

    def _run(self) -> None:
        """Run one inference. In the main thread, Ctrl-C takes effect only after it has ended."""
        self._ending = False
        try:
            self._request.start_async()
            try:
                self._request.wait()
            finally:  # whatever ended the wait: the run still reads inputs that are about to be freed
                self._request.wait()
        except RuntimeError as error:
            self._request = self._model = None  # the state that the plugin keeps of this run cannot be trusted
            if self._ending:
                raise StepInterrupted from error
            raise DeviceError(f"the engine failed: {telling_line(error, last=True)}; try a shorter context") from error

    def _set(self, name: str, value: npt.NDArray[Any]) -> None:
        """Give an input its value, in place if its shape is that of the last call, which saves a `set_tensor`."""
        current = self._inputs.get(name)
        if current is not None and current.shape == value.shape:
            current[...] = value
        else:
            value = value.copy()
            self._request.set_tensor(name, ov.Tensor(value, shared_memory=True))
            self._inputs[name] = value


def _checked_device(core: ov.Core, device: str) -> str:
    """Return a device's name as OpenVINO has it. Raises DeviceError unless this engine runs on it, and it is here."""
    devices = core.available_devices  # asking loads every plugin
    if family_of(device) not in FAMILIES:
        kinds, here = " and ".join(FAMILIES), ", ".join(devices)
        raise DeviceError(f"device {shown(device)}: the openvino engine runs on {kinds}; devices here: {here}")
    return device_here(device, devices)


def _precision(types: Collection[str]) -> CachePrecision:
    """Return the name of what caches are stored in. Raises DeviceError for what has none."""
    found = next((name for name in KV_PRECISIONS if name in types), None)
    if found is None:
        raise DeviceError(f"the device stores its KV cache in {', '.join(types)}; set kv_precision to f16")
    return found


def _is_integrated(core: ov.Core, device: str) -> bool:
    """Whether a device has no memory of its own."""
    return str(core.get_property(device, "DEVICE_TYPE")).upper().endswith("INTEGRATED")


def _context(core: ov.Core, device: str) -> Any:
    """Return the context in which a device allocates, as models compiled for it do. Raises DeviceError."""
    with openvino_told(f"{device} allocates no memory for a KV cache"):
        return core.get_default_context(device)
