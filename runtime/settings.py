"""Every setting of a load and of an answer in one place: its default, its allowed values, and its purpose.

In: values from Python, a command line or JSON, checked by `rules`. Out: frozen, hashable records. Knows nothing about
engines, models, or how a setting is applied. The `...Options` types repeat the names as keywords for type checkers and
editors; a test holds the two to each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal, TypedDict, Unpack

from edge.runtime.constraint import Constraint
from edge.runtime.errors import SettingsError, shown
from edge.runtime.machine import logical_processors
from edge.runtime.rules import (
    Biases,
    FilePath,
    Flag,
    Instance,
    Number,
    OneOf,
    Settings,
    Text,
    Texts,
    Whole,
    Wholes,
    refuse_unknown,
    setting,
)

Precision = Literal["f32", "f16", "bf16"]
CachePrecision = Literal["f32", "f16", "bf16", "u8", "i8", "u4"]
ContextPolicy = Literal["error", "drop-oldest"]
UsualSampling = Literal["greedy", "model"]
WhenSelfTestFails = Literal["refuse", "fall-back", "off"]
LogitBias = Mapping[int, float] | Sequence[tuple[int, float]]

PRECISIONS: tuple[Precision, ...] = ("f32", "f16", "bf16")
KV_PRECISIONS: tuple[CachePrecision, ...] = ("f32", "f16", "bf16", "u8", "i8", "u4")
CONTEXT_POLICIES: tuple[ContextPolicy, ...] = ("error", "drop-oldest")  # for conversations that fill the context
SELF_TESTS: tuple[WhenSelfTestFails, ...] = ("refuse", "fall-back", "off")
USUAL_SAMPLINGS: tuple[UsualSampling, ...] = ("greedy", "model")  # the most likely token, or what is recommended
MAX_LOGPROBS = 20  # alternatives per token, as in OpenAI's protocol
MAX_DRAFT = 32  # tokens
MAX_MATCH = 32  # token ids
MAX_THREADS = 1024
MAX_LENGTH = 1 << 20  # tokens
FEW_THREADS = 64  # allowed on every machine
THREADS_PER_PROCESSOR = 4  # more wait for each other: with 1,024 on two processors, loading 86 MB takes 25 s
MAX_WAITING = 64  # requests for one of our servers or replicas, unless it is told another number; one more is refused
MAX_NAME = 100  # characters of an engine's or device's name
SHARE = Number(0, 1, above=True)


@dataclass(frozen=True, slots=True)
class Sampling(Settings):
    """How a token is chosen. Raises SettingsError for a value of the wrong type or outside its range."""

    temperature: float = setting(0.0, Number(0), "0 is greedy")
    top_k: int = setting(0, Whole(), "keep the k best tokens; 0 keeps all")
    top_p: float = setting(
        1.0, SHARE, "keep the smallest set of best tokens with this much probability (Holtzman et al. 2019)"
    )
    min_p: float = setting(0.0, Number(0, 1), "keep tokens with at least this share of the best one's probability")
    typical_p: float = setting(
        1.0, SHARE, "keep this much probability, nearest to the entropy first (Meister et al. 2022); 1 keeps all"
    )
    repetition_penalty: float = setting(
        1.0,
        Number(0.01, 100, note="; 1 is none"),
        "above 1: ids of prompt and answer become less likely (Keskar et al. 2019, CTRL)",
    )
    presence_penalty: float = setting(
        0.0, Number(-2, 2), "subtracted from the logit of every id in the answer, as in OpenAI's API"
    )
    frequency_penalty: float = setting(0.0, Number(-2, 2), "likewise, times how often the id occurs in the answer")
    logit_bias: LogitBias = setting((), Biases(), "added to the logits of these token ids; stored as sorted pairs")
    seed: int | None = setting(None, Whole(), "same seed, same text; none: a new one each time")


@dataclass(frozen=True, slots=True)
class GenerationSettings(Settings):
    """Limits and options of one answer. Raises SettingsError for a value of the wrong type or outside its range."""

    max_new_tokens: int | None = setting(
        None, Whole(), "most tokens of the answer; none: up to the end of the context; 0 needs prompt_logprobs"
    )
    min_new_tokens: int = setting(0, Whole(), "choose no stop id before this many tokens")
    sampling: Sampling = setting(Sampling(), Instance(Sampling, "an edge.Sampling"), "how each token is chosen")
    stop: tuple[str, ...] = setting((), Texts(), "end the answer before any of these texts, which may span tokens")
    stop_token_ids: tuple[int, ...] = setting((), Wholes(), "end the answer at these ids, too")
    deadline_s: float | None = setting(
        None, Number(0, above=True), "end the answer this many seconds after the request"
    )
    ignore_stop_ids: bool = setting(False, Flag(), "for benchmarks: always generate max_new_tokens")
    logprobs: int | None = setting(
        None,
        Whole(0, MAX_LOGPROBS),
        "return log-probabilities of the chosen tokens and of this many top alternatives",
    )
    prompt_logprobs: int | None = setting(
        None,
        Whole(0, MAX_LOGPROBS),
        "likewise of the prompt's tokens, all of which are then computed, also those that a cache holds",
    )
    constraint: Constraint | None = setting(
        None, Instance(Constraint, "an edge.Constraint"), "a JSON schema, regex or grammar for the answer"
    )

    def check_together(self) -> None:
        if self.max_new_tokens == 0 and self.prompt_logprobs is None:
            raise SettingsError(
                "max_new_tokens is 0, expected a whole number, 1 or more, unless log-probabilities of the prompt are "
                "asked for",
                param="max_new_tokens",
            )
        if self.max_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            raise SettingsError(
                f"min_new_tokens is {self.min_new_tokens}, expected 0 to max_new_tokens, {self.max_new_tokens}",
                param="min_new_tokens",
            )
        if self.constraint is not None and self.ignore_stop_ids:
            raise SettingsError(
                "ignore_stop_ids continues an answer that a constraint has ended; give one of the two",
                param="ignore_stop_ids",
            )


@dataclass(frozen=True, slots=True)
class EngineSettings(Settings):
    """How an engine is set up. None leaves the choice to the engine, which documents it. Raises SettingsError."""

    engine: str = setting(
        "auto", Text(longest=MAX_NAME), "a name in runtime/engines/registry.py; auto: as engines/choice.py says"
    )
    device: str = setting("CPU", Text(longest=MAX_NAME), "CPU, GPU or another device of `edge devices`")
    expected_prompt_tokens: int | None = setting(
        None, Whole(), "length of future prompts, if it is known; helps engine=auto"
    )
    expected_clients: int | None = setting(
        None, Whole(1), "answers that will be written at once, if it is known; helps engine=auto"
    )
    max_context: int | None = setting(
        None, Whole(1), "tokens of prompt and answer; none: the model's limit, or what the KV cache has room for"
    )
    kv_cache_bytes: int = setting(
        2 << 30, Whole(1), "limit of the KV cache in bytes; memory is taken only as tokens arrive"
    )
    kv_cache_share: float | None = setting(
        None, SHARE, "that limit as a share of free memory, instead of kv_cache_bytes"
    )
    max_memory_bytes: int | None = setting(
        None, Whole(1), "limit of all memory that this process takes and the system cannot drop; none: what is free"
    )
    inference_precision: Precision | None = setting(None, OneOf(PRECISIONS), "none: the device's own default")
    kv_precision: CachePrecision | None = setting(
        None, OneOf(KV_PRECISIONS), "precision of the KV cache; none: the engine's choice"
    )
    dynamic_quantization_group: int | None = setting(
        None, Whole(0, 1 << 20), "activations rounded to int8 together; 0: keep them float; none: the engine's rule"
    )
    reproducible: bool | None = setting(
        None, Flag(), "same bits whatever else is computed; none: only if drafts are verified"
    )
    threads: int | None = setting(None, Whole(1, MAX_THREADS), "none: the engine's choice")
    self_test: WhenSelfTestFails = setting(
        "refuse",
        OneOf(SELF_TESTS),
        "an engine that computes wrongly is refused, or another one falls back for it; off: no test",
    )
    # Of engines that compile a model for one length (`EngineRecord.fixed_lengths`); others refuse them.
    max_prompt_tokens: int | None = setting(None, Whole(1, MAX_LENGTH), "longest prompt that is compiled for")
    max_response_tokens: int | None = setting(None, Whole(1, MAX_LENGTH), "tokens that are kept free for an answer")
    prefill_chunk_tokens: int | None = setting(None, Whole(1, MAX_LENGTH), "tokens of a prompt that are read at once")
    compiled_folder: Path | None = setting(
        None, FilePath(), "where models are that `edge compile` has made; none: in the user's cache folder"
    )
    # Of models that see pictures.
    kept_pictures_folder: Path | None = setting(
        None, FilePath(), "where files are with what pictures became; none: in the user's cache folder"
    )
    kept_pictures_bytes: int = setting(
        1 << 30, Whole(0), "limit of all these files; the oldest are removed; 0: nothing of a picture is written"
    )
    turn_pictures: bool = setting(True, Flag(), "turn pictures as their EXIF says; the original models do not")

    def check_together(self) -> None:
        processors = logical_processors()
        most = max(FEW_THREADS, THREADS_PER_PROCESSOR * processors)
        if self.threads is not None and self.threads > most:
            raise SettingsError(
                f"threads is {self.threads}, expected a whole number from 1 to {most} on this machine, which has "
                f"{processors} processors",
                param="threads",
            )


@dataclass(frozen=True, slots=True)
class SpeculationSettings(Settings):
    """Limits of a draft. Raises SettingsError for a value outside its range."""

    max_draft: int = setting(
        31, Whole(0, MAX_DRAFT), "most tokens of a draft; with the model's own token, 32 rows, which suit kernels"
    )
    min_match: int = setting(2, Whole(1, MAX_MATCH), "draft only after this many ids that have occurred before")


class SamplingOptions(TypedDict, total=False):
    """Keywords of `Sampling`; None means the default."""

    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    typical_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: LogitBias | None
    seed: int | None


class GenerationOptions(SamplingOptions, total=False):
    """Keywords of `LLM.generate` and related methods: `GenerationSettings` and `Sampling` side by side.

    sampling: where the fields of `Sampling` come from that are not given. "greedy", the default: the most likely token
    each time; "model": what the model's makers recommend; or a `Sampling` of your own.
    """

    max_new_tokens: int | None
    min_new_tokens: int | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    deadline_s: float | None
    ignore_stop_ids: bool | None
    logprobs: int | None
    prompt_logprobs: int | None
    constraint: Constraint | None
    sampling: UsualSampling | Sampling | None


class EngineOptions(TypedDict, total=False):
    """Keywords of `edge.load`; None means the default."""

    engine: str | None
    expected_prompt_tokens: int | None
    expected_clients: int | None
    max_context: int | None
    kv_cache_bytes: int | None
    kv_cache_share: float | None
    max_memory_bytes: int | None
    inference_precision: Precision | None
    kv_precision: CachePrecision | None
    dynamic_quantization_group: int | None
    reproducible: bool | None
    threads: int | None
    self_test: WhenSelfTestFails | None
    max_prompt_tokens: int | None
    max_response_tokens: int | None
    prefill_chunk_tokens: int | None
    compiled_folder: str | Path | None
    kept_pictures_folder: str | Path | None
    kept_pictures_bytes: int | None
    turn_pictures: bool | None


SAMPLING_NAMES = frozenset(spec.name for spec in fields(Sampling))
GENERATION_NAMES = frozenset(spec.name for spec in fields(GenerationSettings)) - {"sampling"}
ENGINE_NAMES = frozenset(spec.name for spec in fields(EngineSettings))
LENGTH_NAMES = ("max_prompt_tokens", "max_response_tokens", "prefill_chunk_tokens")
COMPILING_NAMES = (*LENGTH_NAMES, "compiled_folder")  # of engines that compile for lengths


def generation_settings(
    recommended: Sampling | None = None, /, **options: Unpack[GenerationOptions]
) -> GenerationSettings:
    """Make `GenerationSettings` from flat keywords, including sampling. Raises SettingsError, also for unknown ones.

    recommended: what `sampling="model"` stands for; greedy, if nothing is recommended.
    """
    values: dict[str, object] = dict(options)
    refuse_unknown(values, SAMPLING_NAMES | GENERATION_NAMES | {"sampling"})
    given = {name: value for name, value in values.items() if name in SAMPLING_NAMES and value is not None}
    usual = _usual(values.get("sampling"), recommended or Sampling())
    sampling = {**{name: getattr(usual, name) for name in SAMPLING_NAMES}, **given}
    rest = {name: value for name, value in values.items() if name in GENERATION_NAMES}
    return GenerationSettings(sampling=Sampling(**sampling), **rest)  # type: ignore[arg-type]  # checked by the classes


def _usual(asked: object, recommended: Sampling) -> Sampling:
    """The sampling of what is not given. Raises SettingsError for what does not name one."""
    if isinstance(asked, Sampling):
        return asked
    if asked is not None and (not isinstance(asked, str) or asked not in USUAL_SAMPLINGS):
        expected = ", ".join(map(repr, USUAL_SAMPLINGS))
        raise SettingsError(f"sampling is {shown(asked)}, expected {expected} or an edge.Sampling", param="sampling")
    return recommended if asked == "model" else Sampling()


def seeded(settings: GenerationSettings, number: int) -> list[GenerationSettings]:
    """Return the settings of each of several answers to one prompt: with a seed, each has the next one."""
    seed = settings.sampling.seed
    seeds = [None if seed is None else seed + i for i in range(number)]
    return [replace(settings, sampling=replace(settings.sampling, seed=seed)) for seed in seeds]


def engine_settings(device: str | None = None, **options: Unpack[EngineOptions]) -> EngineSettings:
    """Make `EngineSettings` from keywords. Raises SettingsError, also for unknown ones."""
    values: dict[str, object] = dict(options)
    refuse_unknown(values, ENGINE_NAMES)
    return EngineSettings(device=device, **values)  # type: ignore[arg-type]  # checked by the class
