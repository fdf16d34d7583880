"""What each engine setting costs in accuracy and gains in speed, on the default checkpoint.

    python benchmarks/settings.py [--recipes int4-asym-g64,int8-asym] [--tokens 4096] [--json]

Accuracy is the mean KL divergence, in nats/token, from the same weights with float32 activations and cache. It is
compared with the recipe's own: the divergence of those weights from the float checkpoint. A default may cost 2 % of the
latter. The text is the documentation inside CPython (pydoc_data.topics), in windows of 512 tokens that are read in
chunks of 16, so that what is read from the cache has been rounded to its precision. Speed is the time of one token
after 512 others.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from report import about_machine
from texts import text_ids

from edge.export.checkpoint.default import find_checkpoint
from edge.export.pipeline import export
from edge.runtime.bundle import open_bundle
from edge.runtime.differences import kl_divergence
from edge.runtime.engines.choice import open_engine
from edge.runtime.engines.engine import Engine
from edge.runtime.kv.pool import CacheSequence
from edge.runtime.settings import EngineSettings

WINDOW, CHUNK = 512, 16  # tokens
ALLOWED = 0.02  # of the recipe's own divergence
TIMED = 24  # tokens

EXACT = EngineSettings(engine="openvino", inference_precision="f32", kv_precision="f32", dynamic_quantization_group=0)
OPENVINO = [
    EngineSettings(engine="openvino"),
    *(
        EngineSettings(engine="openvino", inference_precision="f32", kv_precision="f32", dynamic_quantization_group=g)
        for g in (0, 32, 64, 128)
    ),
    *(
        EngineSettings(engine="openvino", inference_precision="f32", kv_precision=k, dynamic_quantization_group=0)
        for k in ("f16", "u8", "u4")
    ),
    *(
        EngineSettings(engine="openvino", inference_precision="bf16", kv_precision="bf16", dynamic_quantization_group=g)
        for g in (0, 32, 64)
    ),
]
ONNX = [
    EngineSettings(engine="onnx", dynamic_quantization_group=group, kv_precision=kv)
    for group in (0, 64)
    for kv in ("f32", "f16")
]


@dataclass(frozen=True)
class Cost:
    """What one setting costs."""

    recipe: str
    setting: str
    kld: float  # from the same weights in exact arithmetic
    share: float  # of the recipe's own divergence
    top1: float  # share of tokens whose best next token is the same
    tpot_ms: float  # after 512 tokens

    @property
    def allowed(self) -> bool:
        return self.share <= ALLOWED


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", default="int4-asym-g64,int8-asym")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    costs = []
    with tempfile.TemporaryDirectory() as scratch:
        export(find_checkpoint(), Path(scratch) / "fp32", "fp32", format="openvino")
        windows = text_windows(Path(scratch) / "fp32", args.tokens)
        floats = [logits(Path(scratch) / "fp32", window, EXACT) for window in windows]
        for recipe in args.recipes.split(","):
            folder = Path(scratch) / recipe
            export(find_checkpoint(), folder, recipe, format="both")
            exact = [logits(folder, window, EXACT) for window in windows]
            own = float(np.mean([kl_divergence(a, b) for a, b in zip(floats, exact, strict=True)]))
            costs.append(Cost(recipe, "the recipe itself", own, 1.0, agreement(floats, exact), 0.0))
            for settings in (*ONNX, *OPENVINO):
                found = [logits(folder, window, settings) for window in windows]
                kld = float(np.mean([kl_divergence(a, b) for a, b in zip(exact, found, strict=True)]))
                agree = agreement(exact, found)
                costs.append(Cost(recipe, describe(settings), kld, kld / own, agree, tpot_ms(folder, settings)))
                print(costs[-1], file=sys.stderr)
    report = {
        **about_machine(("edgeglm", "openvino", "onnxruntime", "nncf")),
        "tokens": sum(window.size for window in windows),
        "costs": [asdict(cost) for cost in costs],
    }
    if args.json:
        print(json.dumps(report))
        return 0
    print("| recipe | setting | KLD | of the recipe's own | top-1 | ms/token |\n|---|---|---|---|---|---|")
    for c in costs:
        print(f"| {c.recipe} | {c.setting} | {c.kld:.2g} | {c.share:.1%} | {c.top1:.1%} | {c.tpot_ms:.1f} |")
    return 0


def describe(settings: EngineSettings) -> str:
    group, kv, precision = (
        settings.dynamic_quantization_group,
        settings.kv_precision,
        settings.inference_precision,
    )
    if group is None and kv is None:
        return f"{settings.engine}: defaults"
    activations = "float" if group == 0 else "int8" if settings.engine == "onnx" else f"int8 in groups of {group}"
    return f"{settings.engine}: {activations} activations, {precision or 'f32'}, {kv} cache"


def text_windows(folder: Path, count: int) -> list[np.ndarray]:
    """Token ids of the text, cut into windows."""
    ids = np.array(text_ids(folder, count), np.int64)
    return [ids[start : start + WINDOW] for start in range(0, ids.size, WINDOW)]


def logits(folder: Path, ids: np.ndarray, settings: EngineSettings) -> np.ndarray:
    """(T, vocab) logits of a window, chunk by chunk."""
    engine = engine_of(folder, settings)
    sequence, rows = CacheSequence(engine.pool), []
    for start in range(0, ids.size, CHUNK):
        part = ids[start : start + CHUNK]
        rows.append(engine.forward(part, sequence, np.arange(part.size)).copy())
    sequence.trim(0)
    return np.concatenate(rows)


def tpot_ms(folder: Path, settings: EngineSettings) -> float:
    engine, last = engine_of(folder, settings), np.array([0])
    sequence, seconds = CacheSequence(engine.pool), []
    engine.forward(np.arange(1, WINDOW + 1), sequence, last)
    for _ in range(TIMED):
        started = time.perf_counter()
        engine.forward(np.array([1]), sequence, last)
        seconds.append(time.perf_counter() - started)
    sequence.trim(0)
    return 1000 * statistics.median(seconds)


@lru_cache(maxsize=1)
def engine_of(folder: Path, settings: EngineSettings) -> Engine:
    """The engine, kept until another one is asked for."""
    return open_engine(open_bundle(folder), settings)


def agreement(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    return float(np.mean([np.mean(x.argmax(-1) == y.argmax(-1)) for x, y in zip(a, b, strict=True)]))


if __name__ == "__main__":
    sys.exit(main())
