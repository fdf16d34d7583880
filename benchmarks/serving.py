"""Compare `edge serve` with llama.cpp's server and with openvino_genai's continuous batching, under several clients.

    python benchmarks/serving.py BUNDLE [--gguf FILE --llama-server PROGRAM] [--engines auto] [--clients 1,4,8,16]
                                 [--rounds 5] [--prompt-tokens 64] [--new-tokens 64] [--requests 2] [--scaling 3]
                                 [--json]

Every client sends --requests requests or more (all clients together at least 8) one after the other, over HTTP, as
streams: prompts of CPython's documentation as token ids, the same for all servers and never sent twice, greedy answers
of fixed lengths, half to one and a half times --new-tokens, so that clients are at different places of their answers.
One process asks, and servers run in processes of their own: all are loaded at once, and only the one being asked has
work. openvino_genai has no server in Python; it runs in a loop without HTTP, text or other threads, which is to its
advantage. llama.cpp gets one slot for each client, as many threads as there are cores, and no prompt cache to keep; the
others have their defaults.

Same weights: openvino_genai opens BUNDLE itself. FILE is the model that BUNDLE was exported from, or one of the same
shapes (make_gguf.py), in llama.cpp's own 4 bits.

tok/s counts all tokens of all answers, from the first request to the last token. The gap is that between two tokens of
an answer, its 99th percentile that of all answers of a run. Rounds rotate the order of the servers. A ratio is the
median of the rounds' own, with the lowest and the highest, and above 1 when edge is better: its tok/s over the other's,
the other's gap over its own. Targets: 1.0 for each, and for many clients beside one --scaling times the tok/s.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import genai_batching
from report import about, installed, met_text, put_out, ratio_text, show_about, show_table, spread
from texts import text_ids

from edge.profiles.server_process import Server, free_port, serve_command, started
from edge.profiles.serving import Served, Spoken, Task, measure_clients, summed_up
from edge.runtime.bundle import MODEL_XML
from edge.runtime.errors import EdgeError, ProfileError
from edge.runtime.machine import logical_processors, physical_cores

GENAI, LLAMA = "openvino_genai", "llama.cpp"
SPARE_TOKENS = 128  # of a slot's context
FEWEST = 8  # requests of all clients in a run, so that the 99th percentile of one client's gaps is no outlier
SHORTEST, LONGEST = 0.5, 1.5  # answers, of --new-tokens
Tasks = list[list[Task]]  # by client and request
Measure = Callable[[Tasks], Served]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--gguf", type=Path, metavar="FILE")
    parser.add_argument("--llama-server", type=Path, metavar="PROGRAM")
    parser.add_argument("--engines", default="auto", help="of edge, each is a side of its own: auto or onnx,openvino")
    parser.add_argument("--clients", type=counts, default=[1, 4, 8, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--requests", type=int, default=2, help="of each client, at least")
    parser.add_argument("--scaling", type=float, default=3.0, help="target: tok/s of most clients over those of one")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    try:
        report = about(args.bundle)
        with ExitStack() as stack:
            sides = open_sides(args, stack)
            found = measure_rounds(args, sides)
    except EdgeError as error:
        print(error, file=sys.stderr)
        return 1
    if LLAMA in sides:
        report["versions"]["llama-server"] = llama_version(args.llama_server)
    if GENAI in sides:
        report["versions"][GENAI] = f"{installed('openvino-genai')} (in process, without HTTP)"
    names = ("engines", "clients", "rounds", "prompt_tokens", "new_tokens", "requests")
    report["settings"] = {name: getattr(args, name) for name in names}
    report["figures"] = medians(found)
    report["ratios"] = ratios(found)
    report["targets"] = targets(report["ratios"], found, args.scaling)
    put_out(report, show, as_json=args.json)
    return 0


def counts(text: str) -> list[int]:
    return sorted({int(part) for part in text.split(",")})


# --- The sides --------------------------------------------------------------------------------------------------------


def open_sides(args: argparse.Namespace, stack: ExitStack) -> dict[str, Measure]:
    """Start every server that can run here; the others are named on stderr."""
    sides: dict[str, Measure] = {}
    for engine in args.engines.split(","):
        port = free_port()
        server = stack.enter_context(started(serve_command(str(args.bundle), port, "--engine", engine), port))
        sides[f"edge ({engine})"] = over_http(server)
    if args.gguf is None or args.llama_server is None:
        print(f"{LLAMA} skipped: it needs --gguf and --llama-server", file=sys.stderr)
    else:
        port = free_port()
        server = stack.enter_context(started(llama_command(args, port), port))
        sides[LLAMA] = over_http(server)
    if not find_spec("openvino_genai") or not (args.bundle / MODEL_XML).is_file():
        print(f"{GENAI} skipped: it is not installed, or {args.bundle} holds no {MODEL_XML}", file=sys.stderr)
    else:
        sides[GENAI] = stack.enter_context(Genai(args.bundle))
    return sides


def over_http(server: Server) -> Measure:
    return lambda clients: measure_clients(server.address, clients)


def llama_command(args: argparse.Namespace, port: int) -> list[str]:
    slots, threads = max(args.clients), physical_cores() or logical_processors()
    context = slots * (args.prompt_tokens + int(LONGEST * args.new_tokens) + SPARE_TOKENS)
    options = ("-c", context, "-np", slots, "-t", threads, "-tb", threads, "--cache-ram", 0, "--no-webui")
    return [
        str(args.llama_server),
        "-m",
        str(args.gguf),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        *map(str, options),
    ]


def llama_version(program: Path) -> str:
    said = subprocess.run([program, "--version"], check=False, capture_output=True, text=True)
    lines = (said.stdout + said.stderr).splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("version")), "unknown")


class Genai:
    """openvino_genai in its process."""

    def __init__(self, bundle: Path) -> None:
        command = [sys.executable, genai_batching.__file__, str(bundle)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def __enter__(self) -> Measure:
        self.answer()
        return self.measure

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def measure(self, clients: Tasks) -> Served:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(clients) + "\n")
        self.process.stdin.flush()
        answers = [Spoken(sent_at, tuple(times), tokens) for sent_at, times, tokens in self.answer()]
        return summed_up(len(clients), answers)

    def answer(self) -> Any:
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline()):
            raise ProfileError(f"{GENAI} ended; run {genai_batching.__file__} by hand to see why")
        return json.loads(line)


# --- Measuring --------------------------------------------------------------------------------------------------------

Found = dict[tuple[str, int], list[Served]]  # by side and number of clients, then by round


def measure_rounds(args: argparse.Namespace, sides: dict[str, Measure]) -> Found:
    """The first round prepares kernels for every number of rows, and is not counted."""
    names, sizes = list(sides), args.clients
    each = {size: max(args.requests, math.ceil(FEWEST / size)) for size in sizes}
    need = (args.rounds + 1) * sum(size * each[size] for size in sizes)
    ids = text_ids(args.bundle, need * args.prompt_tokens)
    if len(ids) < need * args.prompt_tokens:
        raise ProfileError("the text is too short for this many prompts; ask for fewer or shorter ones")
    prompts = iter([ids[i : i + args.prompt_tokens] for i in range(0, len(ids), args.prompt_tokens)])
    rng = random.Random(0)
    lengths = [round(args.new_tokens * rng.uniform(SHORTEST, LONGEST)) for _ in range(need)]
    tasks = iter(list[Task](zip(prompts, lengths, strict=True)))
    found: Found = {(name, size): [] for name in names for size in sizes}
    for number in range(args.rounds + 1):
        for size in sizes[number % len(sizes) :] + sizes[: number % len(sizes)]:
            clients = [[next(tasks) for _ in range(each[size])] for _ in range(size)]
            for name in names[number % len(names) :] + names[: number % len(names)]:
                served = sides[name](clients)
                print(f"round {number}: {name}, {size} clients: {served.tokens_per_second} tok/s", file=sys.stderr)
                if number:
                    found[name, size].append(served)
    return found


def medians(found: Found) -> list[dict[str, Any]]:
    rows = []
    for (name, size), runs in found.items():
        keys = [key for key in asdict(runs[0]) if key not in ("clients", "tokens")]
        values = {key: round(statistics.median(getattr(run, key) for run in runs), 2) for key in keys}
        rows.append({"server": name, "clients": size, **values})
    return rows


def ratios(found: Found) -> list[dict[str, Any]]:
    """Of each of our engines to each peer, by number of clients."""
    rows = []
    ours = dict.fromkeys(name for name, _ in found if name.startswith("edge"))
    for (peer, size), theirs in found.items():
        for name in () if peer in ours else ours:
            pairs = list(zip(found[name, size], theirs, strict=True))
            rows.append(
                {
                    "server": name,
                    "peer": peer,
                    "clients": size,
                    "tok_s": spread([a.tokens_per_second / b.tokens_per_second for a, b in pairs]),
                    "gap_p99": spread([b.gap_ms_p99 / a.gap_ms_p99 for a, b in pairs]),
                    "ttft_p50": spread([b.ttft_ms_p50 / a.ttft_ms_p50 for a, b in pairs]),
                }
            )
    return rows


def targets(rows: Sequence[dict[str, Any]], found: Found, scaling: float) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = []
    for row in rows:
        for key in ("tok_s", "gap_p99"):
            value = row[key]["median"]
            what = f"{row['server']} beside {row['peer']}, {row['clients']} clients: {key}"
            told.append({"what": what, "target": 1.0, "found": value, "met": value >= 1.0})
    for name in dict.fromkeys(name for name, _ in found if name.startswith("edge")):
        sizes = sorted(size for side, size in found if side == name)
        for size in sizes[1:] if sizes[0] == 1 else ():
            pairs = zip(found[name, size], found[name, 1], strict=True)
            value = spread([many.tokens_per_second / one.tokens_per_second for many, one in pairs])["median"]
            what = f"{name}: tok/s of {size} clients over those of one"
            wanted = scaling if size == sizes[-1] else None
            told.append({"what": what, "target": wanted, "found": value, "met": wanted is None or value >= wanted})
    return told


def show(report: dict[str, Any]) -> None:
    show_about(report)
    show_table(report["figures"])
    show_table(
        [{**row, **{key: ratio_text(row[key]) for key in ("tok_s", "gap_p99", "ttft_p50")}} for row in report["ratios"]]
    )
    show_table([{**row, "met": "" if row["target"] is None else met_text(row["met"])} for row in report["targets"]])


if __name__ == "__main__":
    sys.exit(main())
