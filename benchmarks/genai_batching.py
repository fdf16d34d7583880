"""openvino_genai's continuous batching under several clients, in a process of its own: serving.py's third side.

    python benchmarks/genai_batching.py BUNDLE

In: lines of JSON on stdin, [[[prompt, new_tokens], ...], ...] by client, prompts being token ids. Out: a line of JSON
for each, [[sent_at, [time of each token], number of tokens], ...], by time.perf_counter.

One loop does what a server's thread would: it makes steps, takes what each request has, and sends a client's next
prompt when its answer has ended. There is no HTTP, no text and no other thread, which is to its advantage.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import openvino_genai

Told = tuple[float, list[float], int]


def main() -> int:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is not an answer
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # `import openvino` reports to a server with it
    import openvino_genai

    pipeline = openvino_genai.ContinuousBatchingPipeline(sys.argv[1], openvino_genai.SchedulerConfig(), "CPU")
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(serve(pipeline, json.loads(line))), file=answers, flush=True)
    return 0


def serve(
    pipeline: openvino_genai.ContinuousBatchingPipeline, clients: list[list[tuple[list[int], int]]]
) -> list[Told]:
    """Every client's tasks, one after the other; clients beside each other."""
    import openvino as ov
    import openvino_genai

    waiting = [list(reversed(tasks)) for tasks in clients]
    running: dict[int, tuple[Any, Told]] = {}
    told: list[Told] = []

    def send(client: int) -> None:
        prompt, new_tokens = waiting[client].pop()
        greedy = openvino_genai.GenerationConfig()
        greedy.max_new_tokens, greedy.ignore_eos, greedy.do_sample = new_tokens, True, False
        ids = np.array([prompt], np.int64)
        sent_at = time.perf_counter()
        handle = pipeline.add_request(len(told) * len(clients) + client, ov.Tensor(ids), greedy)
        running[client] = handle, (sent_at, [], 0)

    for client in range(len(clients)):
        send(client)
    while running:
        pipeline.step()
        now = time.perf_counter()
        for client, (handle, (sent_at, times, tokens)) in list(running.items()):
            count = sum(len(output.generated_ids) for output in handle.read().values()) if handle.can_read() else 0
            if count:
                times.append(now)
            running[client] = handle, (sent_at, times, tokens + count)
            if handle.get_status() != openvino_genai.GenerationStatus.RUNNING:
                told.append(running.pop(client)[1])
                if waiting[client]:
                    send(client)
    return told


if __name__ == "__main__":
    sys.exit(main())
