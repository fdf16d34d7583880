"""Whether a bundle still computes what it did at export, on this machine and device.

In: a bundle. Out: a `Report` for each engine, or an error. Knows nothing about checkpoints: the bundle's golden.npz has
token ids, with the logits that the float model and the compressed weights gave for them; its vision_golden.npz has
the same of a small picture, where the model sees pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge.runtime import bundle as bundles
from edge.runtime.arrays import Logits
from edge.runtime.differences import distance, kl_divergence
from edge.runtime.engines.choice import engines_for, open_engine
from edge.runtime.engines.engine import Engine
from edge.runtime.errors import BundleError, VerificationError
from edge.runtime.exact import exact_settings
from edge.runtime.golden import GoldenLogits, read_golden
from edge.runtime.kv.pool import CacheSequence
from edge.runtime.machine import family_of
from edge.runtime.self_test import SelfTest, self_test
from edge.runtime.settings import EngineSettings
from edge.runtime.vision.verify_tower import verify_tower


@dataclass(frozen=True, slots=True)
class Report:
    """What a verification measured on one engine."""

    engine: str
    device: str
    exact_error: float  # largest logit difference over the logit scale, as exactly as the device computes (`exact`)
    kld_exact: float  # nats/token from the float model, likewise
    kld_device: float  # from the float model, with the device's default settings, including its KV cache
    self_test: SelfTest  # likewise, from the compressed model in float32, with all golden rows
    picture_error: float | None = None  # as `exact_error`, of the rows of a picture; None: the model sees none
    picture_loss: float | None = None  # of these rows from the float model's, root mean square, as it runs by default


def verify(
    bundle: bundles.Bundle | str | Path,
    device: str = "CPU",
    progress: Callable[[str, int], None] = lambda _name, _size: None,
    max_memory_bytes: int | None = None,
) -> tuple[Report, ...]:
    """Check hashes, then golden logits on every engine that can run here.

    Raises BundleError, MemoryLimitError and VerificationError.
    """
    bundle = bundle if isinstance(bundle, bundles.Bundle) else bundles.open_bundle(bundle)
    bundle.check_hashes(progress)
    return tuple(_verify_engine(bundle, engine, device, max_memory_bytes) for engine in engines_for(bundle, device))


def _verify_engine(bundle: bundles.Bundle, engine: str, device: str, max_memory_bytes: int | None) -> Report:
    golden = _golden(bundle)
    ids, float_logits, stored = golden.ids, golden.float_logits, golden.logits
    usual = EngineSettings(engine, device, max_memory_bytes=max_memory_bytes)
    exact, bound = exact_settings(usual)
    ours = _last_rows(bundle, ids, len(stored), exact)
    error = distance(ours, stored)
    if not error <= bound:  # also true for NaN
        raise VerificationError(
            f"{bundle.path}: engine {engine} on {device} gives logits that differ by {error:.2g} of their scale from "
            f"those recorded at export, expected {bound:g} or less; update the device's driver or use another "
            "engine or device"
        )
    opened = open_engine(bundle, usual)
    try:
        tested = self_test(opened, bundle, usual, whole=True)
        as_it_runs = _rows_of(opened, ids, len(stored))
    finally:
        opened.close()
    report = Report(
        engine, device, error, kl_divergence(float_logits, ours), kl_divergence(float_logits, as_it_runs), tested
    )
    found = None if family_of(device) == "NPU" else verify_tower(bundle, engine, exact, usual, bound)
    return report if found is None else replace(report, picture_error=found.error, picture_loss=found.loss)


def _last_rows(bundle: bundles.Bundle, ids: npt.NDArray[np.int64], count: int, settings: EngineSettings) -> Logits:
    """Return logits of the last `count` tokens from an engine that is opened for this."""
    engine = open_engine(bundle, settings)
    try:
        return _rows_of(engine, ids, count)
    finally:
        engine.close()


def _rows_of(engine: Engine, ids: npt.NDArray[np.int64], count: int) -> Logits:
    """Return logits of the last `count` tokens, decoded one by one so that the KV cache takes part."""
    sequence = CacheSequence(engine.pool)
    prompt = ids.size - count
    if prompt:
        engine.forward(ids[:prompt], sequence, np.array([prompt - 1], np.int64))
    return np.stack(
        [engine.forward(ids[i : i + 1], sequence, np.array([0], np.int64))[0].copy() for i in range(prompt, ids.size)]
    )


def _golden(bundle: bundles.Bundle) -> GoldenLogits:
    content = bundle.required(bundles.GOLDEN)
    try:
        return read_golden(content, bundle.manifest.spec.vocab_size)
    except BundleError as error:
        raise BundleError(f"{bundle.path}: {error}") from error
