"""What float16 does to a model, in emulated runs: as it is, with folds, with safe norms. Figures of docs/float16.md.

    python -m benchmarks.float16 CHECKPOINT
    python -m benchmarks.float16 CHECKPOINT --recipes int4-sym-g128,int4-sym-g128-awq-data-free,int4-sym-channel

The first prints how large values get, the folds that an export for a GPU would make, and the KLD of emulated runs from
exact arithmetic on the same weights; the second the KLD of recipes without text from the float model.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge.export.compress.nncf import Compressor
from edge.export.float16.choose import choose, headroom
from edge.export.float16.ranges import measure
from edge.export.graph import decoder
from edge.export.graph.emulated import (
    BFLOAT16,
    FLOAT16,
    FLOAT16_NORMS,
    FLOAT16_SUMS,
    INT8_ACTIVATIONS,
    EmulatedBuilder,
)
from edge.export.graph.numpy_builder import NumpyBuilder
from edge.export.interop.sidecars import write_sidecars
from edge.export.plan import Plan, make_plan
from edge.export.settings import ExportSettings
from edge.export.stages import pack_stage
from edge.export.tensors import Float32Array, Weight, to_float32
from edge.export.text.corpus import calibration_corpus
from edge.export.text.windows import token_windows
from edge.export.weights.names import stages_of
from edge.runtime.differences import kl_divergence
from edge.runtime.spec import ModelSpec

RECIPE = "int4-sym-g128"
TOKENS = 48  # of an emulated run
WINDOW, WINDOWS = 128, 4  # tokens that recipes are compared on; values are measured on the first half


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--recipes", default="", help="recipes that need no text, with commas between them")
    args = parser.parse_args()
    plan = make_plan(args.checkpoint, ExportSettings(RECIPE, device="GPU"))
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = write_sidecars(plan.checkpoint, plan.spec, Path(folder), plan.chat_template()).tokenizer
    ids = token_windows(calibration_corpus(None).documents, tokenizer, WINDOW, WINDOWS).ids
    if args.recipes:
        compare(args.checkpoint, args.recipes.split(","), ids)
    else:
        emulate(plan, ids)


def emulate(plan: Plan, ids: npt.NDArray[np.int64]) -> None:
    precisions = {name: assigned.precision for name, assigned in plan.assignments.items()}
    ranges = measure(floats(plan), ids[: WINDOWS // 2], plan.spec, precisions)
    for kind, value in ranges.kinds.items():
        print(f"{kind:24s} {value:12,.5g}   {headroom(value):6.1f} bits of headroom")
    folds = choose(ranges, plan.spec, safe_norms=False, moved=False)
    print(folds)
    tokens = ids[:1, :TOKENS]
    for name, one in (("as it is", plan), ("folded", plan.folded(folds))):
        weights = packed(one)
        exact = logits(NumpyBuilder(weights, one.spec), tokens, one.spec)
        for numerics in (FLOAT16, FLOAT16_SUMS, FLOAT16_NORMS, BFLOAT16, INT8_ACTIVATIONS):
            for norms in ("plain", "safe") if numerics.stepwise_norms else ("plain",):
                spec = replace(one.spec, safe_norms=norms == "safe")
                found = logits(EmulatedBuilder(weights, spec, numerics), tokens, spec)
                kld = kl_divergence(exact, found) if np.isfinite(found).all() else float("nan")
                print(f"{name:10s} {numerics.name:34s} norms {norms:6s} KLD {kld:.2e}", flush=True)


def compare(checkpoint: Path, recipes: list[str], ids: npt.NDArray[np.int64]) -> None:
    plan = make_plan(checkpoint, ExportSettings("fp32"))
    expected = [logits(NumpyBuilder(floats(plan), plan.spec), window[None], plan.spec) for window in ids]
    for recipe in recipes:
        one = make_plan(checkpoint, ExportSettings(recipe))
        weights = packed(one)
        found = [logits(NumpyBuilder(weights, one.spec), window[None], one.spec) for window in ids]
        kld = np.mean([kl_divergence(e, f) for e, f in zip(expected, found, strict=True)])
        print(f"{recipe:34s} KLD {kld:.3f}, {one.assignments.nbytes:,} bytes", flush=True)


def floats(plan: Plan) -> dict[str, Weight]:
    return {name: to_float32(plan.weights.read(name)) for name in plan.assignments}


def packed(plan: Plan) -> dict[str, Weight]:
    """All weights of a plan that needs no text, as its export would write them."""
    compressor = Compressor()
    stages = [pack_stage(stage, plan, compressor, None) for stage in stages_of(plan.spec)]
    return {name: weight for stage in stages for name, weight in stage.items()}


def logits(builder: NumpyBuilder, tokens: npt.NDArray[np.int64], spec: ModelSpec) -> Float32Array:
    """(T, vocab_size) of one window."""
    hidden = builder.embedding(tokens, "embed")
    for layer in range(spec.num_layers):
        hidden = decoder.block(builder, hidden, layer, spec)
    rows: Float32Array = decoder.head(builder, hidden, spec)[0]
    return rows


if __name__ == "__main__":
    main()
