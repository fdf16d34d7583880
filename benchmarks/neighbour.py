"""How fast engines write beside programs that keep the processors busy: ours, openvino_genai, and llama.cpp.

    python benchmarks/neighbour.py BUNDLE [--gguf FILE --llama-bench PROGRAM] [--sides edge-onnx,edge-openvino,...]
                                   [--neighbours none,1,2,1-low,2-low] [--rounds 5] [--seconds S] [--new-tokens 12]
                                   [--first] [--json]

A neighbour is a process that never waits and reads no memory. "1-low" is one of the lowest priority (nice 19), "1-own"
one in a session of its own, as a program in another terminal is: Linux may share the processors among sessions first.

All sides are loaded at once, each in a process of its own, and write one after the other in every round and beside
every set of neighbours; the order rotates. Everyone has their defaults, except that llama.cpp (llama-bench on FILE, the
same weights in its own format, a fresh process each time whose loading is not counted) gets as many threads as there
are cores, and, as another side, one thread. Figures are medians of milliseconds a token with their lowest and highest;
the ratios to no neighbour, and to ours on ONNX Runtime, are medians of the rounds' own.

--first: also the seconds from the start of a fresh process to its first token, for ours and openvino_genai.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import engine_worker
import neighbour_worker
from engine_worker import LLAMA, OPENVINO_GENAI, OURS, EngineFailedError, Job
from engines import BASE, PROMPT_TOKENS, VERSIONED, check_shapes, measure, prompts, reasons_to_skip
from report import about_machine, met_text, put_out, ratio_text, show_machine, show_table, spread

LLAMA_ONE = f"{LLAMA}, 1 thread"
SIDES = (*OURS, OPENVINO_GENAI, LLAMA, LLAMA_ONE)
NONE = "none"
MOST_TIMES_SLOWER = 1.5  # ours, beside one neighbour of the same priority
BUSY = "while True: pass"
BUSY_LOW = f"import os; os.nice(19)\n{BUSY}"

Rounds = dict[str, dict[str, list[float]]]  # side -> neighbours -> a figure for each round


@dataclass(frozen=True)
class Neighbours:
    """What runs beside an engine."""

    count: int
    low: bool = False
    own_session: bool = False


def neighbours(name: str) -> Neighbours:
    """Read a name such as "none", "2" or "1-low". Raises ValueError."""
    count, _, kind = "0".partition("-") if name == NONE else name.partition("-")
    if kind not in ("", "low", "own") or not count.isdecimal():
        raise ValueError(f"neighbours are {name!r}, expected {NONE}, a number, or a number with -low or -own")
    return Neighbours(int(count), kind == "low", kind == "own")


@contextmanager
def beside(there: Neighbours) -> Iterator[None]:
    """Let neighbours run meanwhile."""
    with ExitStack() as stack:
        for _ in range(there.count):
            code = BUSY_LOW if there.low else BUSY
            process = subprocess.Popen([sys.executable, "-c", code], start_new_session=there.own_session)
            stack.enter_context(process)  # waits for its end
            stack.callback(process.kill)
        yield


class Writer(Protocol):
    """One side, loaded."""

    def decode_ms(self) -> float: ...

    def close(self) -> None: ...


class Kept:
    """A process that stays loaded. Raises EngineFailedError."""

    def __init__(self, name: str, job: Job) -> None:
        command = [sys.executable, neighbour_worker.__file__, name, json.dumps(asdict(job))]
        environment = os.environ | {"ORT_DISABLE_TELEMETRY": "1"}
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._name = name
        self._answer()

    def decode_ms(self) -> float:
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> float:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            try:
                return float(line)
            except ValueError:  # a library that prints
                continue
        raise EngineFailedError(f"{self._name} ended with {self._process.wait()}; it says why above")


class LlamaBench:
    """llama.cpp's own measurement. Raises EngineFailedError."""

    def __init__(self, program: Path, gguf: Path, threads: int, new_tokens: int) -> None:
        self._command = [str(program), "-m", str(gguf), "-t", str(threads), "-p", "0", "-n", str(new_tokens)]
        self._command += ["-r", "1", "-o", "json"]

    def decode_ms(self) -> float:
        done = subprocess.run(self._command, check=False, capture_output=True, text=True, errors="replace")
        if done.returncode:
            raise EngineFailedError(f"llama-bench failed: {done.stderr[-500:]}")
        return 1000 / float(json.loads(done.stdout)[0]["avg_ts"])

    def close(self) -> None:
        pass


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--gguf", type=Path, metavar="FILE")
    parser.add_argument("--llama-bench", type=Path, metavar="PROGRAM")
    parser.add_argument("--sides", default="", metavar="NAMES", help=f"default: all that can run of {', '.join(SIDES)}")
    parser.add_argument("--neighbours", default="none,1,2,1-low,2-low", metavar="NAMES")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no further round after so many")
    parser.add_argument("--new-tokens", type=int, default=12, help="timed tokens after the first")
    parser.add_argument("--first", action="store_true", help="also start fresh processes")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    from edge.runtime.errors import EdgeError

    try:
        sets = {name: neighbours(name) for name in [NONE, *args.neighbours.split(",")]}
        report = compare(args, sets)
    except (EdgeError, EngineFailedError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    put_out(report, show, as_json=args.json)
    return 0 if all(report["met"].values()) else 1


def compare(args: argparse.Namespace, sets: Mapping[str, Neighbours]) -> dict[str, Any]:
    """Raises BundleError, CheckpointError, EngineFailedError and ValueError."""
    from edge.runtime.bundle import open_bundle

    bundle = open_bundle(args.bundle)
    names = [name for name in SIDES if name in able(args)]
    prompt, _ = prompts(args.bundle)
    job = Job(str(args.bundle), prompt, [], args.new_tokens, cores())
    load, started = os.getloadavg()[0] if hasattr(os, "getloadavg") else None, time.monotonic()
    with ExitStack() as stack:
        writers: dict[str, Writer] = {}
        for name in names:
            writers[name] = opened(name, job, args)
            stack.callback(writers[name].close)
        decode = measured(writers, sets, args.rounds, started + args.seconds)
    first = {name: first_token_s(name, job, sets) for name in names if args.first and not name.startswith(LLAMA)}
    report: dict[str, Any] = {
        **about_machine(VERSIONED),
        **({} if load is None else {"load_before": round(load, 2)}),
        "bundle": {"name": args.bundle.resolve().name, "recipe": bundle.manifest.recipe},
        "settings": {
            "rounds": len(next(iter(decode.values()))[NONE]),
            "prompt_tokens": PROMPT_TOKENS,
            "new_tokens": args.new_tokens,
        },
        "decode_ms": {name: {there: spread(found) for there, found in of.items()} for name, of in decode.items()},
        "times_slower": {name: against(of, of[NONE]) for name, of in decode.items()},
        "rounds": decode,
        "met": met(decode),
    }
    if args.gguf is not None:
        report["settings"] |= {"gguf": args.gguf.name, "llama_threads": cores()}
    if BASE in decode:
        report[f"ratios_to_{BASE}"] = {
            name: {there: spread(paired(of[there], decode[BASE][there])) for there in of}
            for name, of in decode.items()
            if name != BASE
        }
    return report | ({"first_token_s": first} if first else {})


def able(args: argparse.Namespace) -> set[str]:
    """The sides to measure; says why others are not. Raises BundleError, CheckpointError and ValueError."""
    from edge.runtime.bundle import open_bundle

    bundle = open_bundle(args.bundle)
    reasons = {name: why for name, why in reasons_to_skip(bundle, None, None).items() if name != LLAMA}
    if args.gguf is None or args.llama_bench is None:
        reasons |= dict.fromkeys((LLAMA, LLAMA_ONE), "it needs --gguf and --llama-bench")
    else:
        check_shapes(args.gguf, bundle.manifest.spec)
    asked = [name.strip() for name in args.sides.split(",")] if args.sides else list(SIDES)
    if unknown := [name for name in asked if name not in SIDES]:
        raise ValueError(f"--sides has {unknown[0]!r}, expected names among {', '.join(SIDES)}")
    for name in asked:
        if name in reasons:
            print(f"{name} skipped: {reasons[name]}", file=sys.stderr)
    return set(asked) - reasons.keys()


def cores() -> int:
    from edge.runtime.machine import logical_processors, physical_cores

    return physical_cores() or logical_processors()


def opened(name: str, job: Job, args: argparse.Namespace) -> Writer:
    if name.startswith(LLAMA):
        return LlamaBench(args.llama_bench, args.gguf, job.threads if name == LLAMA else 1, job.new_tokens)
    return Kept(name, job)


def measured(writers: Mapping[str, Writer], sets: Mapping[str, Neighbours], rounds: int, end: float) -> Rounds:
    """Milliseconds a token of every side beside all neighbours. end: no round but the first begins after it."""
    found: Rounds = {name: {there: [] for there in sets} for name in writers}
    names = list(writers)
    for number in range(rounds):
        if number and time.monotonic() > end:
            break
        first = number % len(names)
        for there, who in sets.items():
            with beside(who):
                for name in names[first:] + names[:first]:
                    found[name][there].append(writers[name].decode_ms())
    return found


def first_token_s(name: str, job: Job, sets: Mapping[str, Neighbours]) -> dict[str, float]:
    """Seconds from a process's start to its first token, beside each set of neighbours; one process each."""
    command = [sys.executable, engine_worker.__file__, name, json.dumps(asdict(job))]
    found = {}
    for there, who in sets.items():
        with beside(who):
            found[there] = round(measure(command)["start_to_first_token_s"], 2)
    return found


def paired(theirs: Sequence[float], base: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(theirs, base, strict=True)]


def against(found: Mapping[str, list[float]], base: list[float]) -> dict[str, dict[str, float]]:
    return {there: spread(paired(ms, base)) for there, ms in found.items() if there != NONE}


def met(decode: Rounds) -> dict[str, bool]:
    """What has to hold beside one neighbour of the same priority; nothing, if that was not measured."""
    found = {}
    for name in OURS.keys() & decode.keys():
        if "1" not in decode[name]:
            continue
        slower = statistics.median(paired(decode[name]["1"], decode[name][NONE]))
        found[f"{name} at most {MOST_TIMES_SLOWER} times slower beside one"] = slower <= MOST_TIMES_SLOWER
        for peer in decode.keys() - OURS.keys():
            ahead = statistics.median(paired(decode[peer]["1"], decode[name]["1"])) > 1
            found[f"{name} faster than {peer} beside one"] = ahead
    return dict(sorted(found.items()))


def show(report: dict[str, Any]) -> None:
    show_machine(report)
    bundle = report["bundle"]
    print(f"load      {report.get('load_before', 'unknown')} before\nbundle    {bundle['name']}: {bundle['recipe']}\n")
    for title, of in (
        ("ms a token", "decode_ms"),
        ("times slower", "times_slower"),
        ("first token, s", "first_token_s"),
    ):
        rows = [
            {
                title: name,
                **{there: ratio_text(value) if isinstance(value, dict) else value for there, value in row.items()},
            }
            for name, row in report.get(of, {}).items()
        ]
        show_table(rows)
    for what, is_met in report["met"].items():
        print(f"{what}: {met_text(is_met)}")


if __name__ == "__main__":
    sys.exit(main())
