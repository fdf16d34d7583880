"""What a model gets of the memory that it may take, decided before a byte of its weights is read.

In: a bundle, an engine's name, settings. Out: the settings with a KV cache that fits, or a refusal with figures. Knows
nothing about how an engine computes: what each takes is in `runtime/footprint.py`.

A limit that was given holds for all memory of this process that the system cannot drop. Pages of a mapped file do not
count: they can be read again. Where none was given, the limits of this machine, of a container and of the process hold.
A model is then refused only if it would fail even after the system has dropped and swapped whatever it can; if it is
likely to be too large, a line says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from edge.runtime.bundle import Bundle
from edge.runtime.engines.limits import context_limit, prefill_chunk, rows_bytes
from edge.runtime.errors import MemoryLimitError, SettingsError
from edge.runtime.footprint import USUAL_PATCHES, Footprint, footprint, most_patches, tower_footprint
from edge.runtime.machine import MemoryLimit, anonymous_bytes, family_of, memory_limits
from edge.runtime.notices import notice
from edge.runtime.settings import EngineSettings
from edge.runtime.sizes import human_bytes

LEAST_CONTEXT = 512  # tokens; a model that cannot hold these is of no use, unless max_context asks for fewer
STEPS = 256  # in which lengths of context are tried
USUAL_CHUNK = {"onnx": 128, "openvino": 512}  # PREFILL_CHUNK of each engine, which cannot be imported here
_ADDRESSES = 600_000_000  # that a process takes and never fills: stacks and arenas of threads, buffers of compilers


@dataclass(frozen=True)
class _Load:
    """A model that is about to be loaded."""

    bundle: Bundle
    engine: str
    weight_bytes: int
    settings: EngineSettings
    _known: dict[int, Footprint] = field(default_factory=dict)

    def needs(self, tokens: int) -> Footprint:
        """What it takes besides what this process has already, with this many tokens of cache."""
        if tokens not in self._known:
            self._known[tokens] = self._footprint(tokens)
        return self._known[tokens]

    def _footprint(self, tokens: int) -> Footprint:
        manifest, settings = self.bundle.manifest, self.settings
        usual = USUAL_CHUNK.get(self.engine, settings.prefill_chunk_tokens or max(USUAL_CHUNK.values()))
        return footprint(
            manifest.spec,
            self.weight_bytes,
            engine=self.engine,
            context_tokens=tokens,
            kv_precision=settings.kv_precision or ("f32" if self.engine == "onnx" else "f16"),
            prefill_chunk=prefill_chunk(settings, manifest.spec, usual),
            device=settings.device,
            tensors=manifest.tensors,
            max_context=self.limit,
            tokenizer_bytes=0,  # read before, if it is
        )

    def fixed(self, tokens: int) -> int:
        """All but the cache, once it is loaded."""
        needs = self.needs(tokens)
        return needs.loaded + needs.activations + rows_bytes(self.settings, self.bundle.manifest.spec)

    def peak(self, tokens: int) -> int:
        needs = self.needs(tokens)
        return max(needs.loaded + needs.compile_peak, self.fixed(tokens) + needs.kv)

    @property
    def picture(self) -> int:
        """What a picture takes while it becomes rows, which the cache leaves room for. A load does not need it."""
        vision = self.bundle.manifest.vision
        if vision is None or family_of(self.settings.device) != "CPU":
            return 0
        return tower_footprint(vision, min(most_patches(vision.spec), USUAL_PATCHES), engine=self.engine).least

    @property
    def limit(self) -> int:
        return context_limit(self.settings, self.bundle.manifest.spec)

    @property
    def least(self) -> int:
        """Tokens of the shortest context that will do."""
        return min(self.limit, LEAST_CONTEXT) if self.settings.max_context is None else self.limit

    def longest(self, room: int) -> int:
        """About how many tokens of context fit into so much memory, 0 if none do; never more than fit."""
        step = max(self.limit // STEPS, 1)
        low, high = 0, -(-self.limit // step)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.peak(min(middle * step, self.limit)) <= room else (low, middle - 1)
        return min(low * step, self.limit)

    @property
    def certain(self) -> int:
        """Without what an earlier model in this process may have left, and what is taken for moments."""
        needs = self.needs(self.least)
        return needs.weights + needs.kv

    def told(self, tokens: int) -> str:
        """What takes it."""
        needs = self.needs(tokens)
        working = self.peak(tokens) - needs.loaded - needs.kv
        return (
            f"{human_bytes(self.peak(tokens))} of memory: {human_bytes(needs.weights)} for weights, "
            f"{human_bytes(needs.kv)} for {tokens:,} tokens of cache, {human_bytes(needs.base + max(working, 0))} to "
            "compute"
        )


def within_memory(
    bundle: Bundle, engine: str, weight_bytes: int, settings: EngineSettings, *, beside: int = 0
) -> EngineSettings:
    """Return the settings with a KV cache that fits beside everything else. Reads nothing of the bundle.

    beside: bytes that something else in this process will still take, such as a draft model's cache. Raises
    MemoryLimitError for a model that does not fit, and SettingsError for a cache that was asked for and does
    not.
    """
    load, taken = _Load(bundle, engine, weight_bytes, settings), (anonymous_bytes() or 0) + beside
    limits = [replace(limit, left_bytes=max(limit.left_bytes - beside, 0)) for limit in _limits(settings)]
    given = settings.max_memory_bytes
    if given is None:
        _refuse_beyond(limits, load)
    elif load.peak(load.least) > given - taken:
        raise _too_small(load, given, taken)
    if (tight := next((limit for limit in limits if load.peak(load.least) > limit.left_bytes), None)) is not None:
        notice(
            f"{bundle.path} takes {load.told(load.least)}; {_free(tight)}, so it may become very slow, or be ended by "
            "the system"
        )
    rooms = [limit.left_bytes for limit in limits if given is None and not limit.addresses]
    if given is not None:
        rooms.append(given - taken)
    caches = [room - load.picture - load.fixed(load.longest(room)) for room in rooms]
    for limit in limits:
        if limit.addresses:  # openvino takes addresses for a second cache at its first step
            caches.append((limit.left_bytes - _ADDRESSES - load.fixed(load.least)) // 2)
    if not caches:
        return settings
    return _with_cache(load, max(min(caches), load.needs(load.least).kv), limits)


def fits(bundle: Bundle, engine: str, weight_bytes: int, settings: EngineSettings) -> bool:
    """Whether the memory suffices to load a model, with the shortest context that will do."""
    load = _Load(bundle, engine, weight_bytes, settings)
    if settings.max_memory_bytes is not None:
        return load.peak(load.least) + (anonymous_bytes() or 0) <= settings.max_memory_bytes
    return all(load.certain <= limit.most_bytes for limit in _limits(settings))


def _limits(settings: EngineSettings) -> list[MemoryLimit]:
    """The limits of this machine, which say nothing about the memory of other devices."""
    return memory_limits() if family_of(settings.device) == "CPU" else []


def _with_cache(load: _Load, room: int, limits: list[MemoryLimit]) -> EngineSettings:
    """The settings with a cache of at most so many bytes. Raises SettingsError."""
    settings, given = load.settings, load.settings.max_memory_bytes
    usual = EngineSettings().kv_cache_bytes
    wanted = settings.kv_cache_bytes
    if settings.kv_cache_share is not None:
        free = min((limit.left_bytes for limit in limits), default=None)
        if free is None and given is None:
            return settings  # refused where it is used
        wanted = int(settings.kv_cache_share * min(size for size in (free, given) if size is not None))
    elif given is not None and wanted > room and wanted != usual:
        raise SettingsError(
            f"kv_cache_bytes is {wanted:,}, and max_memory_bytes of {given:,} leave {room:,} for the KV cache of "
            f"{load.bundle.path} on {load.engine}; lower the one or raise the other",
            param="kv_cache_bytes",
        )
    if given is not None and room < min(wanted, load.needs(load.limit).kv):
        notice(
            f"the limit of {human_bytes(given)} leaves {human_bytes(room)} of memory for the KV cache, and a shorter "
            f"context than {load.limit:,} tokens",
            usual=True,
        )
    return replace(settings, kv_cache_bytes=min(wanted, room), kv_cache_share=None)


def _too_small(load: _Load, given: int, taken: int) -> MemoryLimitError:
    shorter = load.longest(given - taken)
    advice = f"a context of {shorter:,} tokens would fit, or raise" if shorter else "raise"
    return MemoryLimitError(
        f"{load.bundle.path} on {load.engine} takes {load.told(load.least)}; with the {human_bytes(taken)} that this "
        f"process has already, that is {human_bytes(load.peak(load.least) + taken)}, and max_memory_bytes is "
        f"{human_bytes(given)}; {advice} max_memory_bytes, or take a smaller model"
    )


def _refuse_beyond(limits: list[MemoryLimit], load: _Load) -> None:
    """Raise MemoryLimitError if a model cannot be loaded whatever the system does to make room."""
    for limit in limits:
        if load.certain > limit.most_bytes:
            raise MemoryLimitError(
                f"{load.bundle.path} on {load.engine} takes {load.told(load.least)}; {_free(limit)}; end other "
                "programs, raise that limit, lower max_context, or take a smaller model; to try it all the same, give "
                f"max_memory_bytes, like {human_bytes(load.peak(load.least) * 1.1).replace(' ', '')}"
            )


def _free(limit: MemoryLimit) -> str:
    return f"{human_bytes(limit.left_bytes)} are free (limit of {limit.name}: {human_bytes(limit.total_bytes)})"
