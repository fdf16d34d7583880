"""Batches for tests: requests of every kind, and a scripted model that answers them by chance, as its seed says."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from edge.api import scripted_llm
from edge.batch.batch import Batch, Show, Summary
from edge.batch.settings import BatchSettings
from edge.runtime.engines.scripted import noise
from edge.runtime.llm import LLM

Body = dict[str, Any]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def line(custom_id: str, body: Body | None = None, url: str = CHAT, **more: Any) -> Body:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body or message("Hello"), **more}


def message(text: str, **fields: Any) -> Body:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 4, "temperature": 1, **fields}


def many(count: int) -> list[Body | bytes]:
    """Requests of different lengths and kinds; some of them are wrong."""
    found: list[Body | bytes] = []
    for i in range(count):
        name = f"request {i}"
        if i % 10 == 3:
            found.append(line(name, message(f"{i} ü", n=2, max_tokens=3)))
        elif i % 10 == 5:
            found.append(line(name, {"prompt": ["one", f"two {i}"], "max_tokens": 2, "temperature": 1}, COMPLETIONS))
        elif i % 10 == 7:
            found.append(line(name, message("x", temperature=5)))
        elif i % 50 == 9:
            found.append(b'{"custom_id": "cut off')
        else:
            found.append(line(name, message(f"Question {i}", max_tokens=1 + i % 13)))
    return found


def write(path: Path, lines: list[Body | bytes]) -> Path:
    path.write_bytes(b"".join(one if isinstance(one, bytes) else json.dumps(one).encode() for one in _ended(lines)))
    return path


def _ended(lines: list[Body | bytes]) -> list[Body | bytes]:
    return [part for one in lines for part in (one, b"\n")]


def model(**changes: Any) -> LLM:
    return scripted_llm(noise(), **changes)


def run(
    requests: Path,
    out: Path,
    llm: LLM | None = None,
    *,
    concurrency: int = 8,
    force: bool = False,
    show: Show = lambda _progress: None,
) -> Summary:
    with Batch(requests, out, BatchSettings(concurrency), force=force) as batch, llm or model() as opened:
        return batch.run(opened, {}, show)


def answers(out: Path) -> list[Body]:
    return [json.loads(one) for one in out.read_bytes().splitlines()]


if __name__ == "__main__":  # a process that tests can kill
    run(Path(sys.argv[1]), Path(sys.argv[2]), show=lambda _: time.sleep(0.03))
