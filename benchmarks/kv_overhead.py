"""kv.py's part `overhead`: what of a decode step is neither inference nor choosing.

In: a bundle's folder, an engine, rounds. Out: one row of figures; kv.py says what they mean.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import edge

MAX_CONTEXT = 4096
PROMPT, NEW = 512, 128  # tokens
WIDE = 4096  # hidden size from which a model counts as having 9B shapes
SHARES = {True: 0.02, False: 0.10}  # wide -> largest share of TPOT


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
