"""How far off `edge fit` is on this machine: memory and speed of pairs that are predicted by all the others.

    python benchmarks/fit.py [--work FOLDER] [--only TEXT] [--new-tokens 24] [--store] [--json]

A pair is a bundle on an engine at a length of prompt: engines, models (the demo's; shapes of GLM-Edge-1.5B and of
GLM-4-9B with 4 blocks, of random weights), recipes and contexts differ. Each is measured in a fresh process, its files
in the page cache: what cannot be dropped of memory at its peak, what is resident, the time until the first token, a
prompt, and an answer. The bandwidth of memory is measured before and after. Then each pair's decode speed is predicted
from the bandwidth and the other pairs of its engine, and its memory from the manifest alone.

Asked for are 10 % of memory and 25 % of decode speed; the exit code is 1 beyond that. The machine has to be idle, or
the speeds mean nothing; memory can be measured at any time. It takes ten minutes with exports, and 16 GB of disk in
FOLDER (default: build/fit), of which 8 stay. It resumes where it was ended: bundles and pairs that are in FOLDER are
not made again; remove FOLDER/pairs to measure all of them anew.
--store writes profiles/fit/measured.json, from which `edge fit` takes its constants and its errors.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import fit_worker
from engine_worker import status_kb
from engines import SAMPLE_S, cache, last_line
from make_checkpoint import with_layers, write_checkpoint
from members import MEMBERS
from report import about_machine, put_out, show_machine, show_table

from edge.export.checkpoint.default import find_checkpoint
from edge.export.pipeline import export
from edge.profiles.devices.bandwidth import measured_bandwidth
from edge.profiles.fit.measured import FILE, LeftOut, Measured, MeasuredPair, left_out_of
from edge.profiles.fit.predict import operations, read_kv, together
from edge.runtime.atomic import write_atomically
from edge.runtime.bundle import TOKENIZER, is_bundle, open_bundle
from edge.runtime.errors import ProfileError
from edge.runtime.footprint import footprint, kept_bytes
from edge.runtime.machine import logical_processors, physical_cores

ROOT = Path(__file__).resolve().parent.parent
MEMORY_WITHIN, DECODE_WITHIN = 0.10, 0.25
DEMO = "demo"
MODELS = {"edge-1.5b": ("glm-edge-1.5b-chat", 28), "9b-4": ("glm-4-9b-chat-hf", 4)}  # member and blocks


@dataclass(frozen=True)
class Wanted:
    """One pair to measure."""

    model: str
    recipe: str
    engine: str
    prompt_tokens: int

    @property
    def name(self) -> str:
        return f"{self.model}-{self.recipe}-{self.engine}-{self.prompt_tokens}"

    @property
    def bundle(self) -> str:
        return f"{self.model}-{self.recipe}"


PAIRS = (
    Wanted(DEMO, "int4-asym-g128", "onnx", 256),
    Wanted(DEMO, "int4-asym-g128", "openvino", 2048),
    Wanted(DEMO, "int8-asym", "onnx", 1024),
    Wanted(DEMO, "int8-asym", "openvino", 256),
    Wanted("edge-1.5b", "int4-sym-g128", "onnx", 1024),
    Wanted("edge-1.5b", "int4-sym-g128", "openvino", 512),
    Wanted("edge-1.5b", "int8-asym", "onnx", 256),
    Wanted("edge-1.5b", "int8-asym", "openvino", 1024),
    Wanted("9b-4", "int4-asym-g128", "onnx", 512),
    Wanted("9b-4", "int4-asym-g128", "openvino", 2048),
    Wanted("9b-4", "int4-sym-channel", "onnx", 1024),
    Wanted("9b-4", "int4-sym-channel", "openvino", 512),
    Wanted("9b-4", "int8-asym", "onnx", 256),
    Wanted("9b-4", "int8-asym", "openvino", 1024),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "fit", metavar="FOLDER")
    parser.add_argument("--only", default="", metavar="TEXT", help="pairs whose names hold this")
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--store", action="store_true", help=f"write profiles/fit/{FILE}")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    wanted = [pair for pair in PAIRS if args.only in pair.name]
    if not wanted:
        print(f"no pair has {args.only!r} in its name; there are {', '.join(p.name for p in PAIRS)}", file=sys.stderr)
        return 1
    made: list[Path] = []
    for name in dict.fromkeys(pair.bundle for pair in wanted):
        make(name, args.work, made)
    for checkpoint in made:
        shutil.rmtree(checkpoint)
    measured = run(wanted, args.work, args.new_tokens)
    try:
        found = left_out_of(measured)
    except ProfileError as error:  # --only left too few
        print(error, file=sys.stderr)
        return 1
    put_out(report_of(measured, found), show, as_json=args.json)
    if args.store:
        write_atomically(ROOT / "profiles" / "fit" / FILE, [measured.to_json().encode()], private=False)
    return 0 if all(met(one) for one in found) else 1


# --- Bundles ----------------------------------------------------------------------------------------------------------


def make(name: str, work: Path, made: list[Path]) -> None:
    """Export a bundle, unless it is there. made: gets the checkpoint, if there was none."""
    folder = work / "bundles" / name
    if is_bundle(folder):
        return
    model, recipe = next((pair.model, pair.recipe) for pair in PAIRS if pair.bundle == name)
    source = find_checkpoint() if model == DEMO else checkpoint_of(model, work, made)
    folder.parent.mkdir(parents=True, exist_ok=True)
    print(f"exporting {name}", file=sys.stderr)
    export(source, folder, recipe, format="both")


def checkpoint_of(model: str, work: Path, made: list[Path]) -> Path:
    """A checkpoint of random weights. One that is there already is taken, and stays."""
    folder = work / "checkpoints" / model
    if not folder.exists():
        member, layers = MODELS[model]
        folder.parent.mkdir(parents=True, exist_ok=True)
        print(f"making {model}", file=sys.stderr)
        write_checkpoint(folder, with_layers(MEMBERS[member], layers))
        made.append(folder)
    return folder


# --- Measuring --------------------------------------------------------------------------------------------------------


def run(wanted: list[Wanted], work: Path, new_tokens: int) -> Measured:
    """Measure what is not in the folder yet."""
    load = os.getloadavg()[0]
    before = measured_bandwidth().all_cores_gbs
    pairs = []
    for pair in wanted:
        file = work / "pairs" / f"{pair.name}.json"
        if file.exists():
            print(f"{pair.name}: measured before, in {file}", file=sys.stderr)
            pairs.append(MeasuredPair(**json.loads(file.read_text(encoding="utf-8"))))
            continue
        found = measured_pair(pair, work / "bundles" / pair.bundle, new_tokens)
        after = measured_bandwidth().all_cores_gbs
        pairs.append(replace(found, bandwidth_gbs=round((before + after) / 2, 1)))
        before = after
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, [json.dumps(asdict(pairs[-1])).encode()], private=False)
    about = about_machine(("edgeglm", "openvino", "onnxruntime"))
    return Measured(
        machine=about["machine"],
        cores=physical_cores() or logical_processors(),
        bandwidth_gbs=statistics.median(pair.bandwidth_gbs for pair in pairs),
        load_before=round(load, 2),
        date=time.strftime("%Y-%m-%d"),
        versions=about["versions"],
        pairs=tuple(pairs),
    )


def measure(job: fit_worker.Job) -> dict[str, Any]:  # Any: figures, and the words of a few settings
    """Run one fresh process, and watch what it takes. Raises SystemExit with what it said when it fails."""
    command = [sys.executable, fit_worker.__file__, json.dumps(asdict(job))]
    environment = os.environ | {"ORT_DISABLE_TELEMETRY": "1"}  # ONNX Runtime's packages report to a server otherwise
    peak = 0
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=log)
        try:
            while process.poll() is None:
                # Shared memory is where onnx's cache is; neither can be dropped.
                peak = max(peak, sum(status_kb(process.pid, key) for key in ("RssAnon", "RssShmem")))
                time.sleep(SAMPLE_S)
        finally:
            process.kill()  # does nothing if it has ended
            process.wait()
        if process.returncode:
            sys.exit(f"{' '.join(command)}: exit {process.returncode}: {last_line(log)}")
        return {**json.loads(last_line(output)), "peak_bytes": peak * 1024}


def measured_pair(pair: Wanted, folder: Path, new_tokens: int) -> MeasuredPair:
    cache(folder)
    job = fit_worker.Job(str(folder), pair.engine, pair.prompt_tokens, new_tokens)
    print(f"measuring {pair.name}", file=sys.stderr)
    figures = measure(job)
    manifest = open_bundle(folder).manifest
    spec, tensors = manifest.spec, together(manifest.tensors)
    tokens = pair.prompt_tokens + new_tokens
    needed = footprint(
        spec,
        manifest.weight_bytes,
        engine=pair.engine,
        context_tokens=tokens,
        kv_precision=figures["kv_precision"],
        prefill_chunk=int(figures["prefill_chunk"]),
        tensors=manifest.tensors,
        max_context=int(figures["max_context"]),
        tokenizer_bytes=manifest.files[TOKENIZER].size,
    )
    prompt = operations(spec, pair.prompt_tokens)
    first = figures["ttft_s"] * operations(spec, fit_worker.FIRST_TOKENS) / prompt
    return MeasuredPair(
        model=pair.model,
        engine=pair.engine,
        recipe=pair.recipe,
        kv_precision=figures["kv_precision"],
        context_tokens=tokens,
        bits=manifest.fewest_bits,
        weight_bytes=kept_bytes(tensors, pair.engine),
        packed_bytes=kept_bytes(tensors, pair.engine, 4),
        kv_read_bytes=read_kv(spec, pair.engine, pair.prompt_tokens + new_tokens // 2, figures["kv_precision"]),
        bandwidth_gbs=1.0,  # which is known afterwards
        operations=prompt,
        load_s=figures["load_s"],
        first_token_s=max(figures["first_token_s"] - first, 1e-6),
        ttft_s=figures["ttft_s"],
        decode_tok_s=figures["decode_tok_s"],
        peak_bytes=figures["peak_bytes"],
        resident_bytes=int(figures["peak_rss_bytes"]),
        predicted_peak_bytes=needed.peak,
        predicted_resident_bytes=needed.resident_peak,
    )


# --- What is told -----------------------------------------------------------------------------------------------------


def met(one: LeftOut) -> bool:
    return abs(one.memory_error) <= MEMORY_WITHIN and one.decode_factor <= 1 + DECODE_WITHIN


def report_of(measured: Measured, found: list[LeftOut]) -> dict[str, Any]:
    return {
        "machine": measured.machine,
        "versions": measured.versions,
        "load_before": measured.load_before,
        "bandwidth_gbs": measured.bandwidth_gbs,
        "pairs": list(rows(found)),
        "met": all(met(one) for one in found),
    }


def rows(found: list[LeftOut]) -> Iterator[dict[str, Any]]:
    for one in found:
        pair = one.pair
        yield {
            "model": pair.model,
            "recipe": pair.recipe,
            "engine": pair.engine,
            "context": pair.context_tokens,
            "MB": round(pair.peak_bytes / 1e6),
            "predicted": round(pair.predicted_peak_bytes / 1e6),
            "off": f"{one.memory_error:+.1%}",
            "resident off": f"{one.resident_error:+.1%}",
            "tok/s": round(pair.decode_tok_s, 1),
            "predicted tok/s": round(one.decode_tok_s, 1),
            "tok/s off": f"{one.decode_error:+.1%}",
            "ttft s": round(pair.ttft_s, 2),
            "predicted ttft": round(one.ttft_s, 2),
            "ready s": round(pair.ready_s, 2),
            "predicted ready": round(one.ready_s, 2),
            "met": "yes" if met(one) else "NO",
        }


def show(report: Mapping[str, Any]) -> None:
    show_machine(report)
    print(f"load      {report['load_before']} before\nbandwidth {report['bandwidth_gbs']} GB/s, read by all cores\n")
    show_table(report["pairs"])
    print(
        "met"
        if report["met"]
        else f"MISSED: {MEMORY_WITHIN:.0%} of memory and {DECODE_WITHIN:.0%} of speed are asked for"
    )


if __name__ == "__main__":
    sys.exit(main())
