"""Compare engines on one model: ours over ONNX Runtime and over OpenVINO, openvino_genai, onnxruntime_genai, llama.cpp.

    python benchmarks/engines.py BUNDLE [--gguf FILE] [--llama-python PYTHON] [--rounds 5] [--new-tokens 32] [--long]
                                 [--json]

All but llama.cpp open BUNDLE. FILE is the same model, or one of the same shapes (make_gguf.py), for llama.cpp, which
runs under a Python that has llama_cpp. A peer that is not installed, or has no file to open, is skipped.

Every measurement is a fresh process: it loads, reads a prompt of 32 random ids, which are the same for all engines and
rounds, and writes greedily whatever the tokens are; with --long it then reads a prompt of 512 other ids, its first of
that length. Every engine runs with its defaults, except that llama.cpp gets as many threads as there are cores, as its
own programs do. The order rotates by round. The figures are medians over the rounds; the report has their spreads, the
distance of the farthest round from the median, and all rounds. The ratios, of each engine to our ONNX Runtime, are
medians of the rounds' own ratios. The machine has to be idle: other load does not slow down all engines equally. Next
to one busy process of low priority on two cores, llama.cpp decoded 135M parameters at 5 tok/s with two threads and at
43 with one. The report contains the load.

start_to_first_token_s is from the start of the process, imports included, with the model's files in the page cache.
peak_anonymous_gb is memory that the process allocated and the kernel cannot drop: the largest RssAnon among samples
20 ms apart, so a shorter peak may be missed. peak_rss_gb counts mapped files as well; it is the kernel's own record
(VmHWM), which misses nothing. Both come from /proc and are measured on Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import engine_worker
from engine_worker import (
    LLAMA,
    ON_LINUX,
    ONNXRUNTIME_GENAI,
    OPENERS,
    OPENVINO_GENAI,
    OURS,
    EngineFailedError,
    Figures,
    Job,
    status_kb,
)

if TYPE_CHECKING:
    from edge.runtime.bundle import Bundle
    from edge.runtime.spec import ModelSpec

BASE = "edge-onnx"
GENAI_CONFIG = "genai_config.json"  # without which onnxruntime_genai does not open a folder
VERSIONED = ("edgeglm", "onnxruntime", "openvino", "openvino-genai", "onnxruntime-genai")
LLAMA_VERSION = "from importlib.metadata import version; print(version('llama-cpp-python'))"
PROMPT_TOKENS, LONG_PROMPT_TOKENS = 32, 512
SAMPLE_S = 0.02


@dataclass(frozen=True)
class Side:
    """One engine and how it is run here."""

    path: Path  # what it opens
    command: list[str]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--gguf", type=Path, metavar="FILE")
    parser.add_argument("--llama-python", default=sys.executable, metavar="PYTHON", help="default: this one")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=32, help="timed tokens after the first")
    parser.add_argument("--long", action="store_true", help=f"also read a prompt of {LONG_PROMPT_TOKENS} tokens")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    from edge.runtime.errors import EdgeError

    try:
        return compare(args)
    except EdgeError as error:
        print(error, file=sys.stderr)
        return 1


def compare(args: argparse.Namespace) -> int:
    """Raises BundleError, and CheckpointError for a GGUF of other shapes."""
    from report import about_machine

    from edge.runtime.bundle import open_bundle
    from edge.runtime.machine import logical_processors, physical_cores

    bundle = open_bundle(args.bundle)
    llama = llama_version(args.llama_python)
    skipped = reasons_to_skip(bundle, args.gguf, llama)
    for name, reason in skipped.items():
        print(f"{name} skipped: {reason}", file=sys.stderr)
    if LLAMA not in skipped:
        check_shapes(args.gguf, bundle.manifest.spec)
    if not ON_LINUX:
        print("memory is not measured: that takes Linux's /proc", file=sys.stderr)
    threads, load = physical_cores() or logical_processors(), os.getloadavg()[0] if ON_LINUX else None
    prompt, long_prompt = prompts(args.bundle)
    sides = {}
    for name in (name for name in OPENERS if name not in skipped):
        python, path = (args.llama_python, args.gguf) if name == LLAMA else (sys.executable, args.bundle)
        job = Job(str(path), prompt, long_prompt if args.long else [], args.new_tokens, threads)
        sides[name] = Side(path, [python, engine_worker.__file__, name, json.dumps(asdict(job))])
    figures, errors = measure_rounds(sides, args.rounds)
    report: dict[str, Any] = {
        **about_machine(VERSIONED),
        **({"load_before": round(load, 2)} if load is not None else {}),  # running processes, mean of a minute
        "bundle": {"name": args.bundle.resolve().name, "recipe": bundle.manifest.recipe},
        "settings": {
            "rounds": args.rounds,
            "prompt_tokens": PROMPT_TOKENS,
            "new_tokens": args.new_tokens,
            **({"long_prompt_tokens": LONG_PROMPT_TOKENS} if args.long else {}),
        },
        "engines": {name: {"error": errors[name]} if name in errors else medians(figures[name]) for name in sides},
        "spreads": {name: spreads(figures[name]) for name in sides if name not in errors},
        "rounds": {name: figures[name] for name in sides if name not in errors},
    }
    if LLAMA in sides:
        report["versions"]["llama-cpp-python"] = llama
        report["settings"] |= {"gguf": args.gguf.name, "llama_threads": threads}
    if BASE in sides and BASE not in errors:
        others = [name for name in sides if name not in errors and name != BASE]
        report[f"ratios_to_{BASE}"] = {name: ratios(figures[name], figures[BASE]) for name in others}
    print(json.dumps(report, indent=None if args.json else 1))
    return 1 if errors.keys() & OURS.keys() else 0


# --- What there is to compare -----------------------------------------------------------------------------------------


def llama_version(python: str) -> str | None:
    """The version of llama-cpp-python in another Python; None if it has none."""
    try:
        found = subprocess.run([python, "-c", LLAMA_VERSION], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def reasons_to_skip(bundle: Bundle, gguf: Path | None, llama: str | None) -> dict[str, str]:
    """Engine -> why it cannot run, for those that cannot. Raises BundleError and DeviceError if ours cannot."""
    from edge.runtime.bundle import MODEL_XML
    from edge.runtime.engines.choice import engines_for

    folder, able = bundle.path, engines_for(bundle, "CPU")
    reasons = {
        name: f"{folder} holds nothing for it, or its package is not installed"
        for name, engine in OURS.items()
        if engine not in able
    }
    if not find_spec("openvino_genai"):
        reasons[OPENVINO_GENAI] = "openvino-genai is not installed"
    elif not (folder / MODEL_XML).is_file():
        reasons[OPENVINO_GENAI] = f"{folder} holds no {MODEL_XML}"
    if not find_spec("onnxruntime_genai"):
        reasons[ONNXRUNTIME_GENAI] = "onnxruntime-genai is not installed"
    elif not (folder / GENAI_CONFIG).is_file():
        reasons[ONNXRUNTIME_GENAI] = f"{folder} holds no {GENAI_CONFIG}"
    if gguf is None or not gguf.is_file():
        reasons[LLAMA] = "no --gguf given" if gguf is None else f"{gguf}: no such file"
    elif llama is None:
        reasons[LLAMA] = "llama-cpp-python is not installed; --llama-python names a Python that has it"
    return reasons


def check_shapes(gguf: Path, spec: ModelSpec) -> None:
    """Raises CheckpointError if a GGUF does not have the bundle's shapes."""
    from edge.export.architectures.registry import describe
    from edge.export.checkpoint.checkpoint import open_checkpoint
    from edge.runtime.errors import CheckpointError

    other, _ = describe(open_checkpoint(gguf))
    counts = ("num_layers", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads", "head_dim", "vocab_size")
    for name in counts:
        if (theirs := getattr(other, name)) != (ours := getattr(spec, name)):
            raise CheckpointError(f"{gguf}: {name} is {theirs}, the bundle's is {ours}; give a GGUF of the same shapes")


def prompts(folder: Path) -> tuple[list[int], list[int]]:
    """A short and a long prompt, of ids that the bundle's tokenizer knows."""
    import numpy as np

    from edge.runtime.bundle import TOKENIZER
    from edge.runtime.tokenizer import Tokenizer

    rng, num_tokens = np.random.default_rng(0), Tokenizer(folder / TOKENIZER).num_tokens
    short, long = (rng.integers(0, num_tokens, count).tolist() for count in (PROMPT_TOKENS, LONG_PROMPT_TOKENS))
    return short, long


# --- Measuring --------------------------------------------------------------------------------------------------------


def measure_rounds(sides: Mapping[str, Side], rounds: int) -> tuple[dict[str, list[Figures]], dict[str, str]]:
    """The figures of each engine by round, and why an engine failed; one that failed is not run again."""
    figures: dict[str, list[Figures]] = {name: [] for name in sides}
    errors: dict[str, str] = {}
    names = list(sides)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            if name not in errors:
                cache(sides[name].path)
                try:
                    figures[name].append(measure(sides[name].command))
                except EngineFailedError as error:
                    errors[name] = str(error)
    return figures, errors


def cache(path: Path) -> None:
    """Read a file, or the files of a folder, so that they are in the page cache: the disk is not to be measured."""
    for file in [path] if path.is_file() else sorted(path.iterdir()):
        with file.open("rb", buffering=0) as stream:
            while stream.read(1 << 24):
                pass


def measure(command: list[str]) -> Figures:
    """Run one fresh process. Raises EngineFailedError."""
    environment = os.environ | {"ORT_DISABLE_TELEMETRY": "1"}  # ONNX Runtime's packages report to a server otherwise
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as log:
        started = time.time()
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=log)
        peak_anonymous_kb = 0
        try:
            while process.poll() is None:
                if ON_LINUX:
                    peak_anonymous_kb = max(peak_anonymous_kb, status_kb(process.pid, "RssAnon"))
                time.sleep(SAMPLE_S)
        finally:
            process.kill()  # does nothing if it has ended
            process.wait()
        if process.returncode:
            raise EngineFailedError(f"exit {process.returncode}: {last_line(log) or 'nothing printed'}")
        found: Figures = json.loads(last_line(output))
    figures = {"start_to_first_token_s": found.pop("first_token_at") - started, **found}
    return figures | ({"peak_anonymous_gb": peak_anonymous_kb * 1024 / 1e9} if ON_LINUX else {})


def last_line(file: IO[bytes]) -> str:
    file.seek(0)
    lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def medians(rounds: list[Figures]) -> Figures:
    """The median of each figure over the rounds."""
    return {key: round(statistics.median(figures[key] for figures in rounds), 3) for key in rounds[0]}


def spreads(rounds: list[Figures]) -> dict[str, float | None]:
    """How far the farthest round is from the median of each figure, as `edge bench` has it; None for one round."""
    from edge.profiles.spread import spread

    apart = {key: spread([figures[key] for figures in rounds]) for key in rounds[0]}
    return {key: None if found is None else round(found, 3) for key, found in apart.items()}


def ratios(theirs: list[Figures], base: list[Figures]) -> Figures:
    """For each figure, the median of the rounds' own ratios, theirs to the base's."""
    pairs = list(zip(theirs, base, strict=True))
    return {key: round(statistics.median(a[key] / b[key] for a, b in pairs), 3) for key in theirs[0]}


if __name__ == "__main__":
    sys.exit(main())
