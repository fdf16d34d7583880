"""kv.py's part `long`: the memory of a long context, each engine and cache in a fresh process.

In: engines, a number of tokens. Out: rows of figures; kv.py says what they mean. As a script: one measurement, with its
job as JSON in argv[1].
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from engine_worker import status_kb

import edge
from edge.runtime.settings import CachePrecision

LONG_TOKENS, LONG_POSITIONS = 100_000, 131_072
LONG_RUNS = (("openvino", "u8"), ("openvino", "u4"), ("openvino", "f16"), ("onnx", "f16"), ("onnx", "f32"))
SPARE_BYTES = 1e9


def long(engines: list[str], tokens: int) -> list[dict[str, Any]]:
    """A row for each engine and cache. The model: four layers of two heads of 128 each, and a vocabulary of bytes."""
    from make_checkpoint import write_checkpoint
    from members import GLM_9B

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
            command = [sys.executable, __file__, json.dumps(job)]
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


if __name__ == "__main__":
    print(json.dumps(read_long(**json.loads(sys.argv[1]))))
