"""Loads of bundles that nothing is wrong with, none of which may fail its self-test.

    python -m tests.runtime.honest_loads [--loads 20] [--usual] [--checkpoint PATH]

exports a small GLM with every recipe, or a checkpoint with those of them that need no text, loads each bundle so many
times with every engine and in several settings, or in the usual ones alone, and prints how far each is from its bound.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edge.export.compress.recipes import recipes
from edge.export.pipeline import export
from edge.runtime import bundle as bundles
from edge.runtime.engines.engine import Engine
from edge.runtime.errors import EdgeError
from edge.runtime.self_test import SelfTest, open_tested
from edge.runtime.settings import EngineSettings
from tests.tiny import Tiny, make

# What an engine may be set to here; each has another bound.
SETTINGS: Mapping[str, tuple[dict[str, Any], ...]] = {
    "openvino": (
        {},
        {"inference_precision": "f32", "kv_precision": "f32", "dynamic_quantization_group": 0},
        {"inference_precision": "f32"},
        {"inference_precision": "bf16", "dynamic_quantization_group": 0},
        {"inference_precision": "f32", "dynamic_quantization_group": 32},
        {"kv_precision": "u8"},
        {"kv_precision": "u4"},
        {"reproducible": True},
    ),
    "onnx": ({}, {"dynamic_quantization_group": 0}, {"kv_precision": "f16"}, {"reproducible": True}),
}
SMALL = Tiny("self-test", hidden_size=256, intermediate_size=512, num_heads=8, head_dim=32)


def loads(bundle: Path, engine: str, count: int, chosen: Mapping[str, Any]) -> Iterator[SelfTest]:
    """Self-tests of so many loads, with all golden rows at the first."""
    opened = bundles.open_bundle(bundle)
    for _ in range(count):
        found: tuple[Engine, SelfTest | None] = open_tested(opened, EngineSettings(engine, **chosen))
        found[0].close()
        assert found[1] is not None
        yield found[1]


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loads", type=int, default=20)
    parser.add_argument("--usual", action="store_true")
    parser.add_argument("--checkpoint", type=Path)
    args = parser.parse_args()
    count = args.loads
    total = failures = others = 0
    with tempfile.TemporaryDirectory() as scratch:
        source = args.checkpoint or Path(scratch) / "checkpoint"
        if args.checkpoint is None:
            make(SMALL, source)
        for name, recipe in recipes().items():
            if args.checkpoint is not None and recipe.calibrated:
                continue
            out = Path(scratch) / name
            export(source, out, name)
            for engine, choices in SETTINGS.items():
                for chosen in choices[:1] if args.usual else choices:
                    told = " ".join(f"{key}={value}" for key, value in chosen.items()) or "default"
                    try:
                        found = list(loads(out, engine, count, chosen))
                    except EdgeError as error:
                        failures += 1
                        say(f"FAILED {name} {engine} {told}: {error}")
                        continue
                    total += count
                    others += sum(one.bits == "other" for one in found)
                    first = found[0]
                    assert first.kld is not None
                    share = "-" if first.bound is None else f"{first.kld / first.bound:.2f}"
                    bound = "-" if first.bound is None else f"{first.bound:.2g}"
                    say(f"{name:32s} {engine:9s} {told:60s} {first.kld:.2g} of {bound}: {share}")
    say(f"{total} loads, {failures} settings failed, {others} loads gave other bits than the first")


if __name__ == "__main__":
    main()
