"""Precision by budget: `edge export --max-bytes` and NNCF's mixed precision, at the same bytes, on the same tokens.

    python benchmarks/mixed.py [--source CHECKPOINT] [--bits 4.5,5,5.5,6] [--criteria max_activation_variance,...]
                               [--windows 40] [--work FOLDER] [--json]

Both sides start from one float32 graph, edgeglm's, run on one engine with its defaults, and are compared with the float
model on Python's documentation. NNCF gives some matrices 4 bits in groups of 64 and as many others 8 bits as the bits
per weight of the decoder blocks allow; its criterion ranks them. weight_quantization_error looks only at the weights;
the others look at calibration text, as do AWQ and scale estimation, which are then on. Ours gets the bytes that NNCF's
smallest model with these bits takes. Embedding and head have 8 bits on both sides, which is NNCF's rule.

Error bars are those of means over windows; for the difference from ours, paired.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
from report import about_machine, put_out, show_machine, show_table, work_folder

from edge.export.checkpoint.default import find_checkpoint
from edge.export.compress.calibration import WINDOW, WINDOWS
from edge.export.compress.nncf import alone
from edge.export.compress.precision import Precision, fit, stored_bytes
from edge.export.pipeline import export
from edge.export.plan import make_plan
from edge.export.settings import ExportSettings
from edge.export.text.corpus import builtin_calibration, builtin_evaluation
from edge.export.text.overlap import check_apart
from edge.export.text.windows import token_windows
from edge.export.weights.names import canonical_shapes
from edge.profiles.accuracy import Accuracy, compare, evaluate
from edge.profiles.reference import build
from edge.profiles.reference_file import Reference
from edge.runtime.bundle import MANIFEST, MODEL_BIN, MODEL_XML, open_bundle, record_of
from edge.runtime.engines.choice import open_engine
from edge.runtime.engines.openvino_core import in_own_thread, make_core
from edge.runtime.errors import EdgeError
from edge.runtime.settings import EngineSettings
from edge.runtime.spec import ModelSpec
from edge.runtime.tokenizer import Tokenizer

DATA_FREE = "weight_quantization_error"
CRITERIA = (DATA_FREE, "max_activation_variance", "hessian_input_activation")
SLACK = 4096  # bytes
FOUR, EIGHT = Precision(4, group_size=64), Precision(8)


@dataclass(frozen=True, slots=True)
class Row:
    """One compressed model."""

    bits: float  # requested, per weight of decoder blocks
    side: str
    nbytes: int  # of openvino_model.bin
    export_s: float
    kld: float
    kld_error: float
    more_than_ours: float | None  # KLD
    more_than_ours_error: float | None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, metavar="CHECKPOINT", help="default: the demo checkpoint")
    parser.add_argument("--bits", default="4.5,5,5.5,6", help="bits per weight of decoder blocks")
    parser.add_argument("--criteria", default=",".join(CRITERIA), help="values of NNCF's SensitivityMetric")
    parser.add_argument("--windows", type=int, default=40, metavar="N", help="windows of 512 tokens to measure with")
    parser.add_argument(
        "--work", type=Path, metavar="FOLDER", help="keep files there; default: a folder that is removed"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    try:
        with work_folder(args.work) as work:
            source = args.source or find_checkpoint()
            rows = measure(
                source, [float(b) for b in args.bits.split(",")], args.criteria.split(","), args.windows, work
            )
    except (EdgeError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    report = {
        **about_machine(("edgeglm", "openvino", "nncf")),
        "source": source.name,
        "tokens": args.windows * (WINDOW - 1),
        "rows": [asdict(row) for row in rows],
    }
    put_out(report, show, as_json=args.json)
    return 0


def measure(source: Path, bits: Sequence[float], criteria: Sequence[str], windows: int, work: Path) -> list[Row]:
    """All rows. Raises EdgeError and OSError."""
    plan = make_plan(source, ExportSettings("fp32", format="openvino"))
    floats = work / "fp32"
    export(source, floats, "fp32", format="openvino", force=True)
    tokenizer = Tokenizer(floats / "tokenizer.json")
    measured, calibrated = builtin_evaluation(), builtin_calibration()
    check_apart(calibrated, measured)
    calibration = token_windows(calibrated, tokenizer, WINDOW, WINDOWS).ids
    text = token_windows(measured, tokenizer, WINDOW, windows)
    reference = build(plan.weights, text, work / "reference.npz", key=plan.key)
    rows: list[Row] = []
    for wanted in bits:
        found: list[tuple[str, int, float, Accuracy]] = []
        for criterion in criteria:
            started, out = time.perf_counter(), work / f"nncf-{wanted}-{criterion}"
            theirs(floats, out, plan.spec, wanted, criterion, calibration)
            took = time.perf_counter() - started
            found.append((f"NNCF, {criterion}", size(out), took, accuracy(out, reference)))
        started, out = time.perf_counter(), work / f"edgeglm-{wanted}"
        # What both files have besides weights is not in the budget, and ours may have a little more of it.
        beside = size(floats) - open_bundle(floats).manifest.weight_bytes + SLACK
        budget = min(nbytes for _, nbytes, _, _ in found) - beside
        tied = plan.spec.tied_embeddings
        export(
            source, out, format="openvino", max_bytes=budget, embedding=str(EIGHT), head=None if tied else str(EIGHT),
            force=True,
        )  # fmt: skip
        took = time.perf_counter() - started
        ours = accuracy(out, reference)
        found.append(("edgeglm", size(out), took, ours))
        for side, nbytes, took, result in found:
            more = None if result is ours else compare(ours, result).kld
            rows.append(
                Row(
                    wanted, side, nbytes, round(took, 1), result.kld, result.kld_stderr or 0.0,
                    None if more is None else more.mean, None if more is None else more.stderr,
                )
            )  # fmt: skip
            print(f"{wanted} {side}: {nbytes:,} bytes, KLD {result.kld:.5f} ± {result.kld_stderr:.5f}", file=sys.stderr)
    return rows


def theirs(
    floats: Path, out: Path, spec: ModelSpec, bits: float, criterion: str, calibration: npt.NDArray[np.int64]
) -> None:
    """Make a bundle with the weights that NNCF makes from the float one's graph."""
    matrices = {n: s for n, s in canonical_shapes(spec).items() if n.startswith("layers.") and len(s) == 2}
    count = sum(math.prod(shape) for shape in matrices.values())
    four, eight = (
        8 * sum(stored_bytes(fit(precision, shape)[0], shape) for shape in matrices.values()) / count
        for precision in (FOUR, EIGHT)
    )
    options: dict[str, Any] = {}

    def compress() -> ov.Model:
        model = make_core().read_model(floats / MODEL_XML)
        with alone() as nncf:
            if criterion != DATA_FREE:
                feeds = [_feed(row) for row in calibration]
                options.update(dataset=nncf.Dataset(feeds), subset_size=len(feeds), awq=True, scale_estimation=True)
            return nncf.compress_weights(
                model,
                mode=nncf.CompressWeightsMode.INT4_ASYM,
                group_size=FOUR.group_size,
                ratio=(eight - bits) / (eight - four),
                sensitivity_metric=nncf.SensitivityMetric(criterion),
                **options,
            )

    model = in_own_thread(compress)
    out.mkdir(exist_ok=True)
    bundle = open_bundle(floats)
    for name in bundle.manifest.files:
        if name not in (MODEL_XML, MODEL_BIN) and not (out / name).exists():
            (out / name).hardlink_to(floats / name)
    ov.save_model(model, out / MODEL_XML, compress_to_fp16=False)
    files = {name: record_of(out / name) for name in bundle.manifest.files}
    manifest = replace(bundle.manifest, files=files, weight_group_size=FOUR.group_size)
    (out / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")


def _feed(ids: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
    """Inputs of the graph for one window."""
    return {
        "input_ids": ids[None],
        "attention_mask": np.ones((1, ids.size), np.int64),
        "position_ids": np.arange(ids.size, dtype=np.int64)[None],
        "beam_idx": np.zeros(1, np.int32),
    }


def accuracy(bundle: Path, reference: Reference) -> Accuracy:
    return evaluate(open_engine(open_bundle(bundle), EngineSettings("openvino")), reference)


def size(bundle: Path) -> int:
    return (bundle / MODEL_BIN).stat().st_size


def show(report: dict[str, Any]) -> None:
    show_machine(report)
    print(f"model     {report['source']}, {report['tokens']:,} tokens\n")
    show_table(
        [
            {
                "bits": row["bits"],
                "": row["side"],
                "bytes": f"{row['nbytes']:,}",
                "made in, s": row["export_s"],
                "KLD": f"{row['kld']:.4f} ± {row['kld_error']:.4f}",
                "more than ours": ""
                if row["more_than_ours"] is None
                else f"{row['more_than_ours']:.4f} ± {row['more_than_ours_error']:.4f}",
            }
            for row in report["rows"]
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
