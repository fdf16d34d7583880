"""Whether a bundle's tower still computes what it did at export, on one engine.

In: a bundle, settings. Out: how far rows of its golden picture are from the recorded ones, or an error. Knows nothing
about text models.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from edge.runtime.bundle import VISION_GOLDEN, Bundle
from edge.runtime.differences import distance
from edge.runtime.errors import BundleError, VerificationError
from edge.runtime.settings import EngineSettings
from edge.runtime.vision.golden_picture import read_golden_picture


class TowerReport(NamedTuple):
    """What was measured."""

    error: float  # largest difference from the recorded rows over their scale, as exactly as the device computes
    loss: float  # from the float tower's rows, root mean square, with the device's default settings


def verify_tower(
    bundle: Bundle, engine: str, exact: EngineSettings, usual: EngineSettings, bound: float
) -> TowerReport | None:
    """Run the golden picture twice; None for a bundle without one.

    exact: settings that round least, and make at most `bound` of difference. Raises BundleError, VerificationError, and
    what an engine raises.
    """
    record = bundle.manifest.vision
    if record is None or bundle.file(VISION_GOLDEN) is None:
        return None
    from edge.runtime.vision.pictures import run_alone

    try:
        golden = read_golden_picture(bundle.required(VISION_GOLDEN), record.spec)
    except BundleError as error:
        raise BundleError(f"{bundle.path}: {error}") from error
    found = run_alone(bundle, record, engine, exact, golden.inputs)
    off = distance(found, golden.rows) if found.shape == golden.rows.shape else float("nan")
    if not off <= bound:
        raise VerificationError(
            f"{bundle.path}: engine {engine} on {exact.device} makes rows of a picture that differ by {off:.2g} of "
            f"their scale from those recorded at export, expected {bound:g} or less; update the device's driver or use "
            "another engine or device"
        )
    as_it_runs = run_alone(bundle, record, engine, usual, golden.inputs)
    loss = np.sqrt(np.mean((as_it_runs - golden.float_rows) ** 2) / np.mean(golden.float_rows**2))
    return TowerReport(off, float(loss))
