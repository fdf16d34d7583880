"""The promise of a batch over a real model: killed at random moments, it comes to the bytes of an undisturbed run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge.batch.batch import JOURNAL
from tests.conftest import ENGINES
from tests.edge.batch.jobs import Body, answers, line, write

ROOT = Path(__file__).parents[3]
COUNT, KILLS = 200, 5
TOPICS = ("tea", "the sea", "a red door", "numbers", "Cologne", "rain", "a small dog", "bread", "the moon", "glass")


def command(bundle: Path, requests: Path, out: Path, engine: str) -> list[str]:
    return [
        *(sys.executable, "-m", "edge", "batch", str(bundle), str(requests), str(out)),
        *("--engine", engine, "--reproducible", "--concurrency", "16"),
    ]


def requests_of(count: int) -> list[Body | bytes]:
    found: list[Body | bytes] = []
    for i in range(count):
        text = f"Tell me {i % 7} things about {TOPICS[i % len(TOPICS)]}."
        body = {"messages": [{"role": "user", "content": text}], "temperature": 1, "max_tokens": 4 + i % 13}
        found.append(line(f"line {i}", body if i % 2 else {**body, "seed": i}))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_a_batch_that_is_killed_five_times(demo_bundle: Path, engine: str, tmp_path: Path) -> None:
    requests = write(tmp_path / "in.jsonl", requests_of(COUNT))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    started = time.monotonic()
    subprocess.run(command(demo_bundle, requests, whole, engine), env=environment, check=True)
    undisturbed = time.monotonic() - started
    journal, chance = tmp_path / f"out.jsonl{JOURNAL}", random.Random(5)
    sizes = [0]
    for _ in range(KILLS):
        with subprocess.Popen(command(demo_bundle, requests, out, engine), env=environment) as process:
            while process.poll() is None and not (journal.exists() and journal.stat().st_size > sizes[-1]):
                time.sleep(0.01)
            time.sleep(chance.random() * undisturbed / 20)
            process.kill()
        assert process.returncode == -signal.SIGKILL
        sizes.append(journal.stat().st_size)
    done = subprocess.run(
        command(demo_bundle, requests, out, engine), env=environment, check=True, capture_output=True, text=True
    )
    assert out.read_bytes() == whole.read_bytes()
    found = answers(out)
    assert len(found) == COUNT
    assert all(one["response"]["status_code"] == 200 for one in found)
    assert len({one["response"]["body"]["choices"][0]["message"]["content"] for one in found}) > COUNT / 2
    assert " of them before" in done.stdout
