"""How long one block takes to be fitted to text, and on what: python benchmarks/gptq_block.py CHECKPOINT [--recipe R]

The hidden states are noise, of as many tokens as an export takes, and the compressed model's are off by 3 %; so a
checkpoint of one block of the right shapes is enough (benchmarks/make_checkpoint.py). No step is
part of another.
"""

from __future__ import annotations

import argparse
import functools
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np

from edge.export import stages
from edge.export.compress import gptq, moments, twin
from edge.export.compress.calibration import WINDOW, WINDOWS, Calibration
from edge.export.compress.nncf import Compressor
from edge.export.parallel import one_blas_thread
from edge.export.plan import make_plan
from edge.export.settings import ExportSettings
from edge.export.weights.names import Stage

OFF = 0.03
STEPS = {  # what is said, and the function that does it
    "moments of inputs: x^T x": (moments, "_products"),
    "moments of inputs: factoring": (moments, "_factor"),
    "what outputs lack, times the inputs": (twin, "find_drift"),
    "moving the weights by it": (stages, "move"),
    "scales, and rounding column by column": (gptq, "quantize"),
    "both models through norms, attention, gates and the matrices before them": (twin, "by_window"),
    "both models: sums, and the matrices before them": (twin.TwinBuilder, "add"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--recipe", default="int4-asym-g64-rot-gptq")
    args = parser.parse_args()
    plan = make_plan(args.checkpoint, ExportSettings(args.recipe))
    fitted = Calibration(np.zeros((WINDOWS, WINDOW), np.int64), plan.spec, twin=True)
    rng = np.random.default_rng(0)
    floats = rng.standard_normal((WINDOWS, WINDOW, plan.spec.hidden_size), np.float32)
    compressed = floats + OFF * rng.standard_normal(floats.shape, np.float32)
    fitted.hidden = np.concatenate([floats, compressed])
    del floats, compressed
    spent = dict.fromkeys(STEPS, 0.0)
    cpu, started = cpu_s(), time.perf_counter()
    with one_blas_thread(), timed(spent):
        stages.pack_stage(Stage(1, "block 0", 0), plan, Compressor(), fitted)
    whole = time.perf_counter() - started
    for step in STEPS:
        print(f"{spent[step]:7.1f} s  {step}")
    print(f"{whole - sum(spent.values()):7.1f} s  all else: reading, rotating")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{whole:7.1f} s  in all, {cpu_s() - cpu:.1f} s of processors, at most {peak / 1e9:.2f} GB")


@contextmanager
def timed(spent: dict[str, float]) -> Iterator[None]:
    """Count the seconds of each step."""
    with ExitStack() as stack:
        for step, (owner, name) in STEPS.items():
            stack.enter_context(mock.patch.object(owner, name, _timed(getattr(owner, name), step, spent)))
        yield


def _timed(function: Callable[..., Any], step: str, spent: dict[str, float]) -> Callable[..., Any]:  # Any: as it is
    @functools.wraps(function)
    def call(*args: Any, **more: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*args, **more)
        finally:
            spent[step] += time.perf_counter() - started

    return call


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
