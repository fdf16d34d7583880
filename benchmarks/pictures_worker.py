"""pictures.py's measurements, each in a process of its own.

    python benchmarks/pictures_worker.py JOB

In: a `Job` as JSON. Out: one line of JSON with figures. Memory is what the process takes that the system cannot drop
(RssAnon), sampled while something runs, and the most that was resident (VmHWM).
"""

from __future__ import annotations

import dataclasses
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

SAMPLE_S = 0.02


@dataclass(frozen=True)
class Job:
    """What a fresh process does: run a graph ("graph"), the tower alone ("tower"), or ask about pictures ("ask")."""

    kind: str
    path: str  # of a graph, or of a bundle
    engine: str
    precision: str | None = None
    threads: int | None = None
    arrays: str = ""  # "graph": an .npz with its inputs
    out: str = ""  # "graph": where its output goes
    pictures: tuple[str, ...] = ()
    kept: str = ""  # folder of kept rows
    new_tokens: int = 8
    options: dict[str, Any] = field(default_factory=dict)  # Any: keywords of edge.load


def graph(job: Job) -> dict[str, Any]:
    """Open a graph and run it twice, as the runtime does."""
    import numpy as np

    from edge.runtime.settings import EngineSettings
    from edge.runtime.vision.tower import Graphs

    settings = EngineSettings(inference_precision=job.precision, threads=job.threads)  # type: ignore[arg-type]
    graphs: Graphs
    if job.engine == "openvino":
        from edge.runtime.vision.tower_openvino import OpenVINOGraphs

        graphs = OpenVINOGraphs("CPU", settings)
    else:
        from edge.runtime.vision.tower_onnx import OnnxGraphs

        graphs = OnnxGraphs(settings)
    told = dict(graphs.identity)
    arrays = dict(np.load(job.arrays))
    before = status_bytes("RssAnon")
    with sampled() as opening:
        began = time.perf_counter()
        segment = graphs.open(Path(job.path), arrays)
        opened = time.perf_counter()
    loaded = status_bytes("RssAnon")
    times, peaks = [], []
    for _ in range(2):
        with sampled() as running:
            began_run = time.perf_counter()
            found = segment.run(arrays)
            times.append(time.perf_counter() - began_run)
        peaks.append(running.peak)
    np.save(job.out, found)
    left = status_bytes("RssAnon")
    del segment
    return {
        **told,
        "open_s": opened - began,
        "first_s": times[0],
        "second_s": times[1],
        "open_peak_bytes": opening.peak - before,
        "loaded_bytes": loaded - before,
        "run_peak_bytes": max(peaks) - before,
        "left_bytes": left - before,
        "let_go_bytes": status_bytes("RssAnon") - before,
        "resident_peak_bytes": status_bytes("VmHWM"),
    }


def tower(job: Job) -> dict[str, Any]:
    """Run the tower of a bundle without its text model, and time what is between two news."""
    from edge.runtime.bundle import open_bundle
    from edge.runtime.engines.engine import EngineInfo
    from edge.runtime.messages import ImagePart
    from edge.runtime.settings import EngineSettings
    from edge.runtime.vision.pictures import open_pictures
    from edge.runtime.vision.progress import PictureProgress

    settings = EngineSettings(
        inference_precision=job.precision,  # type: ignore[arg-type]
        threads=job.threads,
        kept_pictures_bytes=0,
        **job.options,
    )
    info = EngineInfo(job.engine, "CPU", 1, 1, 1, "f32", reproducible=False)
    pictures = open_pictures(open_bundle(job.path), info, settings)
    assert pictures is not None, "a bundle with a tower"
    picture = pictures.open(ImagePart(path=Path(job.pictures[0])))
    pictures.key(picture)
    news: list[tuple[float, int]] = []

    def told(progress: PictureProgress) -> None:
        if not news or news[-1][1] != progress.done or progress.done == progress.total:
            news.append((time.perf_counter(), progress.done))

    before = status_bytes("RssAnon")
    with sampled() as running:
        began = time.perf_counter()
        rows = pictures.rows(picture, told)
        took = time.perf_counter() - began
    steps = [(after[0] - at[0], after[1] - at[1]) for at, after in pairwise(news)]
    return {
        "rows": len(rows),
        "tower_s": took,
        "parts_s": [round(seconds, 3) for seconds, _ in steps],
        "layer_s": sum(seconds for seconds, _ in steps[1:-1]) / max(sum(layers for _, layers in steps[1:-1]), 1),
        "before_bytes": before,
        "peak_bytes": running.peak,
        "left_bytes": status_bytes("RssAnon"),
        "resident_peak_bytes": status_bytes("VmHWM"),
    }


def ask(job: Job) -> dict[str, Any]:
    """Ask the same about one picture after the other, and time the first piece of each answer."""
    import edge

    began = time.perf_counter()
    options = {"engine": job.engine, "threads": job.threads, "inference_precision": job.precision} | job.options
    with sampled() as all_of_it, edge.load(job.path, kept_pictures_folder=job.kept, **options) as llm:
        loaded = time.perf_counter() - began
        firsts, answers, resident = [], [], []
        for picture in job.pictures:
            content = [{"type": "image", "path": picture}, {"type": "text", "text": "What is in this picture?"}]
            with sampled() as running:
                began = time.perf_counter()
                stream = llm.chat(
                    [{"role": "user", "content": content}], max_new_tokens=job.new_tokens, ignore_stop_ids=True
                )
                first, ids = None, []
                for chunk in stream:
                    if first is None and chunk.token_ids:
                        first = time.perf_counter() - began
                    ids += list(chunk.token_ids)
            firsts.append(first)
            answers.append(ids)
            resident.append(running.peak)
    return {
        "load_s": loaded,
        "first_token_s": firsts,
        "answers": answers,
        "peaks_bytes": resident,
        "peak_bytes": all_of_it.peak,
        "resident_peak_bytes": status_bytes("VmHWM"),
    }


@dataclass
class Sampled:
    """The most of RssAnon that was seen."""

    peak: int = 0


@contextmanager
def sampled() -> Iterator[Sampled]:
    found, ended = Sampled(status_bytes("RssAnon")), threading.Event()

    def sample() -> None:
        while not ended.wait(SAMPLE_S):
            found.peak = max(found.peak, status_bytes("RssAnon"))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()
        found.peak = max(found.peak, status_bytes("RssAnon"))


def status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def job_text(job: Job) -> str:
    return json.dumps(dataclasses.asdict(job))


if __name__ == "__main__":
    given = Job(**json.loads(sys.argv[1]))
    print(json.dumps({"graph": graph, "tower": tower, "ask": ask}[given.kind](given)))
