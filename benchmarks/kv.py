"""What the KV cache costs and saves: its own time, prefix files, memory of long contexts, and what it does to results.

    python benchmarks/kv.py BUNDLE [--part overhead|snapshot|margins]... [--engine openvino|onnx|both] [--rounds 3]
                            [--json]
    python benchmarks/kv.py BUNDLE --part long [--long-tokens 100000]

Without --part, all run but `long`, which makes a model of its own and takes some minutes.

overhead  The time of a decode step that is neither the engine's inference nor the choice of a token and its text
          (`Request.accept`): scheduler, block tables, prefix cache, and setting the engine's inputs. "a step" is the
          median over the decode steps of answers of 128 tokens after 512, one a round, "of TPOT" its share of the
          whole step; "engine" is the part of it inside Engine.decode, around the inference. "an answer" is what each
          answer takes once: looking its prompt up, and keeping it when it has ended. Targets: below 2 % at the widths
          of a 9B model, below 10 % on a smaller one. In a model cut to fewer layers the share is larger than in the
          whole model.

snapshot  A prefix of 2,000 tokens and 16 more: time to the first token by computing all of it, against opening the
          file, checking its sha256, copying it into the cache and computing the rest. Both use a warm engine in one
          process, in turn, with the prefix cache cleared and the file in the page cache; the ratios are paired. Target:
          20. "process" is one `edge run` each way, from start to end, including the model's load. "save" writes a
          prefix that is in the cache already.

long      Memory of 100,000 tokens in a model of four small layers that is made for this, in fresh processes: the
          largest resident memory (VmHWM) and the anonymous memory at the end, against weights, keys and values by
          Engine.kv_bytes_per_token, and 1 GB. Targets: no more than that, and u4 at most 0.6 of u8's bytes.

margins   How far results may differ when the same is computed in different ways: the largest difference of a logit, and
          how many greedy choices change, over 2 x 200 tokens of text (CPython's documentation), each given to both
          ways whatever they would choose. What is bit-equal differs by 0: with a reproducible engine that holds for
          rows, sequences and chunks, unless the cache's tokens depend on each other, as in u8 and u4. "answer from
          decode steps, read" compares a follow-up to an answer whose keys and values are kept from its decode steps
          with a follow-up to the same ids read as a prompt; OpenVINO's attention rounds these two differently anyway.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from engines import status_kb
from report import about, met_text, put_out, ratio_text, show_about, show_table, spread

import edge
from edge.runtime.bundle import TOKENIZER, open_bundle
from edge.runtime.engines.choice import open_engine
from edge.runtime.engines.engine import Engine, Step
from edge.runtime.errors import EdgeError
from edge.runtime.kv.pool import CacheSequence
from edge.runtime.settings import CachePrecision, EngineSettings
from edge.runtime.tokenizer import Tokenizer

PARTS = ("overhead", "snapshot", "margins", "long")
MAX_CONTEXT = 4096
WORKER = "--worker"
Ids = npt.NDArray[np.int64]

# --- overhead
PROMPT, NEW = 512, 128  # tokens
WIDE = 4096  # hidden size from which a model counts as having 9B shapes
SHARES = {True: 0.02, False: 0.10}  # wide -> largest share of TPOT

# --- snapshot
PREFIX, MESSAGE = 2000, 16  # tokens
MIN_GAIN = 20.0

# --- long
LONG_TOKENS, LONG_POSITIONS = 100_000, 131_072
LONG_RUNS = (("openvino", "u8"), ("openvino", "u4"), ("openvino", "f16"), ("onnx", "f16"), ("onnx", "f32"))
SPARE_BYTES = 1e9
MAX_U4 = 0.6  # bytes of u4 over those of u8

# --- margins
READ, DECODED, TEXTS = 64, 200, 2  # tokens, tokens, texts
DRAFTED = 7  # tokens after the one that a step has anyway
CHUNKS = (512, 16)
TOGETHER = 8  # sequences
ROUNDED: dict[str, tuple[CachePrecision, ...]] = {"openvino": ("u8", "u4"), "onnx": ("f16",)}  # caches by engine


def main() -> int:
    if sys.argv[1:2] == [WORKER]:
        print(json.dumps(read_long(**json.loads(sys.argv[2]))))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--engine", choices=("openvino", "onnx", "both"), default="both")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--long-tokens", type=int, default=LONG_TOKENS)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    engines: list[str] = ["openvino", "onnx"] if args.engine == "both" else [args.engine]
    try:
        report = about(args.bundle)
        for part in args.part or PARTS[:3]:
            if part == "long":
                report[part] = long(engines, args.long_tokens)
            elif part == "margins":
                report[part] = [row for engine in engines for row in margins(args.bundle, engine)]
            else:
                measure = overhead if part == "overhead" else snapshot
                report[part] = [row for engine in engines for row in measure(args.bundle, engine, args.rounds)]
    except EdgeError as error:
        print(error, file=sys.stderr)
        return 1
    put_out(report, show, as_json=args.json)
    return 0


# --- overhead: what is neither inference nor choosing -----------------------------------------------------------------


class Timed:
    """Replaces a method of one object and adds up its time."""

    def __init__(self, owner: Any, name: str) -> None:
        self.seconds = 0.0
        self._method: Callable[..., Any] = getattr(owner, name)
        setattr(owner, name, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return self._method(*args, **kwargs)
        finally:
            self.seconds += time.perf_counter() - started


class StepTimes(NamedTuple):
    """Seconds of one decode step."""

    whole: float
    decode: float  # Engine.decode, inference included
    inference: float
    accept: float

    @property
    def cache(self) -> float:
        return self.whole - self.inference - self.accept

    @property
    def engine(self) -> float:
        return self.decode - self.inference


def overhead(folder: Path, engine: str, rounds: int) -> list[dict[str, Any]]:
    llm = edge.load(folder, engine=engine, max_context=MAX_CONTEXT)
    scheduler, spec = llm._scheduler, llm.bundle.manifest.spec
    parts = {"decode": Timed(llm.engine, "decode"), "inference": Timed(llm.engine, "_run")}
    once = {name: Timed(scheduler._admission, name) for name in ("admit", "forget")}
    rng, steps, answers = np.random.default_rng(0), [], []
    for number in range(rounds + 1):
        llm.clear_cache()
        before = sum(timed.seconds for timed in once.values())
        prompt = rng.integers(0, llm.tokenizer.num_tokens, PROMPT).tolist()
        stream = llm.generate(prompt, max_new_tokens=NEW, ignore_stop_ids=True)
        request = stream._request
        parts["accept"] = Timed(request, "accept")
        while not request.answer_ids:
            scheduler.step()
        found = []
        while not request.finished:
            started = {name: timed.seconds for name, timed in parts.items()}
            begun = time.perf_counter()
            scheduler.step()
            whole = time.perf_counter() - begun
            found.append(StepTimes(whole, **{name: t.seconds - started[name] for name, t in parts.items()}))
        if number:  # the first prepares kernels
            steps += found[:-1]  # the last also keeps the answer
            answers.append(sum(timed.seconds for timed in once.values()) - before)
    step_us = {
        "step": statistics.median(s.cache for s in steps) * 1e6,
        "engine": statistics.median(s.engine for s in steps) * 1e6,
        "choice": statistics.median(s.accept for s in steps) * 1e6,
    }
    tpot_us = statistics.median(s.whole for s in steps) * 1e6
    target = SHARES[spec.hidden_size >= WIDE]
    share = statistics.median(s.cache / s.whole for s in steps)
    return [
        {
            "engine": engine,
            "tpot_ms": round(tpot_us / 1000, 3),
            "step_us": round(step_us["step"], 1),
            "of_it_engine_us": round(step_us["engine"], 1),
            "choice_us": round(step_us["choice"], 1),
            "answer_us": round(statistics.median(answers) * 1e6, 1),
            "share": round(share, 5),
            "target": target,
            "met": share < target,
        }
    ]


# --- snapshot: a prefix from a file -----------------------------------------------------------------------------------


def snapshot(folder: Path, engine: str, rounds: int) -> list[dict[str, Any]]:
    ids = text_ids(folder, PREFIX + MESSAGE)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "bench.prefix"
        llm = edge.load(folder, engine=engine, max_context=MAX_CONTEXT)
        llm.prefixes.save(ids[:PREFIX], path)  # computes it
        started = time.perf_counter()
        llm.prefixes.save(ids[:PREFIX], path)
        save_s = time.perf_counter() - started
        pairs = []
        for number in range(rounds + 1):
            ways: list[Path | None] = [None, path] if number % 2 else [path, None]
            found = {way is not None: first_token(llm, ids, way) for way in ways}
            pairs.append((found[False], found[True]))
        del llm, pairs[0]  # the first pair prepares kernels
        gc.collect()
        processes = {
            name: process_start(folder, engine, ids, prefix) for name, prefix in (("without", None), ("with", path))
        }
        size = path.stat().st_size
    gain = spread([computed[0] / read[0] for computed, read in pairs])
    return [
        {
            "engine": engine,
            "computed_ms": round(statistics.median(computed[0] for computed, _ in pairs), 1),
            "from_file_ms": round(statistics.median(read[0] for _, read in pairs), 1),
            "of_it_open_ms": round(statistics.median(read[1] for _, read in pairs), 1),
            "gain": gain,
            "same_first_token": sum(computed[2] == read[2] for computed, read in pairs),
            "rounds": rounds,
            "file_bytes": size,
            "save_s": round(save_s, 3),
            "processes": processes,
            "target": MIN_GAIN,
            "met": gain["median"] >= MIN_GAIN,
        }
    ]


def first_token(llm: edge.LLM, ids: list[int], path: Path | None) -> tuple[float, float, int]:
    """Milliseconds to the first token, of them those to open the file, and the token."""
    llm.clear_cache()
    llm._scheduler.snapshots.clear()
    started = time.perf_counter()
    if path is not None:
        llm.prefixes.load(path)
    opened = time.perf_counter()
    [chunk] = [chunk for chunk in llm.generate(ids, max_new_tokens=1, ignore_stop_ids=True) if chunk.token_ids]
    ended = time.perf_counter()
    return 1000 * (ended - started), 1000 * (opened - started), chunk.token_ids[0]


def process_start(folder: Path, engine: str, ids: list[int], prefix: Path | None) -> dict[str, Any]:
    """One `edge run`."""
    text = tokenizer_of(folder).decode(ids)
    command = [sys.executable, "-m", "edge", "run", str(folder), text, "--raw", "--json", "--max-new-tokens", "1"]
    command += ["--engine", engine, "--max-context", str(MAX_CONTEXT)]
    command += [] if prefix is None else ["--prefix", str(prefix)]
    started = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, found = time.perf_counter() - started, json.loads(done.stdout)
    return {"s": round(seconds, 2), "load_s": found["load_s"], "cached_tokens": found["cached_tokens"]}


def tokenizer_of(folder: Path) -> Tokenizer:
    path = open_bundle(folder).file(TOKENIZER)
    assert path is not None
    return Tokenizer(path)


def text_ids(folder: Path, count: int, skipped: int = 0) -> list[int]:
    """Ids of CPython's documentation."""
    text = "\n".join(topics[name] for name in sorted(topics))
    return tokenizer_of(folder).encode(text[: 8 * (skipped + count)])[skipped : skipped + count]


# --- long: memory of a long context -----------------------------------------------------------------------------------


def long(engines: list[str], tokens: int) -> list[dict[str, Any]]:
    """A row for each engine and cache. The model: four layers of two heads of 128 each, and a vocabulary of bytes."""
    from make_checkpoint import GLM_9B, write_checkpoint

    from edge.export.pipeline import export

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint, folder = Path(scratch) / "checkpoint", Path(scratch) / "bundle"
        shapes = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4, "vocab_size": 320}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 128}
        write_checkpoint(checkpoint, {**GLM_9B, **shapes, **heads, "max_position_embeddings": LONG_POSITIONS})
        export(checkpoint, folder, "int8-asym", format="both")
        weights = sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".bin", ".data"))
        for engine, precision in LONG_RUNS:
            if engine not in engines:
                continue
            job = {"folder": str(folder), "engine": engine, "precision": precision, "tokens": tokens}
            command = [sys.executable, __file__, WORKER, json.dumps(job)]
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            if done.returncode:
                rows.append({"engine": engine, "cache": precision, "error": done.stderr.strip().splitlines()[-1]})
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            allowed = weights + found["kv_bytes_per_token"] * tokens + SPARE_BYTES
            rows.append(
                {
                    "engine": engine,
                    "cache": precision,
                    "seconds": round(found["seconds"], 1),
                    "kv_bytes_per_token": found["kv_bytes_per_token"],
                    "kv_gb": round(found["kv_bytes_per_token"] * tokens / 1e9, 3),
                    "weights_gb": round(weights / 1e9, 3),
                    "before_gb": round(found["before"] / 1e9, 3),
                    "peak_gb": round(found["peak"] / 1e9, 3),
                    "anonymous_gb": round(found["anonymous"] / 1e9, 3),
                    "allowed_gb": round(allowed / 1e9, 3),
                    "met": found["peak"] <= allowed,
                }
            )
    return rows


def read_long(folder: str, engine: str, precision: CachePrecision, tokens: int) -> dict[str, Any]:
    """Run in a process of its own: load, read `tokens` random ids, answer two tokens; returns bytes of memory."""
    llm = edge.load(folder, engine=engine, kv_precision=precision, max_context=tokens + 64)
    prompt = np.random.default_rng(0).integers(0, llm.tokenizer.num_tokens, tokens).tolist()
    before = status_kb("self", "RssAnon") * 1024
    started = time.perf_counter()
    llm.generate(prompt, max_new_tokens=2, ignore_stop_ids=True).answer()
    return {
        "seconds": time.perf_counter() - started,
        "kv_bytes_per_token": llm.engine.info.kv_bytes_per_token,
        "before": before,
        "peak": status_kb("self", "VmHWM") * 1024,
        "anonymous": status_kb("self", "RssAnon") * 1024,
    }


# --- margins: the same computed in another way ------------------------------------------------------------------------

Logits = npt.NDArray[np.float32]


class Way(NamedTuple):
    """How a text is computed: what is read at once, what a step takes, what came from decode steps before."""

    chunk: int = CHUNKS[0]  # tokens of a forward
    rows: int = 1  # tokens of a decode step
    together: int = 1  # sequences of a decode step, the others of other text
    decoded_before: int = 0  # tokens of the beginning that come from decode steps


def margins(folder: Path, engine: str) -> list[dict[str, Any]]:
    """Rows: what is compared, under which setting, and how far the two differ."""
    rows: list[dict[str, Any]] = []
    for reproducible in (True, False):
        with engine_of(folder, engine, reproducible) as one:
            rows += compare(
                one,
                folder,
                {
                    f"1 row, {1 + DRAFTED} rows": (Way(), Way(rows=1 + DRAFTED)),
                    f"alone, {TOGETHER} together": (Way(), Way(together=TOGETHER)),
                    "answer from decode steps, read": (Way(decoded_before=DECODED), Way()),
                    f"read {CHUNKS[0]}, {CHUNKS[1]} at once": (Way(), Way(chunk=CHUNKS[1])),
                },
                engine,
                reproducible,
            )
    for precision in ROUNDED[engine]:
        with engine_of(folder, engine, True, precision) as one:
            rows += compare(
                one,
                folder,
                {
                    f"1 row, {1 + DRAFTED} rows": (Way(), Way(rows=1 + DRAFTED)),
                    "answer from decode steps, read": (Way(decoded_before=DECODED), Way()),
                    f"read {CHUNKS[0]}, {CHUNKS[1]} at once": (Way(), Way(chunk=CHUNKS[1])),
                },
                engine,
                True,
            )
    return rows


@contextmanager
def engine_of(folder: Path, name: str, reproducible: bool, precision: CachePrecision | None = None) -> Iterator[Engine]:
    settings = EngineSettings(engine=name, reproducible=reproducible, kv_precision=precision, max_context=1024)
    engine = open_engine(open_bundle(folder), settings)
    yield engine
    del engine
    gc.collect()


def compare(
    engine: Engine, folder: Path, ways: dict[str, tuple[Way, Way]], name: str, reproducible: bool
) -> list[dict[str, Any]]:
    total = READ + 2 * DECODED
    texts = [np.array(text_ids(folder, total, 3 * i * total), np.int64) for i in range(TEXTS + TOGETHER - 1)]
    known: dict[tuple[int, Way], Logits] = {}

    def logits(index: int, way: Way) -> Logits:
        if way != Way():
            return follow(engine, texts[index], texts[TEXTS:], way)
        if (index, way) not in known:
            known[index, way] = follow(engine, texts[index], texts[TEXTS:], way)
        return known[index, way]

    rows = []
    for what, (one, other) in ways.items():
        largest, changed = 0.0, 0
        for index in range(TEXTS):
            a, b = logits(index, one), logits(index, other)
            largest = max(largest, float(np.abs(a - b).max()))
            changed += int((a.argmax(-1) != b.argmax(-1)).sum())
        rows.append(
            {
                "engine": name,
                "cache": engine.identity["kv precision"],
                "reproducible": reproducible,
                "what": what,
                "largest_difference": largest,
                "changed_choices": changed,
                "of": TEXTS * DECODED,
            }
        )
    return rows


def follow(engine: Engine, ids: Ids, others: list[Ids], way: Way) -> Logits:
    """Logits (DECODED, vocab) for a text's last tokens, each given those before it.

    READ + DECODED tokens come first: as a prompt, or the latter from decode steps like those of an earlier answer.
    """
    running = [ids, *others[: way.together - 1]]
    sequences = [CacheSequence(engine.pool) for _ in running]
    beginning = READ + DECODED - way.decoded_before
    for text, sequence in zip(running, sequences, strict=True):
        for start in range(0, beginning, way.chunk):
            part = text[start : min(start + way.chunk, beginning)]
            engine.forward(part, sequence, np.array([part.size - 1]))
        for start in range(beginning, READ + DECODED):
            engine.decode([Step(sequence, text[start : start + 1])])
    found = []
    for start in range(READ + DECODED, READ + 2 * DECODED, way.rows):
        end = min(start + way.rows, READ + 2 * DECODED)
        steps = [Step(sequence, text[start:end]) for text, sequence in zip(running, sequences, strict=True)]
        found.append(engine.decode(steps)[0].copy())
    for sequence in sequences:
        sequence.free()
    return np.concatenate(found)


# --- Reporting --------------------------------------------------------------------------------------------------------


def show(report: dict[str, Any]) -> None:
    show_about(report)
    if "overhead" in report:
        print("overhead")
        show_table(
            [
                {
                    "engine": r["engine"],
                    "TPOT ms": r["tpot_ms"],
                    "a step µs": r["step_us"],
                    "of it engine": r["of_it_engine_us"],
                    "of TPOT": f"{r['share']:.2%}",
                    "choice and text µs": r["choice_us"],
                    "an answer µs": r["answer_us"],
                    "target": f"below {r['target']:.0%}: {met_text(r['met'])}",
                }
                for r in report["overhead"]
            ]
        )
    if "snapshot" in report:
        print(f"snapshot of {PREFIX} tokens, {MESSAGE} more to compute")
        show_table(
            [
                {
                    "engine": r["engine"],
                    "computed ms": r["computed_ms"],
                    "from file ms": r["from_file_ms"],
                    "of it open": r["of_it_open_ms"],
                    "gain": ratio_text(r["gain"]),
                    "same token": f"{r['same_first_token']} of {r['rounds']}",
                    "file bytes": f"{r['file_bytes']:,}",
                    "save s": r["save_s"],
                    "target": f"{r['target']:.0f}: {met_text(r['met'])}",
                    **{f"process {key} s": p["s"] for key, p in r["processes"].items()},
                    "tokens from file": r["processes"]["with"]["cached_tokens"],
                }
                for r in report["snapshot"]
            ]
        )
    if "margins" in report:
        print(f"margins over {TEXTS} x {DECODED} tokens")
        show_table(
            [
                {
                    "engine": r["engine"],
                    "cache": r["cache"],
                    "reproducible": "yes" if r["reproducible"] else "no",
                    "what": r["what"],
                    "largest difference": f"{r['largest_difference']:.3g}",
                    "changed choices": f"{r['changed_choices']} of {r['of']}",
                }
                for r in report["margins"]
            ]
        )
    if "long" in report:
        show_long(report["long"])


def show_long(rows: list[dict[str, Any]]) -> None:
    print("long")
    for row in rows:
        if "error" in row:
            print(f"{row['engine']} {row['cache']} failed: {row['error']}")
    measured = [row for row in rows if "error" not in row]
    show_table([{**row, "met": met_text(row["met"])} for row in measured])
    per_token = {row["cache"]: row["kv_bytes_per_token"] for row in measured if row["engine"] == "openvino"}
    if "u4" in per_token and "u8" in per_token:
        ratio = per_token["u4"] / per_token["u8"]
        print(f"bytes of u4 over those of u8: {ratio:.3f}, target at most {MAX_U4}: {met_text(ratio <= MAX_U4)}")


if __name__ == "__main__":
    sys.exit(main())
