"""What runs in a process of its own: a sweep's float reference, exports and measurements, and timing for `edge bench`.

In: one task, a line of JSON on stdin. Out: progress and a result, lines of JSON on stdout; `processes.py` describes
both. Knows nothing about which steps make a sweep.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.export.npz import DAMAGE, get_array, put_array
from edge.export.settings import ExportSettings, Format
from edge.export.text.windows import Windows
from edge.profiles.processes import Tell
from edge.runtime.errors import CalibrationError, EdgeError, shown
from edge.runtime.files import open_file
from edge.runtime.settings import CachePrecision, EngineOptions, EngineSettings, engine_settings

GREEDY_PROMPTS, GREEDY_PROMPT_TOKENS = 8, 64  # beginnings of windows that greedy text continues, and their length
SPEED_PROMPT_TOKENS, SPEED_NEW_TOKENS = 512, 64  # of the prompt and answer that are timed; fewer in a short context


def main() -> int:
    """Do the task that stdin names; 0 if it gave a result."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is not an answer
    pipe = _take_stdin()
    line = b""
    while not line.endswith(b"\n"):
        if not (part := os.read(pipe, 1 << 16)):
            return 1
        line += part
    threading.Thread(target=_end_with, args=(pipe,), daemon=True).start()

    def tell(phase: str, done: int, total: int) -> None:
        print(json.dumps({"phase": phase, "done": done, "total": total}), file=answers, flush=True)

    task = json.loads(line)
    answer: dict[str, object]
    try:
        answer = {"result": TASKS[task.pop("task")](tell, **task)}
    except EdgeError as error:
        answer = {"error": " ".join(str(error).split())}
    print(json.dumps(answer), file=answers, flush=True)
    return 0 if "result" in answer else 1


def _take_stdin() -> int:
    """Return stdin under another number, with nothing to read in its place.

    A library of Windows that is loaded asks what stdin is, and waits for as long as a thread reads it.
    """
    pipe, null = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return pipe


def _end_with(pipe: int) -> None:
    """End this process when the pipe ends: the process that asked for the work has gone."""
    while os.read(pipe, 1 << 16):
        pass
    os._exit(1)


def export_bundle(
    tell: Tell,
    source: str,
    out: str,
    recipe: str,
    format: Format,
    calibration: str | None,
    max_memory_bytes: int | None = None,
) -> dict[str, object]:
    """Export one recipe. `resumed` in the result: whether an earlier process had done a part."""
    from edge.export.pipeline import export
    from edge.export.stages import Progress

    resumed = False

    def progress(state: Progress) -> None:
        nonlocal resumed
        resumed = resumed or state.resumed > 0
        tell("export", state.done, state.total)

    manifest = export(
        source,
        out,
        recipe,
        format=format,
        calibration=calibration,
        max_memory_bytes=max_memory_bytes,
        force=True,
        progress=progress,
    )
    return {
        "resumed": resumed,
        "weight_bytes": manifest.weight_bytes,
        "bits_per_weight": manifest.bits_per_weight,
        "warnings": list(manifest.warnings),
    }


def build_reference(tell: Tell, source: str, windows: str, out: str) -> dict[str, object]:
    """Compute the float checkpoint's rows for the text; resumes where an earlier process stopped."""
    from edge.export.plan import make_plan
    from edge.profiles.reference import build

    plan = make_plan(source, ExportSettings("fp32", format="openvino"))

    def progress(_stage: str, done: int, total: int) -> None:
        tell("reference", done, total)

    reference = build(plan.weights, read_windows(Path(windows)), out, key=plan.key, progress=progress)
    return {"ppl": reference.ppl}


def measure_cell(
    tell: Tell,
    source: str,
    bundle: str,
    engine: str,
    device: str,
    kv_precision: CachePrecision | None,
    reference: str,
    chunk: int | None,
    speed: bool,
    greedy_tokens: int,
    max_memory_bytes: int | None = None,
    accuracy: bool = True,
) -> dict[str, object]:
    """Load one bundle on one engine; time it, measure it, or both."""
    import time

    from edge.export.plan import make_plan
    from edge.profiles.accuracy import evaluate
    from edge.profiles.divergence import first_divergence, write_greedily
    from edge.profiles.reference_file import open_reference
    from edge.profiles.speed import measure
    from edge.runtime.llm import LLM

    tell("load", 0, 1)
    started = time.perf_counter()
    llm = LLM(bundle, EngineSettings(engine, device, kv_precision=kv_precision, max_memory_bytes=max_memory_bytes))
    found: dict[str, object] = {"load_s": time.perf_counter() - started}
    if speed:
        tell("speed", 0, 1)
        new = min(SPEED_NEW_TOKENS, llm.engine.info.max_context // 2)
        prompt = min(SPEED_PROMPT_TOKENS, llm.engine.info.max_context - new, llm.engine.info.longest_prompt)
        found["speed"] = asdict(measure(llm, [prompt], new)[0])
        llm.clear_cache()
    if not accuracy:
        return found
    tell("accuracy", 0, 1)
    expected = open_reference(reference)
    measured = evaluate(
        llm.engine,
        expected,
        chunk=chunk,
        progress=lambda done, total: tell("accuracy", done, total),
    )
    found |= {"kv_cache": llm.engine.info.kv_precision, "accuracy": measured.to_json(), "divergence": None}
    prompts = expected.windows.ids[:GREEDY_PROMPTS, : min(GREEDY_PROMPT_TOKENS, expected.windows.length // 2)]
    if new := min(greedy_tokens, llm.engine.info.max_context - prompts.shape[1]):
        tell("greedy text", 0, 1)
        texts = write_greedily(llm, prompts, new)
        num_tokens = llm.tokenizer.num_tokens
        del llm  # the float model needs its memory
        weights = make_plan(source, ExportSettings("fp32", format="openvino")).weights
        found["divergence"] = first_divergence(weights, texts, prompts.shape[1], num_tokens).to_json()
    return found


def bench(
    _tell: Tell, bundle: str, settings: EngineOptions, prompt_tokens: list[int], new_tokens: int, repeats: int
) -> dict[str, object]:
    """The report of `edge bench`; `settings` are fields of EngineSettings."""
    from edge.profiles import speed

    return speed.bench(bundle, engine_settings(**settings), prompt_tokens, new_tokens, repeats)


def write_windows(windows: Windows, path: Path) -> None:
    """Keep the text for the processes to come: same windows, same bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        put_array(archive, "ids", windows.ids)
        put_array(archive, "languages", np.array(windows.languages, dtype=np.str_))


def read_windows(path: Path) -> Windows:
    """Read what `write_windows` wrote. Raises CalibrationError for anything else."""
    advice = "run the profile again"
    try:
        with open_file(path, CalibrationError, advice) as file, zipfile.ZipFile(file) as archive:
            ids, languages = get_array(archive, "ids"), get_array(archive, "languages")
    except DAMAGE as error:
        raise CalibrationError(f"{path} does not read as windows of text ({shown(str(error))}); {advice}") from error
    if ids.ndim != 2 or ids.dtype != np.int64 or languages.shape != ids.shape[:1] or not _is_text(languages):
        raise CalibrationError(f"{path} does not hold windows of text; {advice}")
    return Windows(ids, tuple(languages.tolist()))


def _is_text(array: npt.NDArray[Any]) -> bool:
    """Whether an array holds text made of characters that exist."""
    if not array.dtype.str.startswith("<U"):
        return False
    codes = array.view("<u4")
    return not codes.size or int(codes.max()) <= sys.maxunicode


TASKS: dict[str, Callable[..., dict[str, object]]] = {
    "reference": build_reference,
    "export": export_bundle,
    "measure": measure_cell,
    "bench": bench,
}

if __name__ == "__main__":
    sys.exit(main())
