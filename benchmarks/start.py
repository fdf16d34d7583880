"""Compare how long engines take from the start of a process to the first token of a prompt of 32.

    python benchmarks/start.py BUNDLE [--gguf FILE --llama-server PROGRAM] [--sides edge-onnx,...] [--rounds 5] [--json]

BUNDLE is opened by our engines and by openvino_genai. FILE is a GGUF of the same shapes (make_gguf.py), for llama.cpp's
own server, which is asked over HTTP as soon as it answers; it gets as many threads as there are cores, and does not
warm up. Every measurement is a fresh process with its files in the page cache, as in engines.py, and the order rotates
by round. Printed are seconds, medians with the lowest and the highest, and the median of the rounds' own ratios to the
first side. The machine has to be idle.
"""

from __future__ import annotations

import argparse
import http.client
import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path

import engine_worker
from engine_worker import LLAMA, OPENVINO_GENAI, OURS, EngineFailedError, Job
from engines import cache, check_shapes, measure, prompts
from report import about, show_about, show_table, spread
from serving import llama_version

from edge.commands.console import print_json
from edge.profiles.server_process import free_port
from edge.runtime.bundle import open_bundle
from edge.runtime.errors import EdgeError
from edge.runtime.machine import logical_processors, physical_cores

SIDES = (*OURS, OPENVINO_GENAI, LLAMA)
POLL_S, LONGEST_S = 0.02, 300.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--gguf", type=Path, metavar="FILE")
    parser.add_argument("--llama-server", type=Path, metavar="PROGRAM")
    parser.add_argument("--sides", type=lambda text: text.split(","), default=list(SIDES), metavar="NAME,...")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if strange := set(args.sides) - set(SIDES):
        parser.error(f"--sides names {strange.pop()}; expected {', '.join(SIDES)}")
    try:
        return compare(args)
    except (EdgeError, EngineFailedError) as error:
        print(error, file=sys.stderr)
        return 1


def compare(args: argparse.Namespace) -> int:
    """Raises EngineFailedError, BundleError, and CheckpointError for a GGUF of other shapes."""
    threads = physical_cores() or logical_processors()
    prompt, _ = prompts(args.bundle)
    report = about(args.bundle) | {"rounds": args.rounds, "prompt_tokens": len(prompt)}
    sides: dict[str, tuple[Path, Callable[[], float]]] = {}
    for name in args.sides:
        if name != LLAMA:
            job = Job(str(args.bundle), prompt, [], 1, threads)
            command = [sys.executable, engine_worker.__file__, name, json.dumps(asdict(job))]
            sides[name] = args.bundle, partial(_of_worker, command)
        elif args.gguf is None or args.llama_server is None:
            print(f"{LLAMA} skipped: it needs --gguf and --llama-server", file=sys.stderr)
        else:
            check_shapes(args.gguf, open_bundle(args.bundle).manifest.spec)
            report["versions"]["llama-server"] = llama_version(args.llama_server)
            sides[name] = args.gguf, partial(_of_server, args.llama_server, args.gguf, prompt, threads)
    names = list(sides)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(args.rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            path, side = sides[name]
            cache(path)
            seconds[name].append(side())
    ratios = {
        name: [ours / theirs for ours, theirs in zip(seconds[name], seconds[names[0]], strict=True)] for name in names
    }
    report["seconds"] = {name: {**spread(found), "rounds": found} for name, found in seconds.items()}
    report[f"ratios_to_{names[0]}"] = {name: spread(found) for name, found in ratios.items()}
    if args.json:
        print_json(report)
        return 0
    show_about(report)
    show_table([
        {"side": name, "s": _told(seconds[name]), f"ratio to {names[0]}": _told(ratios[name])} for name in names
    ])  # fmt: skip
    return 0


def _of_worker(command: list[str]) -> float:
    return measure(command)["start_to_first_token_s"]


def _of_server(program: Path, gguf: Path, prompt: list[int], threads: int) -> float:
    """Start llama.cpp's server, and wait for one token. Raises EngineFailedError."""
    port = free_port()
    options = ("-c", 512, "-np", 1, "-t", threads, "-tb", threads, "--cache-ram", 0, "--no-webui", "--no-warmup")
    place = ("--host", "127.0.0.1", "--port", port)
    command = [str(program), "-m", str(gguf), *map(str, (*place, *options))]
    body = json.dumps({"prompt": prompt, "n_predict": 1, "cache_prompt": False, "temperature": 0})
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while time.perf_counter() - started < LONGEST_S:
            if process.poll() is not None:
                raise EngineFailedError(f"{program} ended with {process.returncode}; run it by hand to see why")
            if _status(port, "GET", "/health") == http.client.OK:
                status = _status(port, "POST", "/completion", body)
                if status != http.client.OK:
                    raise EngineFailedError(f"{program} answered with status {status}")
                return time.perf_counter() - started
            time.sleep(POLL_S)
        raise EngineFailedError(f"{program} was not ready after {LONGEST_S:.0f} s")
    finally:
        process.kill()
        process.wait()


def _status(port: int, method: str, path: str, body: str | None = None) -> int:
    """Return the status of an answer that was read whole; 0 while nobody listens."""
    try:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=LONGEST_S)) as connection:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            return answer.status
    except ConnectionError:
        return 0


def _told(found: list[float]) -> str:
    told = spread(found)
    return f"{told['median']:.2f} ({told['low']:.2f} to {told['high']:.2f})"


if __name__ == "__main__":
    sys.exit(main())
