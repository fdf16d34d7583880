"""llama.cpp's quantizations and ours, compared with the same float model on the same tokens.

    python benchmarks/llamacpp_accuracy.py TOOLS [--source FILE.gguf] [--types Q4_0,Q4_K_M] [--recipes int4-asym-g64]
                                           [--budgets 133.7e6] [--engines onnx] [--rotate] [--windows 40]
                                           [--work FOLDER] [--json]

TOOLS: the folder with llama.cpp's llama-quantize, llama-imatrix and llama-perplexity.

The float model runs once, as edgeglm's fp32 bundle with everything in float32. Its log-probabilities go into a file in
the form of `llama-perplexity --kl-divergence-base`, and both sides are measured against that file. llama-perplexity
takes token ids from it too, so nothing is tokenized twice. Of a window of n tokens it scores those after the first
n / 2: rows n / 2 to n - 2, and so do we (tools/perplexity/perplexity.cpp of ggml-org/llama.cpp, `kl_divergence`). It
would replace a window's first token by BOS if a file says so; files made here do not.

llama.cpp's quantizer starts from float32 weights in a GGUF that is made from those edgeglm reads, and it is shown first
that llama.cpp computes the same function from it. Its importance matrix is from the text that our data-aware recipes
calibrate with, cut to the number of tokens that --calibration-windows says. Embedding and head get 8 bits (q8_0), as in
our recipes. Both sides run as they usually do, activations and cache included; our windows are read in chunks of 16.

With --rotate, llama.cpp gets the rotated weights that our rotating recipes compress: other numbers for the same
function. The demo checkpoint's own weights are on the grid of Q4_1, which favours formats with blocks of 32.

Error bars are those of means over windows: tokens of one window are not independent samples.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from llamacpp import CLIPPED, WINDOW, Scores, Tools, read_base, scored_rows, write_base
from make_gguf import write_like
from report import about_machine, put_out, show_machine, show_table, work_folder

from edge.export.architectures.registry import describe
from edge.export.checkpoint.checkpoint import open_checkpoint
from edge.export.checkpoint.default import find_checkpoint
from edge.export.checkpoint.gguf_metadata import read_header
from edge.export.pipeline import export
from edge.export.plan import make_plan
from edge.export.settings import ExportSettings, Format
from edge.export.text.corpus import builtin_calibration, builtin_evaluation
from edge.export.text.overlap import check_apart
from edge.export.text.windows import Windows, token_windows
from edge.export.weights.rotation import RotatedWeights
from edge.export.weights.source import Weights
from edge.profiles.reference import FloatWeights
from edge.runtime.bundle import open_bundle
from edge.runtime.engines.choice import open_engine
from edge.runtime.engines.engine import Engine
from edge.runtime.errors import EdgeError
from edge.runtime.kv.pool import CacheSequence
from edge.runtime.manifest import Manifest
from edge.runtime.settings import EngineSettings
from edge.runtime.tokenizer import Tokenizer

CHUNK = 16  # tokens
SAME_FUNCTION = (
    1e-3  # KLD, nats/token, of llama.cpp on the float weights; keeping log-probabilities in 16 bits costs less
)
EXACT = EngineSettings(engine="openvino", inference_precision="f32", kv_precision="f32", dynamic_quantization_group=0)


@dataclass(frozen=True, slots=True)
class Row:
    """One compressed model."""

    side: str  # "llama.cpp" or "edgeglm"
    name: str
    weight_bytes: int  # of all tensors, without metadata and tokenizer
    bits_per_weight: float
    block_bits_per_weight: float  # of matrices in decoder blocks only
    kld: float
    kld_error: float
    ppl_ratio: float
    ppl_ratio_error: float  # of its logarithm, times itself
    top1: float
    window_kld: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Size:
    weight_bytes: int
    bits_per_weight: float
    block_bits_per_weight: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tools", type=Path, help="llama.cpp's folder of programs, like build/bin")
    parser.add_argument("--source", type=Path, metavar="FILE.gguf", help="default: the demo checkpoint")
    parser.add_argument("--types", default="Q4_0,Q4_1,IQ4_NL,Q4_K_M", help="llama-quantize's types; '' for none")
    parser.add_argument("--recipes", default="int4-asym-g64,int4-sym-g128", help="our recipes; '' for none")
    parser.add_argument("--budgets", default="", help="sizes in bytes to export our best bundle for; '' for none")
    parser.add_argument("--engines", default="openvino,onnx", help="engines for our bundles, with default settings")
    parser.add_argument("--rotate", action="store_true", help="llama.cpp quantizes rotated weights")
    parser.add_argument(
        "--windows", type=int, default=40, metavar="N", help=f"windows of {WINDOW} tokens, half of them scored"
    )
    parser.add_argument(
        "--calibration-windows", type=int, default=64, metavar="N", help=f"windows of {WINDOW} tokens to calibrate with"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count(), metavar="N", help="threads of llama.cpp")
    parser.add_argument(
        "--work", type=Path, metavar="FOLDER", help="keep files there; default: a folder that is removed"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    try:
        with work_folder(args.work) as work:
            report = compare(args, work)
    except (EdgeError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    put_out(report, show, as_json=args.json)
    return 0


def compare(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Everything, as one report. Raises EdgeError and OSError."""
    tools = Tools(args.tools, args.threads)
    source = args.source or find_checkpoint()
    spec, weights = describe(open_checkpoint(source))
    if weights.checkpoint.format != "gguf":
        raise OSError(f"{source} is not a GGUF; give one: only such a file has the tokenizer in llama.cpp's form")
    evaluation, calibration = texts(weights, args.windows, args.calibration_windows, work)
    chosen = reference_weights(weights, rotate=args.rotate)
    key = make_plan(source, ExportSettings("fp32", format="openvino")).key + evaluation.sha256
    base = work / f"float-{hashlib.sha256(key.encode()).hexdigest()[:16]}.logits"
    if not base.is_file():  # a kept folder has it from the last run
        write_base(base, evaluation.ids, spec.vocab_size, float_logits(source, work / "fp32", evaluation))
    rows = list(theirs(tools, weights, chosen, args.types.split(",") if args.types else [], base, calibration, work))
    engines = args.engines.split(",")
    format: Format = "onnx" if engines == ["onnx"] else "both"  # budgets for ONNX Runtime alone may choose 2 bits
    for recipe in args.recipes.split(",") if args.recipes else []:
        export(source, work / recipe, recipe, format=format, force=True)
        rows += ours(work / recipe, engines, base)
    for budget in map(float, args.budgets.split(",") if args.budgets else []):
        folder = work / f"at most {budget:,.0f} bytes"
        export(source, folder, max_bytes=budget, format=format, force=True)
        rows += ours(folder, engines, base)
    return {
        **about_machine(("edgeglm", "openvino", "onnxruntime", "nncf"), **{"llama.cpp": tools.version()}),
        "source": source.name,
        "rotated": args.rotate,
        "windows": evaluation.count,
        "scored_tokens": evaluation.count * len(scored_rows(WINDOW)),
        "windows_sha256": evaluation.sha256,
        "calibration_tokens": args.calibration_windows * WINDOW,
        "rows": [asdict(row) for row in rows],
    }


def reference_weights(weights: Weights, *, rotate: bool) -> FloatWeights:
    """The weights that llama.cpp's quantizer starts from: a checkpoint's own, or rotated ones."""
    return RotatedWeights(weights) if rotate else weights


def texts(weights: Weights, windows: int, calibration_windows: int, work: Path) -> tuple[Windows, Path]:
    """The windows to measure with, and a text file for the importance matrix. They have nothing in common."""
    weights.checkpoint.write_tokenizer(work / "tokenizer.json")
    tokenizer = Tokenizer(work / "tokenizer.json")
    measured, calibrated = builtin_evaluation(), builtin_calibration()
    check_apart(calibrated, measured)
    calibration = token_windows(calibrated, tokenizer, WINDOW, calibration_windows)
    path = work / "calibration.txt"
    path.write_text("".join(tokenizer.decode(ids) for ids in calibration.ids.tolist()), encoding="utf-8")
    return token_windows(measured, tokenizer, WINDOW, windows), path


def theirs(
    tools: Tools, like: Weights, weights: FloatWeights, forms: list[str], base: Path, calibration: Path, work: Path
) -> Iterator[Row]:
    """llama.cpp's quantizations of the weights, after the float ones.

    Raises OSError where the float ones compute a different function from ours.
    """
    if not forms:
        return
    model, importance = work / "float32.gguf", work / "importance.gguf"
    write_like(model, like, weights)
    exact = row("llama.cpp", "F32", gguf_size(model, weights), tools.score(model, base, "-ctk", "f32", "-ctv", "f32"))
    yield exact
    if not exact.kld <= SAME_FUNCTION:
        raise OSError(f"llama.cpp computes a different function from {model}: KLD {exact.kld:.6f} from ours in float")
    tools.importance(model, calibration, importance)
    for form in forms:
        out = work / f"{form}.gguf"
        tools.quantize(model, importance, out, form)
        yield row("llama.cpp", form, gguf_size(out, weights), tools.score(out, base))


def ours(folder: Path, engines: list[str], base: Path) -> Iterator[Row]:
    bundle = open_bundle(folder)
    for name in engines:
        engine = open_engine(bundle, EngineSettings(engine=name))
        yield row("edgeglm", f"{folder.name}, {engine.info.name}", bundle_size(bundle.manifest), score(engine, base))


def float_logits(source: Path, folder: Path, windows: Windows) -> Iterator[npt.NDArray[np.float32]]:
    """(scored rows, vocab) of every window, from the float model with nothing rounded."""
    export(source, folder, "fp32", format="openvino", force=True)
    engine = open_engine(open_bundle(folder), EXACT)
    for ids in windows.ids:
        yield window_logits(engine, ids, ids.size)


def window_logits(engine: Engine, ids: npt.NDArray[np.int64], chunk: int) -> npt.NDArray[np.float32]:
    """Logits of the scored rows of a window that is read in chunks."""
    sequence, wanted, found = CacheSequence(engine.pool), scored_rows(ids.size), []
    for start in range(0, ids.size, chunk):
        part = ids[start : start + chunk]
        rows = wanted[(wanted >= start) & (wanted < start + chunk)] - start
        logits = engine.forward(part, sequence, rows if rows.size else np.array([0]))
        if rows.size:
            found.append(logits.copy())
    sequence.trim(0)
    return np.concatenate(found)


def score(engine: Engine, base: Path) -> Scores:
    """Compare an engine of ours with a base file, by llama-perplexity's formulas."""
    klds, ratios, same = [], [], []
    for ids, reference in read_base(base):
        other = log_softmax(window_logits(engine, ids, CHUNK))
        true = ids[scored_rows(ids.size) + 1, None]
        terms = np.exp(reference.astype(np.float64)) * (reference - other)
        klds.append(float(np.where(reference > -CLIPPED, terms, 0).sum(axis=1).mean()))
        ratios.append(float((np.take_along_axis(reference, true, 1) - np.take_along_axis(other, true, 1)).mean()))
        same.append(float((reference.argmax(1) == other.argmax(1)).mean()))
    return Scores(tuple(klds), tuple(ratios), float(np.mean(same)))


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    found: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found


def row(side: str, name: str, size: Size, scores: Scores) -> Row:
    kld, kld_error = mean_and_error(scores.window_kld)
    log_ratio, log_error = mean_and_error(scores.window_log_ppl_ratio)
    ratio = math.exp(log_ratio)
    found = Row(
        side, name, **asdict(size), kld=kld, kld_error=kld_error, ppl_ratio=ratio, ppl_ratio_error=ratio * log_error,
        top1=scores.top1, window_kld=scores.window_kld,
    )  # fmt: skip
    print(f"{side} {name}: {size.weight_bytes:,} bytes, KLD {kld:.5f} ± {kld_error:.5f}", file=sys.stderr)
    return found


def mean_and_error(values: tuple[float, ...]) -> tuple[float, float]:
    """The mean and its standard error, for independent values."""
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return float(np.mean(values)), error


def gguf_size(path: Path, weights: FloatWeights) -> Size:
    tensors = read_header(path).tensors
    blocks = [t for name, t in tensors.items() if name.startswith("blk.") and len(t.shape) == 2]
    return size_of(
        sum(t.nbytes for t in tensors.values()),
        weights.spec.num_parameters,
        [(t.shape, t.nbytes) for t in blocks],
    )


def bundle_size(manifest: Manifest) -> Size:
    blocks = [t for name, t in manifest.tensors.items() if name.startswith("layers.") and len(t.shape) == 2]
    return size_of(manifest.weight_bytes, manifest.spec.num_parameters, [(t.shape, t.nbytes) for t in blocks])


def size_of(weight_bytes: int, parameters: int, blocks: list[tuple[tuple[int, ...], int]]) -> Size:
    block_bits = 8 * sum(nbytes for _, nbytes in blocks) / sum(math.prod(shape) for shape, _ in blocks)
    return Size(weight_bytes, round(8 * weight_bytes / parameters, 3), round(block_bits, 3))


def show(report: dict[str, Any]) -> None:
    rotated = "rotated" if report["rotated"] else "as they are"
    show_machine(report)
    print(f"model     {report['source']}, weights for llama.cpp {rotated}")
    print(f"text      {report['windows']} windows of {WINDOW}, {report['scored_tokens']:,} tokens scored\n")
    show_table(
        [
            {
                "": row["side"],
                "name": row["name"],
                "bytes": f"{row['weight_bytes']:,}",
                "bits per weight": row["bits_per_weight"],
                "in blocks": row["block_bits_per_weight"],
                "KLD": f"{row['kld']:.4f} ± {row['kld_error']:.4f}",
                "ppl ratio": f"{row['ppl_ratio']:.4f} ± {row['ppl_ratio_error']:.4f}",
                "top-1": f"{row['top1']:.1%}",
            }
            for row in report["rows"]
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
