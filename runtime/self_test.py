"""Whether an engine computes on this machine what the export recorded: asked when a bundle is loaded.

In: an open engine and its bundle. Out: a `SelfTest`, or a SelfTestError that names the row and the figure. Files are
compared with their hashes before (bundle.py); this finds what happens after them: a driver, a kernel or a device that
computes something else. There are two references.

    golden rows       in the bundle: 32 tokens, with their logits in float32. An engine that rounds is not equal to
                      them, so the mean KL divergence is compared with a bound (self_test_bounds.py).
    the first result  of this machine, engine and version, kept in the user's cache folder: every bit is compared.

At a later load whose first result is the same, nothing else is computed. Afterwards the engine is as it was: no block
is held, and nothing is in any cache.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from edge.runtime import bundle as bundles
from edge.runtime import first_results
from edge.runtime.arrays import Ids, Logits
from edge.runtime.bundle import Bundle
from edge.runtime.engines.choice import engines_for, open_engine
from edge.runtime.engines.engine import Engine, Step
from edge.runtime.errors import BundleError, DeviceError, EdgeError, SelfTestError
from edge.runtime.golden_rows import GoldenRows, read_golden_rows
from edge.runtime.kv.pool import CacheSequence
from edge.runtime.machine import family_of, logical_processors, physical_cores, processor_name
from edge.runtime.notices import notice
from edge.runtime.self_test_bounds import bound_of, noises_of
from edge.runtime.settings import COMPILING_NAMES, EngineSettings

FEW = 2  # tokens whose last row is compared bit by bit: with one alone, attention has nothing to choose from
DECODED = 4  # of the golden tokens, so that decoding and the cache take part
# Settings that change no logits, or only through what the engine then says about itself.
NO_BEARING = (
    "self_test", "engine", "expected_prompt_tokens", "expected_clients", "max_context", "kv_cache_bytes",
    "kv_cache_share", "max_memory_bytes", "compiled_folder", "reproducible",
    "kept_pictures_folder", "kept_pictures_bytes", "turn_pictures",
)  # fmt: skip

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SelfTest:
    """What a self-test found."""

    engine: str
    device: str
    # Bits of the first rows against the first good load: "none" is kept yet, or its versions were others.
    bits: Literal["same", "other", "none"]
    asked: bool = True  # whether the bundle has golden rows to compare with
    kld: float | None = (
        None  # nats/token from the golden rows; None: not computed, as bits are the same or none are there
    )
    bound: float | None = None  # for it; None: not computed, or the bundle has none for this engine's numerics
    instead_of: str = ""  # "openvino on GPU", which failed

    @property
    def in_words(self) -> str:
        """Both figures, for people."""
        if not self.asked:
            return "the bundle has no golden rows, a new export has them"
        bits = {
            "same": "bits are those of the first good load on this machine",
            "other": "bits are not those of the first good load on this machine",
            "none": "bits are kept for later loads",
        }
        bound = "the bundle has no bound for these numerics" if self.bound is None else f"at most {self.bound:.2g}"
        rows = "" if self.kld is None else f"{self.kld:.2g} nats/token from the golden rows, {bound}; "
        instead = f"; used instead of {self.instead_of}" if self.instead_of else ""
        return f"{rows}{bits[self.bits]}{instead}"


def open_tested(bundle: Bundle, settings: EngineSettings, *, beside: int = 0) -> tuple[Engine, SelfTest | None]:
    """Open the engine for a bundle and test it as the settings say.

    beside: as in `within_memory`. Raises what `open_engine` does, and SelfTestError if it fails and no other may be, or
    can be, used instead.
    """
    engine = open_engine(bundle, settings, beside=beside)
    if settings.self_test == "off":
        return engine, None
    failed = f"{engine.info.name} on {engine.info.device}"
    try:
        return engine, _tested(engine, bundle, settings)
    except (SelfTestError, DeviceError) as error:
        if settings.self_test != "fall-back":
            raise
        found = _fall_back(bundle, settings, engine.info.name)
        if found is None:
            raise
        instead, result = found
        notice(f"{error}; continuing with {result.engine} on {result.device}")
        return instead, replace(result, instead_of=failed)


def _fall_back(bundle: Bundle, settings: EngineSettings, failed: str) -> tuple[Engine, SelfTest] | None:
    """Open another engine that passes: another one on the same device, or else one on the CPU."""
    places = [(name, settings.device) for name in engines_for(bundle, settings.device) if name != failed]
    if family_of(settings.device) != "CPU":
        places += [(name, "CPU") for name in engines_for(bundle, "CPU")]
    for name, device in places:
        try:
            others = {**asdict(settings), **dict.fromkeys(COMPILING_NAMES), "engine": name, "device": device}
            other = EngineSettings(**others)
            engine = open_engine(bundle, other)
            return engine, _tested(engine, bundle, other)
        except EdgeError as error:  # it does not run here, not with these settings, or not correctly either
            logger.info("%s: no falling back to %s on %s: %s", bundle.path, name, device, error)
    return None


def _tested(engine: Engine, bundle: Bundle, settings: EngineSettings) -> SelfTest:
    try:
        return self_test(engine, bundle, settings)
    except BaseException:
        engine.close()
        raise


def self_test(engine: Engine, bundle: Bundle, settings: EngineSettings, *, whole: bool = False) -> SelfTest:
    """Test an open engine. whole: compute all golden rows whatever is known from earlier loads.

    Raises SelfTestError, BundleError for a bundle whose golden rows are invalid, and DeviceError.
    """
    info = engine.info
    golden = _golden(bundle)
    if golden is None:
        logger.info("%s has no golden rows, so %s is not tested; a new export has them", bundle.path, info.name)
        return SelfTest(info.name, info.device, "none", asked=False)
    row = _few(engine, _fitting(engine, golden)[:FEW])
    key, versions = _key(engine, bundle, settings), _versions(engine)
    first = first_results.find(key)
    renewed = first is not None and first.versions != versions
    same = first is not None and first.sha256 == first_results.digest_of(row)
    if first is not None and same and not renewed and not whole:
        return SelfTest(info.name, info.device, "same")
    kld, bound = _judge(engine, bundle, golden, settings)
    if first is not None and renewed:
        was, now, which = _shown(first.versions), _shown(versions), "the same" if same else "other"
        logger.info("%s: %s gives %s bits since the update from %s to %s", bundle.path, info.name, which, was, now)
    elif first is not None and not same:
        notice(_other_bits(engine, first.kl_divergence(row), kld, bound))
    if first is None or not same or renewed:
        first_results.keep(key, first_results.result_of(row, versions))
    bits: Literal["same", "other", "none"] = "none" if first is None or renewed else "same" if same else "other"
    return SelfTest(info.name, info.device, bits, kld=kld, bound=bound)


def _judge(engine: Engine, bundle: Bundle, golden: GoldenRows, settings: EngineSettings) -> tuple[float, float | None]:
    """Return the mean divergence from the golden rows, and its bound. Raises SelfTestError."""
    ids = _fitting(engine, golden)
    logits, start = _all_rows(engine, ids)
    rows = slice(start, ids.size)
    _check_finite(engine, bundle, logits, start)
    divergences = golden.top[rows].kl_divergences(logits)
    kld = float(divergences.mean())
    bound = bound_of(golden, noises_of(engine.info, engine.identity, settings), rows)
    if bound is None:
        logger.info("%s has no bound for the numerics of %s", bundle.path, engine.info.name)
    elif not kld <= bound:
        farthest = int(divergences.argmax())
        raise _failure(
            engine,
            bundle,
            f"its logits are {kld:.2g} nats/token from those recorded at export, expected {bound:.2g} or less (row "
            f"{start + farthest} is {divergences[farthest]:.2g} from its own)",
        )
    logger.info("%s: %s is %.2g nats/token from the golden rows", bundle.path, engine.info.name, kld)
    return kld, bound


def _other_bits(engine: Engine, moved: float, kld: float, bound: float | None) -> str:
    where = f"{engine.info.name} on {engine.info.device}"
    most = "" if bound is None else f", at most {bound:.2g}"
    return (
        f"{where} gives other bits than at the first load on this machine, in the same version: row "
        f"{_last_of_few(engine)} is {moved:.2g} nats from what it was; all rows together are {kld:.2g} nats/token from "
        f"those recorded at export{most}; a driver, a library or the processor's microcode may have changed, or a "
        "memory is failing: edge verify reads every file anew"
    )


def _fitting(engine: Engine, golden: GoldenRows) -> Ids:
    """Return as many of the golden tokens as the engine's context holds."""
    ids: Ids = golden.ids[: engine.info.max_context]
    return ids


def _last_of_few(engine: Engine) -> int:
    return min(FEW, engine.info.max_context) - 1


def _few(engine: Engine, ids: Ids) -> Logits:
    """Return the logits of the last of a few tokens, (vocab,)."""
    sequence = CacheSequence(engine.pool)
    try:
        logits: Logits = engine.forward(ids, sequence, np.array([ids.size - 1], np.int64))[0].copy()
        return logits
    finally:
        sequence.free()


def _all_rows(engine: Engine, ids: Ids) -> tuple[Logits, int]:
    """Return logits of the golden tokens, from the row on that the engine gives logits of, and its index.

    The last tokens are decoded; half of them are, where reading a prompt gives logits of its last row alone.
    """
    every = engine.info.logits_rows == "any"
    decoded = min(DECODED if every else ids.size // 2, ids.size - 1)
    read = ids.size - decoded
    start = 0 if every else read - 1
    sequence = CacheSequence(engine.pool)
    try:
        rows = [engine.forward(ids[:read], sequence, np.arange(start, read)).copy()]
        rows += [engine.decode([Step(sequence, ids[i : i + 1])])[0].copy() for i in range(read, ids.size)]
    finally:
        sequence.free()
    return np.concatenate(rows), start


def _check_finite(engine: Engine, bundle: Bundle, logits: Logits, start: int) -> None:
    finite = np.isfinite(logits).all(axis=-1)
    if not finite.all():
        raise _failure(engine, bundle, f"row {start + int(finite.argmin())} of its logits holds NaN or infinity")


def _failure(engine: Engine, bundle: Bundle, what: str) -> SelfTestError:
    info = engine.info
    return SelfTestError(
        f"{bundle.path}: engine {info.name} on {info.device} fails its self-test: {what}; run edge verify, update "
        "the device's driver or the engine's package, or use another engine or device, as self_test fall-back does"
    )


def _golden(bundle: Bundle) -> GoldenRows | None:
    """Return the golden rows of a bundle, or None if it was made without. Raises BundleError."""
    content = bundle.read(bundles.SELF_TEST)
    try:
        return None if content is None else read_golden_rows(content, bundle.manifest.spec.vocab_size)
    except BundleError as error:
        raise BundleError(f"{bundle.path}: {error}") from error


def _key(engine: Engine, bundle: Bundle, settings: EngineSettings) -> str:
    """A key of everything that bits may depend on, besides versions."""
    chosen = {name: value for name, value in asdict(settings).items() if name not in NO_BEARING}
    return first_results.key_of(
        {
            "model": bundle.manifest.model_sha256,
            "golden rows": bundle.manifest.files[bundles.SELF_TEST].sha256,
            "row": _last_of_few(engine),
            "settings": chosen,
            "engine": {name: value for name, value in engine.identity.items() if not _is_version(name)},
            "reproducible": engine.info.reproducible,
            "processor": processor_name(),
            "cores": [logical_processors(), physical_cores()],
        }
    )


def _versions(engine: Engine) -> dict[str, str]:
    """What a change of bits may be due to."""
    return {"edgeglm": _own_version()} | {name: value for name, value in engine.identity.items() if _is_version(name)}


def _own_version() -> str:
    """A hash of when our engines' files were written: importing what knows the version takes a part of a load."""
    folder = Path(__file__).parent / "engines"
    files = sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in folder.glob("*.py"))
    return hashlib.sha256(repr(files).encode()).hexdigest()[:12]


def _is_version(name: str) -> bool:
    return name.endswith("version")


def _shown(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(versions.items()))
