"""neighbour.py's measurement of one engine, in a process of its own that stays loaded while neighbours come and go.

    PYTHON benchmarks/neighbour_worker.py ENGINE JOB

In: an engine's name and a `Job` of engine_worker.py as JSON; then a line on stdin for each measurement. Out: a line for
each, the first when it has loaded and answered once; lines have milliseconds a token. Knows nothing about neighbours.
"""

from __future__ import annotations

import json
import sys

from engine_worker import OPENERS, Generate, Job, token_moments


def decode_ms(generate: Generate, job: Job) -> float:
    """Milliseconds for each token after the first."""
    moments = token_moments(generate, job.prompt, 1 + job.new_tokens)
    return 1000 * (moments[-1] - moments[0]) / job.new_tokens


def main() -> None:
    job = Job(**json.loads(sys.argv[2]))
    generate = OPENERS[sys.argv[1]](job)
    print(decode_ms(generate, job), flush=True)
    for _ in sys.stdin:
        print(decode_ms(generate, job), flush=True)


if __name__ == "__main__":
    main()
