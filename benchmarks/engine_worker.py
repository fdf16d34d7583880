"""engines.py's measurement of one engine, in a process of its own: load, answer, and say how long it took.

    PYTHON benchmarks/engine_worker.py ENGINE JOB

In: an engine's name and a `Job` as JSON. Out: one line of JSON with figures. Knows nothing about rounds or ratios.
numpy and edge are imported where they are needed: llama.cpp's Python does not have edge, and imports are measured.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

OURS = {"edge-onnx": "onnx", "edge-openvino": "openvino"}  # name -> engine
OPENVINO_GENAI, ONNXRUNTIME_GENAI, LLAMA = "openvino_genai", "onnxruntime_genai", "llama.cpp"
ON_LINUX = sys.platform == "linux"

Figures = dict[str, float]
# Takes prompt ids, the number of tokens to generate, and what to call for each of them.
Generate = Callable[[list[int], int, Callable[[], None]], None]


@dataclass(frozen=True)
class Job:
    """What a fresh process does."""

    path: str  # a bundle or a GGUF
    prompt: list[int]
    long_prompt: list[int]  # empty: none
    new_tokens: int  # after the first
    threads: int  # for llama.cpp


class EngineFailedError(Exception):
    """Its message is what the process reported."""


def work(name: str, job: Job) -> Figures:
    """Load and answer. `first_token_at` is in seconds since the epoch."""
    generate = OPENERS[name](job)
    moments = token_moments(generate, job.prompt, 1 + job.new_tokens)
    figures = {"first_token_at": moments[0], "decode_tok_s": job.new_tokens / (moments[-1] - moments[0])}
    if job.long_prompt:
        started = time.time()
        [first] = token_moments(generate, job.long_prompt, 1)
        figures["long_prefill_tok_s"] = len(job.long_prompt) / (first - started)
    if ON_LINUX:
        figures["peak_rss_gb"] = status_kb("self", "VmHWM") * 1024 / 1e9
    return figures


def token_moments(generate: Generate, prompt: list[int], count: int) -> list[float]:
    """When each token was known. Raises EngineFailedError when an engine does not generate `count` of them."""
    moments: list[float] = []
    generate(prompt, count, lambda: moments.append(time.time()))
    if len(moments) != count:
        raise EngineFailedError(f"{len(moments)} tokens generated, expected {count}")
    return moments


def open_ours(engine: str, job: Job) -> Generate:
    import edge

    llm = edge.load(job.path, engine=engine)

    def generate(prompt: list[int], count: int, on_token: Callable[[], None]) -> None:
        for chunk in llm.generate(prompt, max_new_tokens=count, ignore_stop_ids=True):
            for _ in chunk.token_ids:  # none while a long prompt is read
                on_token()

    return generate


def open_openvino_genai(job: Job) -> Generate:
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # `import openvino` reports to a server with it
    import numpy as np
    import openvino as ov
    import openvino_genai

    pipeline = openvino_genai.LLMPipeline(job.path, "CPU")

    class Streamer(openvino_genai.StreamerBase):  # type: ignore[misc]  # a package without types
        def __init__(self, on_token: Callable[[], None]) -> None:
            super().__init__()
            self.on_token = on_token

        def write(self, token: int | list[int]) -> openvino_genai.StreamingStatus:
            for _ in token if isinstance(token, list) else [token]:
                self.on_token()
            return openvino_genai.StreamingStatus.RUNNING

        def end(self) -> None:
            pass

    def generate(prompt: list[int], count: int, on_token: Callable[[], None]) -> None:
        greedy = openvino_genai.GenerationConfig()
        greedy.max_new_tokens, greedy.ignore_eos, greedy.do_sample = count, True, False
        ids = np.array([prompt], np.int64)
        inputs = openvino_genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
        pipeline.generate(inputs, greedy, Streamer(on_token))

    return generate


def open_onnxruntime_genai(job: Job) -> Generate:
    import numpy as np
    import onnxruntime_genai

    model = onnxruntime_genai.Model(job.path)

    def generate(prompt: list[int], count: int, on_token: Callable[[], None]) -> None:
        params = onnxruntime_genai.GeneratorParams(model)
        total = len(prompt) + count
        params.set_search_options(do_sample=False, max_length=total, min_length=total)  # no stop id before that
        generator = onnxruntime_genai.Generator(model, params)
        generator.append_tokens(np.array(prompt, np.int32))
        for _ in range(count):
            generator.generate_next_token()
            on_token()

    return generate


def open_llama(job: Job) -> Generate:
    """Through the C interface, which llama.cpp's own programs use: llama_cpp.Llama adds Python to every token."""
    import llama_cpp as llama

    llama.llama_backend_init()
    model_settings = llama.llama_model_default_params()
    model_settings.load_mode = llama.LLAMA_LOAD_MODE_MMAP
    settings = llama.llama_context_default_params()
    settings.n_ctx = max(len(job.prompt) + job.new_tokens, len(job.long_prompt)) + 1
    settings.n_threads = settings.n_threads_batch = job.threads
    model = llama.llama_model_load_from_file(job.path.encode(), model_settings)
    context = llama.llama_init_from_model(model, settings) if model else None
    if not context:
        raise EngineFailedError(f"llama.cpp did not open {job.path}; it says why above")
    greedy = llama.llama_sampler_init_greedy()

    def generate(prompt: list[int], count: int, on_token: Callable[[], None]) -> None:
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        ids = prompt
        for _ in range(count):
            tokens = (llama.llama_token * len(ids))(*ids)
            if status := llama.llama_decode(context, llama.llama_batch_get_one(tokens, len(ids))):
                raise EngineFailedError(f"llama_decode returned {status}")
            ids = [llama.llama_sampler_sample(greedy, context, -1)]
            on_token()

    return generate


def status_kb(pid: int | str, key: str) -> int:
    """A line of /proc/PID/status in kB; 0 for a process that has ended."""
    try:
        lines = Path("/proc", str(pid), "status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), 0)


OPENERS: dict[str, Callable[[Job], Generate]] = {
    **{name: partial(open_ours, engine) for name, engine in OURS.items()},
    OPENVINO_GENAI: open_openvino_genai,
    ONNXRUNTIME_GENAI: open_onnxruntime_genai,
    LLAMA: open_llama,
}

if __name__ == "__main__":
    print(json.dumps(work(sys.argv[1], Job(**json.loads(sys.argv[2])))))
