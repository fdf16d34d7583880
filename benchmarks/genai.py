"""Compare our engine on OpenVINO with openvino_genai's LLMPipeline, both with their defaults, on one IR in one run.

    python benchmarks/genai.py BUNDLE [--rounds 21] [--new-tokens 48] [--json]

Each round runs ours and theirs one after the other on the same random prompt, so that other load on the machine affects
both; the figures are medians, and the ratios are medians of the rounds' own ratios. A third part starts fresh processes
and measures the time from process start to the first token.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from report import about_machine

import edge

if TYPE_CHECKING:
    import openvino_genai

PROMPT_TOKENS = (32, 512)
Times = tuple[float, float]  # ms to the first token, ms for each further one

# What a process of ours or theirs does until its first token; argv[1] is the folder.
START_OURS = """
import sys
from edge.cli import main
main(["run", sys.argv[1], "What is the capital of France?", "--max-new-tokens", "1", "--engine", "openvino"])
"""
START_THEIRS = """
import sys, openvino_genai
pipeline = openvino_genai.LLMPipeline(sys.argv[1], "CPU")
print(pipeline.generate("What is the capital of France?", max_new_tokens=1))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    try:
        import openvino_genai  # noqa: F401
    except ImportError as error:
        print(f"skipped: {error.name} is not installed; make test installs it", file=sys.stderr)
        return 0
    report = {
        **about_machine(("edgeglm", "openvino", "openvino-genai")),
        "recipe": edge.LLM(args.bundle).bundle.manifest.recipe,
        "speed": compare_speed(args.bundle, args.rounds, args.new_tokens),
        "start_to_first_token_s": compare_start(args.bundle, max(args.rounds // 3, 1)),
    }
    print(json.dumps(report, indent=None if args.json else 1))
    return 0


def compare_speed(folder: Path, rounds: int, new_tokens: int) -> dict[str, Any]:
    """Prefill and decode of both, alternating."""
    import openvino_genai

    ours, theirs = edge.load(folder, engine="openvino"), openvino_genai.LLMPipeline(str(folder), "CPU")
    rng = np.random.default_rng(0)
    results = {}
    for count in PROMPT_TOKENS:
        pairs: list[tuple[Times, Times]] = []
        for _ in range(rounds + 1):
            ids = rng.integers(0, ours.tokenizer.num_tokens, count)
            if len(pairs) % 2:  # so that neither always runs second
                their_run, our_run = run_theirs(theirs, ids, new_tokens), run_ours(ours, ids, new_tokens)
            else:
                our_run, their_run = run_ours(ours, ids, new_tokens), run_theirs(theirs, ids, new_tokens)
            pairs.append((our_run, their_run))
        results[f"prompt {count}"] = summarize(pairs[1:], count)  # the first round prepares kernels
    return results


def run_ours(llm: edge.LLM, ids: np.ndarray, new_tokens: int) -> Times:
    llm.clear_cache()
    stats = llm.generate(ids.tolist(), max_new_tokens=new_tokens, ignore_stop_ids=True).answer().stats
    assert stats is not None, "it was read to its end"
    return stats.ttft_ms, stats.tpot_ms


def run_theirs(pipeline: openvino_genai.LLMPipeline, ids: np.ndarray, new_tokens: int) -> Times:
    """Times from openvino_genai's own metrics."""
    import openvino as ov
    import openvino_genai

    greedy = openvino_genai.GenerationConfig()
    greedy.max_new_tokens, greedy.ignore_eos, greedy.do_sample = new_tokens, True, False
    tokens = ids[None].astype(np.int64)
    inputs = openvino_genai.TokenizedInputs(ov.Tensor(tokens), ov.Tensor(np.ones_like(tokens)))
    metrics = pipeline.generate(inputs, greedy).perf_metrics
    return metrics.get_ttft().mean, metrics.get_tpot().mean


def summarize(pairs: list[tuple[Times, Times]], count: int) -> dict[str, Any]:
    """Medians of both, and of the ratios; a ratio above 1 means ours is faster."""
    median = statistics.median
    return {
        "prefill_tok_s": {
            "edge": round(median(1000 * count / ours[0] for ours, _ in pairs), 1),
            "openvino_genai": round(median(1000 * count / theirs[0] for _, theirs in pairs), 1),
            "ratio": round(median(theirs[0] / ours[0] for ours, theirs in pairs), 3),
        },
        "decode_tok_s": {
            "edge": round(median(1000 / ours[1] for ours, _ in pairs), 1),
            "openvino_genai": round(median(1000 / theirs[1] for _, theirs in pairs), 1),
            "ratio": round(median(theirs[1] / ours[1] for ours, theirs in pairs), 3),
        },
    }


def compare_start(folder: Path, rounds: int) -> dict[str, float]:
    """Fresh processes, alternating; seconds from start to the end of an answer of one token."""
    seconds: dict[str, list[float]] = {"edge": [], "openvino_genai": []}
    for _ in range(rounds):
        for name, script in (("edge", START_OURS), ("openvino_genai", START_THEIRS)):
            started = time.perf_counter()
            subprocess.run([sys.executable, "-c", script, str(folder)], check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - started)
    ratios = [theirs / ours for ours, theirs in zip(*seconds.values(), strict=True)]
    medians = {name: round(statistics.median(values), 3) for name, values in seconds.items()}
    return {**medians, "ratio": round(statistics.median(ratios), 3)}


if __name__ == "__main__":
    sys.exit(main())
