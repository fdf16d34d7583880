"""OpenVINO with paged attention: the bundle's stateful IR, its KV state replaced by block pools that we own.

In: an IR and settings. Out: an `Engine`. Knows nothing about tokenizers or sampling. The transformation is the one
openvino_genai uses (openvino src/core/src/pass/sdpa_to_paged_attention.cpp); block layouts are read off the compiled
model and never assumed.
"""

from __future__ import annotations

import math
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import openvino as ov
import openvino.opset13 as op
from openvino._offline_transformations import paged_attention_transformation

from edge.runtime.arrays import Ids, Logits
from edge.runtime.engines.engine import TEXT, EngineInfo, Inputs, Step, StepInterrupted
from edge.runtime.engines.limits import cache_budget, context_limit
from edge.runtime.engines.openvino_core import make_core
from edge.runtime.engines.openvino_graph import read_graph
from edge.runtime.errors import DeviceError, EdgeError, SettingsError, telling_line
from edge.runtime.graph_names import ATTENTION_OUT, ATTENTION_RESIDUAL, WANTED_ROWS
from edge.runtime.kv.memory import NoMemory, PagedMemory
from edge.runtime.kv.pool import BlockPool, CacheSequence
from edge.runtime.machine import family_of
from edge.runtime.settings import KV_PRECISIONS, CachePrecision, EngineSettings
from edge.runtime.spec import ModelSpec
from edge.runtime.terminal_text import on_one_line

# Tokens a block holds: fixed by each plugin's kernels (openvino.genai src/cpp/src/continuous_batching, cache manager).
BLOCK_SIZES = {"CPU": 32, "GPU": 16}
ACTIVATION_GROUP = 32  # activations that are rounded to int8 together
PREFILL_CHUNK = 512  # tokens; of 256 a prefill takes 2 % longer, of 128 5 %
MAX_SEQUENCES = 256  # in one step; their logits are in memory at once


class _Run(NamedTuple):
    """What attention sees as one sequence."""

    past: int  # tokens in the cache
    ids: Ids  # (n,) new tokens
    positions: Ids  # (n,)
    blocks: list[int]


class OpenVINOPagedEngine:
    """One compiled model and its KV pools. Raises BundleError, DeviceError and SettingsError.

    Kernels for one row round otherwise than those for several, and attention from one query otherwise than from
    several; within each of these, results are bit-equal whatever else is computed at once (measured by
    benchmarks/kv.py). `reproducible` keeps to the second kind of products and, while decoding, to the first of
    attention: drafted tokens are then sequences of one token each over the same blocks, which 8- and 4-bit caches do
    not bear (a block's scale follows the tokens written into it).
    """

    def __init__(self, model_xml: Path, spec: ModelSpec, weight_bits: int, settings: EngineSettings) -> None:
        limit = context_limit(settings, spec)
        core = make_core()
        family = family_of(settings.device)
        devices = core.available_devices  # asking loads every plugin
        here = f"devices here: {', '.join(devices)}"
        if family not in BLOCK_SIZES:
            raise DeviceError(
                f"device {settings.device!r}: the openvino engine runs on {' and '.join(BLOCK_SIZES)}; {here}"
            )
        if not any(name.split(".")[0] == family for name in devices):
            raise DeviceError(f"device {settings.device!r} does not exist on this machine; {here}")
        budget = cache_budget(settings)

        def compile_model() -> Any:
            try:
                properties = _properties(core, settings, family, spec, weight_bits, budget, limit)
                model = read_graph(core, model_xml, spec)
                paged_attention_transformation(model)
                _keep_wanted_rows(model)
                return core.compile_model(model, settings.device, properties)
            except EdgeError:
                raise
            except Exception as error:  # RuntimeError, and what bindings make of bytes that are no text
                said = on_one_line(telling_line(error, last=True))
                raise DeviceError(f"{settings.device} cannot run {model_xml}: {said}") from error

        self._compile = compile_model
        self._model: Any = compile_model()
        compiled = self._model
        self._request: Any = None  # also after a failure
        self._inputs: dict[str, npt.NDArray[np.integer]] = {}  # the memory behind the request's small inputs
        self._ending = False  # the latest run was told to end
        self._block_size = BLOCK_SIZES[family]
        self._reproducible = bool(settings.reproducible)

        caches = [port for port in compiled.inputs if port.any_name.startswith(("key_cache.", "value_cache."))]
        if not caches:
            raise DeviceError(f"{settings.device} finds no attention over a cache in {model_xml}; export it again")
        shapes = [[d.get_length() for d in list(port.partial_shape)[1:]] for port in caches]
        sizes = [port.element_type.bitwidth * math.prod(shape) // 8 for port, shape in zip(caches, shapes, strict=True)]
        self._independent_tokens = all(port.element_type.is_real() for port in caches)
        block_bytes, spare = sum(sizes), int(self._reproducible)
        wanted, allowed = math.ceil(limit / self._block_size), budget // block_bytes - spare
        if allowed < (1 if settings.max_context is None else wanted):
            raise SettingsError(
                f"a context of {limit} tokens needs {(wanted + spare) * block_bytes:,} bytes of KV cache, "
                f"{budget:,} are allowed; lower max_context, raise kv_cache_bytes, or set kv_precision to u8 or u4"
            )
        memory = PagedMemory(allowed + spare, sizes)
        self._spare = allowed  # the block of rows that nobody asked for
        self.pool = BlockPool(allowed, self._block_size, memory)
        self._caches = {
            port.any_name: ov.Tensor(buffer, ov.Shape([len(buffer), *shape]), port.element_type)
            for port, shape, buffer in zip(caches, shapes, memory.buffers, strict=True)
        }
        self._request = self._new_request()
        types = dict.fromkeys(port.element_type.to_string() for port in caches)
        self.info = EngineInfo(
            name="openvino",
            device=settings.device,
            max_context=min(limit, allowed * self._block_size),
            prefill_chunk=PREFILL_CHUNK,
            kv_bytes_per_token=block_bytes // self._block_size,
            kv_precision=next(name for name in KV_PRECISIONS if name in types),
            reproducible=self._reproducible,
            max_sequences=MAX_SEQUENCES,
            ragged=True,
            takes_positions=True,
        )
        self.identity = {
            "engine": self.info.name,
            "engine version": ov.get_version(),  # what is inside a block is the plugin's own affair
            "device": family,
            "reproducible": str(self._reproducible),
            "kv precision": "/".join(types),
            "cache": " ".join(dict.fromkeys(str(shape) for shape in shapes)),
            "inference precision": compiled.get_property("INFERENCE_PRECISION_HINT").to_string(),
            "group of rounded activations": str(compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE")),
        }

    def forward(self, ids: Ids, sequence: CacheSequence, rows: Ids, inputs: Inputs = TEXT) -> Logits:
        assert not inputs.embeddings, "the graph takes ids"
        sequence.reserve(ids.size)
        run = self._run_of(sequence, ids, inputs.positions)
        if self._reproducible and self._independent_tokens and ids.size == 1:
            # One token alone would take the kernels for one row; the second's keys overwrite nothing.
            more = [self._spare] if self.pool.blocks_for(run.past + 2) > len(run.blocks) else []
            run = _Run(run.past, np.repeat(ids, 2), run.positions[0] + np.arange(2), run.blocks + more)
        wanted = np.repeat(rows, 2) if self._reproducible and rows.size == 1 else rows
        logits = self._infer([run], wanted)
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
            runs.append(_Run(0, steps[0].ids, np.zeros(1, np.int64), [self._spare]))
        logits = self._infer(runs, np.arange(sum(run.ids.size for run in runs), dtype=np.int64))
        ends = list(accumulate(step.ids.size for step in steps))
        for step in steps:
            step.sequence.commit(step.ids.size)
        return [logits[end - step.ids.size : end] for step, end in zip(steps, ends, strict=True)]

    def interrupt(self, *, final: bool) -> None:
        """Only for good: the CPU plugin does not forget the shapes that a cancelled run had got to, and fails later."""
        request = self._request
        if final and request is not None:
            self._ending = True
            request.cancel()

    def close(self) -> None:
        """Let go of the compiled model and of the pool's memory."""
        self._request = self._model = None
        self._inputs.clear()
        self._caches.clear()
        self.pool.memory = NoMemory()

    def _run_of(self, sequence: CacheSequence, ids: Ids, positions: Ids | None) -> _Run:
        """New tokens after those of a sequence."""
        past = sequence.num_tokens
        if positions is None:
            positions = np.arange(past, past + ids.size)
        # Exactly the blocks that hold past + new tokens; an interrupted step may have reserved more.
        return _Run(past, ids, positions, sequence.block_table[: self.pool.blocks_for(past + ids.size)])

    def _single(self, run: _Run, i: int) -> _Run:
        """One token of a run, after those before it, which the same inference computes."""
        past = run.past + i
        return _Run(past, run.ids[i : i + 1], run.positions[i : i + 1], run.blocks[: self.pool.blocks_for(past + 1)])

    def _infer(self, runs: list[_Run], rows: Ids) -> Logits:
        """Logits (R, vocab) of the wanted rows, counted over the tokens of all runs."""
        if self._request is None:
            self._request = self._new_request()
        try:
            self._set("input_ids", np.concatenate([run.ids for run in runs]))
            self._set("position_ids", np.concatenate([run.positions for run in runs]))
            self._set("past_lens", np.array([run.past for run in runs], np.int32))
            self._set("subsequence_begins", np.array([0, *accumulate(run.ids.size for run in runs)], np.int32))
            self._set("block_indices", np.array([block for run in runs for block in run.blocks], np.int32))
            self._set("block_indices_begins", np.array([0, *accumulate(len(run.blocks) for run in runs)], np.int32))
            self._set("max_context_len", np.array(max(run.past + run.ids.size for run in runs), np.int32))
            self._set(WANTED_ROWS, rows)
            self._run()
        except BaseException:
            self._inputs.clear()  # set all of them again: nobody knows which are
            raise
        logits: Logits = self._request.get_output_tensor(0).data
        return logits.reshape(rows.size, -1)

    def _new_request(self) -> Any:
        """A request with the caches set, of a model that is compiled anew after a failure."""
        if self._model is None:
            self._model = self._compile()
        request = self._model.create_infer_request()
        for name, tensor in self._caches.items():
            request.set_tensor(name, tensor)
        return request

    def _run(self) -> None:
        """One inference. Where this is the main thread, Ctrl-C takes effect when it has ended."""
        self._ending = False
        try:
            self._request.start_async()
            self._request.wait()
        except RuntimeError as error:
            self._request = self._model = None  # what the plugin remembers of this run may not be trusted
            if self._ending:
                raise StepInterrupted from error
            raise DeviceError(f"the engine failed: {telling_line(error, last=True)}; try a shorter context") from error

    def _set(self, name: str, value: npt.NDArray[np.integer]) -> None:
        """Give an input its value: in place where its shape is that of the last call, which setting a tensor is not."""
        current = self._inputs.get(name)
        if current is not None and current.shape == value.shape:
            current[...] = value
        else:
            value = value.copy()
            self._request.set_tensor(name, ov.Tensor(value, shared_memory=True))
            self._inputs[name] = value


def _keep_wanted_rows(model: ov.Model) -> None:
    """Compute only the wanted rows from where no other row is needed any more.

    That is behind the last attention, which still gave every token its keys and values: the last block's MLP and the
    vocabulary projection then see the wanted rows alone.
    """
    rows = op.parameter(ov.PartialShape([-1]), ov.Type.i64, name=WANTED_ROWS)
    rows.output(0).set_names({WANTED_ROWS})
    nodes = {node.get_friendly_name(): node for node in model.get_ordered_ops()}
    residuals = [name for name in nodes if name.endswith(ATTENTION_RESIDUAL)]
    if residuals:
        skipped, _ = nodes[residuals[-1]].inputs()  # what attention is added to
        projection = residuals[-1].removesuffix(ATTENTION_RESIDUAL) + ATTENTION_OUT
        ports = [nodes[projection].input(0), skipped]
    else:  # a graph that is not ours
        ports = [_head_input(model)]
    for port in ports:
        axis = op.constant(np.int64(_token_axis(port)))
        port.replace_source_output(op.gather(port.get_source_output(), rows, axis).output(0))
    model.add_parameters([rows])
    model.validate_nodes_and_infer_types()


def _head_input(model: ov.Model) -> Any:
    """Where hidden states enter the vocabulary projection; where none can be told, where logits leave the graph.

    Behind the projection only what treats every row alike may stand (a bias, a scale, a soft cap): operations with one
    input that varies. An operation with several, like a reshape to a computed shape, could count rows itself.
    """
    result = model.output("logits").get_node()
    node = result
    while True:
        varying = [port for port in node.inputs() if not _is_constant(port.get_source_output().get_node())]
        if len(varying) != 1:
            return result.input(0)
        if node.get_type_name() == "MatMul":
            return varying[0]
        node = varying[0].get_source_output().get_node()


def _is_constant(node: Any) -> bool:
    """Whether a node is a constant, or one that is decompressed."""
    kind = node.get_type_name()
    return kind == "Constant" or (
        kind in ("Convert", "Subtract", "Multiply", "Reshape", "Transpose")
        and all(_is_constant(value.get_node()) for value in node.input_values())
    )


def _token_axis(port: Any) -> int:
    """The axis of tokens: paged attention makes (T, 1, H) of (B, T, H), and (T, H) stays what it is."""
    shape = port.get_partial_shape()
    return next((axis for axis in range(len(shape)) if shape[axis].is_dynamic), 0)


def _properties(
    core: ov.Core,
    settings: EngineSettings,
    family: str,
    spec: ModelSpec,
    weight_bits: int,
    budget: int,
    limit: int,
) -> dict[str, Any]:
    """What was set, and on CPU our own choice of the rest. The figures behind it: benchmarks/README.md."""
    kv_precision, group = settings.kv_precision, settings.dynamic_quantization_group
    precision = settings.inference_precision
    if family == "CPU":
        # The fastest that costs less than 2 % of what the recipe does: 4 bits bear rounded activations, 8 do not.
        if group is None:
            group = ACTIVATION_GROUP if weight_bits == 4 else 0
        if precision is None and weight_bits > 4:
            precision = "f32"
        if precision is None and kv_precision == "f32":
            precision = "f32"  # the kernel for bf16 queries takes no f32 keys
        inference = precision or core.get_property("CPU", "INFERENCE_PRECISION_HINT").get_type_name()
        if kv_precision is None:
            kv_precision = _kv_precision(inference, spec, budget, limit, bool(settings.reproducible))
        elif {kv_precision, inference} == {"f32", "bf16"}:
            raise SettingsError(
                f"kv_precision is {kv_precision}, expected f16, u8 or u4 where the inference precision is {inference}",
                param="kv_precision",
            )
    chosen = {
        "INFERENCE_PRECISION_HINT": precision,
        "KV_CACHE_PRECISION": kv_precision,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": group,
        "INFERENCE_NUM_THREADS": settings.threads,
    }
    return {name: value for name, value in chosen.items() if value is not None}


def _kv_precision(inference: str, spec: ModelSpec, budget: int, limit: int, reproducible: bool) -> CachePrecision:
    """16 bits where the whole context fits into the budget, which decodes faster and is more accurate; else u8.

    Reproducible results need 16 bits: the context is then what fits.
    """
    bytes_per_token = spec.kv_values_per_token * 2
    if bytes_per_token * limit > budget and not reproducible:
        return "u8"
    return "bf16" if inference == "bf16" else "f16"  # the kernel for bf16 queries takes bf16 keys only
