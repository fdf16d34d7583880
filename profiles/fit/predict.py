"""What a model takes and reaches at one place: memory, speed, start and context, each with its error.

In: a `Planned` model, a `Place`, and the context that is wanted. Out: a `Prediction`. Every constant comes from
`measured` or `published`; where neither knows, the figure is None. Prints nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from edge.profiles.fit import measured
from edge.profiles.fit.figures import Figure
from edge.profiles.fit.places import Place
from edge.profiles.fit.published import GPU_KV, NPU_KV, efficiency
from edge.profiles.fit.subject import Planned
from edge.runtime.footprint import EMBEDDING, HEAD, Footprint, footprint, kept_bytes, kv_bytes, read_tensors
from edge.runtime.lint import Finding, Target
from edge.runtime.lint.registry import findings as lint_findings
from edge.runtime.lint.subject import planned_subject
from edge.runtime.spec import ModelSpec
from edge.runtime.tensor_records import TensorRecord

PROMPT = 1024  # tokens of the prompt that speeds are told for
CHUNKS = {"openvino": 512, "onnx": 128, "openvino_npu": 256}  # tokens that are read at once
# Of the advertised operations, what reading a prompt reaches on a GPU or an NPU: a guess, which the published times of
# GLM-4-9B are within a factor of 2 of.
TOPS_SHARE, TOPS_FACTOR = 0.25, 2.0
NPU_FACTOR = 3.0  # of a prompt on an NPU: next to nothing is published
# Memory. Of a GPU: what one published figure of another model has beside its weights; GLM-4-9B's five are within it.
GPU_MEMORY_FACTOR, NPU_MEMORY_FACTOR = 1.2, 2.0
OTHER_CPU_FACTOR = 3.0  # of a prompt on a CPU that was never measured, from ours by its cores
EFFICIENT_CORE = 0.5  # of a performance core, in the same guess


@dataclass(frozen=True, slots=True)
class Prediction:
    """One model, recipe and place."""

    place: Place
    recipe: str
    engine: str
    kv_precision: str
    context_tokens: int
    footprint: Footprint
    memory: Figure  # bytes at that context
    decode: Figure  # tokens a second, after a prompt of PROMPT tokens
    ttft: Figure | None  # seconds, of such a prompt
    load: Figure | None  # seconds until a model is ready, its first repacking included, files in memory
    longest_context: int  # that there is room for; 0: not even one token
    fits: bool | None  # whether the wanted context does; None: how much memory there is is not known
    findings: tuple[Finding, ...]  # rules of the device that these weights break, or prompts as long as the context

    @property
    def refused(self) -> bool:
        return refused(self.findings)

    @property
    def runs(self) -> bool:
        return self.fits is not False and not self.refused


def predict(
    planned: Planned,
    place: Place,
    context_tokens: int,
    *,
    engines: Iterable[str] = ("openvino", "onnx"),
    tokenizer_bytes: int | None = None,
    draft: Planned | None = None,
) -> Prediction:
    """What is known of a model at a place. draft: a second one that drafts for it, whose memory counts as well."""
    spec, tensors = planned.spec, together(planned.tensors)
    bits = min((one.bits for one in tensors.values() if len(one.shape) > 1), default=32)
    engine = engine_for(place, bits, tuple(engines))
    precision = _kv_precision(place, engine, bits)

    drafting = None if draft is None else together(draft.tensors)

    def of(
        one: ModelSpec, weights: int, records: Mapping[str, TensorRecord], tokens: int, size: int | None
    ) -> Footprint:
        return footprint(
            one,
            weights,
            engine=engine,
            context_tokens=tokens,
            kv_precision=precision,
            prefill_chunk=CHUNKS[engine],
            device=place.kind.upper(),
            tensors=records,
            tokenizer_bytes=size,
        )

    def at(tokens: int) -> Footprint:
        found = of(spec, planned.weight_bytes, tensors, tokens, tokenizer_bytes)
        if draft is not None and drafting is not None:
            most_of_draft = min(tokens, draft.spec.max_position_embeddings)
            found = found.beside(of(draft.spec, draft.weight_bytes, drafting, most_of_draft, 0))
        return replace(found, base=0) if place.own_memory else found  # the rest is in the machine's memory

    room, most = place.room_bytes, spec.max_position_embeddings
    prompt = min(PROMPT, max(context_tokens - 1, 1))
    needed = at(context_tokens)
    rules = _rules(planned, place)
    return Prediction(
        place=place,
        recipe=planned.recipe,
        engine=engine,
        kv_precision=precision,
        context_tokens=context_tokens,
        footprint=needed,
        memory=_memory(place, engine, needed),
        decode=_decode(spec, tensors, place, engine, precision, prompt),
        ttft=_ttft(spec, place, engine, bits, prompt),
        load=_load(place, engine, needed),
        longest_context=_longest(
            most, lambda tokens: not refused(rules(tokens)) and (room is None or at(tokens).peak <= room)
        ),
        fits=None if room is None else needed.peak <= room,
        findings=rules(context_tokens),
    )


def refused(findings: Iterable[Finding]) -> bool:
    return any(finding.refused for finding in findings)


def _rules(planned: Planned, place: Place) -> Callable[[int], tuple[Finding, ...]]:
    """What the rules of a device say of these weights, were prompts to have so many tokens."""
    if place.kind == "cpu":
        return lambda _: ()
    subject = planned_subject(planned.spec, planned.tensors, planned.recipe)

    def found(tokens: int) -> tuple[Finding, ...]:
        target = Target(place.kind.upper(), platform=place.platform or None, max_prompt=tokens)
        return tuple(finding for finding in lint_findings(subject, target) if finding.severity != "slow")

    return found


def engine_for(place: Place, bits: int, engines: tuple[str, ...]) -> str:
    """The engine that `auto` would take: on a CPU onnx for 4 bits; one that there is no graph for is not taken."""
    if place.kind == "npu":
        return "openvino_npu"
    if place.kind == "gpu" or "onnx" not in engines:
        return "openvino"
    return "onnx" if bits <= 4 or "openvino" not in engines else "openvino"


def _kv_precision(place: Place, engine: str, bits: int) -> str:
    if place.kind == "cpu":
        return "f32" if engine == "onnx" else "bf16" if bits == 4 else "f16"
    return GPU_KV if place.kind == "gpu" else NPU_KV


def together(tensors: Mapping[str, TensorRecord]) -> dict[str, TensorRecord]:
    """The same weights with all blocks as one, stacked: sizes and groups stay, and there are few to go through."""
    stacked: dict[tuple[str, str, tuple[int, ...]], list[TensorRecord]] = {}
    for name, record in tensors.items():
        part = re.sub(r"\d+", "*", name) if name not in (EMBEDDING, HEAD) else name
        stacked.setdefault((part, record.precision, record.shape), []).append(record)
    found = {}
    for index, ((part, precision, shape), records) in enumerate(stacked.items()):
        size = sum(record.nbytes for record in records)
        name = part if part in (EMBEDDING, HEAD) else f"{part} {index}"
        found[name] = TensorRecord((shape[0] * len(records), *shape[1:]), precision, size, "")
    return found


def operations(spec: ModelSpec, tokens: int) -> float:
    """Multiplications and additions of a prompt: blocks for every token, attention, and one row of logits."""
    h, f = spec.hidden_size, spec.intermediate_size
    block = h * (spec.q_size + 2 * spec.kv_size) + spec.q_size * h + 3 * h * f
    attention = 4.0 * tokens * tokens / 2 * spec.q_size
    return spec.num_layers * (2.0 * block * tokens + attention) + 2.0 * spec.vocab_size * h


def _memory(place: Place, engine: str, needed: Footprint) -> Figure:
    if place.kind == "cpu":
        factor = measured.worst(engine, measured.memory_factor)
        return Figure(needed.peak, factor, f"the worst of the pairs measured on {measured.stored().machine}")
    if place.kind == "npu":
        return Figure(needed.peak, NPU_MEMORY_FACTOR, "a guess: nothing is published", about=True)
    return Figure(
        needed.peak, GPU_MEMORY_FACTOR, "one published figure of another model; GLM-4-9B's five are within it"
    )


def _decode(
    spec: ModelSpec,
    tensors: Mapping[str, TensorRecord],
    place: Place,
    engine: str,
    precision: str,
    prompt: int,
) -> Figure:
    if place.measured:
        rates = measured.stored_rates(engine)
        kept, packed = kept_bytes(tensors, engine), kept_bytes(tensors, engine, 4)
        reading = measured.Reading(packed, kept - packed, read_kv(spec, engine, prompt, precision))
        factor = measured.worst(engine, measured.decode_factor)
        seconds = rates.decode_s(reading, place.bandwidth_gbs)
        origin = f"leave-one-out over the pairs measured on {measured.stored().machine}"
        return Figure(1 / seconds, factor, origin)
    share = efficiency(place.kind)
    read = sum(one.nbytes for one in read_tensors(tensors).values()) + read_kv(
        spec, engine, prompt, precision, place.kind
    )
    return replace(share, value=share.value * place.bandwidth_gbs * 1e9 / read)


def read_kv(spec: ModelSpec, engine: str, tokens: int, precision: str, kind: str = "cpu") -> int:
    return kv_bytes(spec, tokens, precision, None if engine == "onnx" else kind.upper())


def _ttft(spec: ModelSpec, place: Place, engine: str, bits: int, prompt: int) -> Figure | None:
    work = operations(spec, prompt)
    if place.kind != "cpu":
        if place.int8_tops is None:
            return None
        npu = place.kind == "npu"
        origin = f"a guess: {TOPS_SHARE:.0%} of the advertised operations"
        return Figure(
            work / (place.int8_tops * 1e12 * TOPS_SHARE), NPU_FACTOR if npu else TOPS_FACTOR, origin, about=npu
        )
    here = measured.stored_rates(engine).ttft_s(work, bits)
    factor = measured.worst(engine, measured.ttft_factor)
    if place.measured:
        return Figure(here, factor, f"leave-one-out over the pairs measured on {measured.stored().machine}")
    cores = _strength(place.cores)
    if not cores:
        return None
    origin = f"a guess: as on {measured.stored().machine}, by the number of cores"
    return Figure(here * measured.stored().cores / cores, max(factor, OTHER_CPU_FACTOR), origin, about=True)


def _strength(cores: str) -> float:
    """Cores of a processor, counted in performance cores; those of low power wait."""
    found = {letter: int(count) for count, letter in re.findall(r"(\d+)(P|E|LP)?", cores)}
    return found.get("P", 0) + found.get("", 0) + EFFICIENT_CORE * found.get("E", 0)


def _load(place: Place, engine: str, needed: Footprint) -> Figure | None:
    """Only on a CPU: nothing is published of others."""
    if place.kind != "cpu":
        return None
    seconds = measured.stored_rates(engine).ready_s(needed.weights)
    factor = measured.worst(engine, measured.ready_factor)
    machine = measured.stored().machine
    if place.measured:
        return Figure(seconds, factor, f"leave-one-out over the pairs measured on {machine}")
    return Figure(seconds, max(factor, OTHER_CPU_FACTOR), f"a guess: as on {machine}", about=True)


def _longest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number of tokens up to `most` that fits, as fewer always do where more do."""
    if fits(most):
        return most
    low, high = 0, most  # low fits, high does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
