"""How many tokens a second replicas of one thread each give 16 openai clients, against one such replica.

    python -m benchmarks.ray_replicas glm4-int4 --replicas 1 2

In: a bundle. Out: a line for each number of replicas: tokens/s of all clients together, the median of its rounds with
the lowest and the highest.
Each number is served by `edge serve --ray` on a cluster of this machine alone. Answers have no end but their limit, so
that each round writes as many tokens.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from statistics import median
from urllib.error import URLError
from urllib.request import urlopen

import openai

CLIENTS = 16
READY_S = 180.0


@contextmanager
def served(bundle: str, replicas: int) -> Iterator[str]:
    """Yield the address of a server whose replicas are ready."""
    options = ("--ray", "--replicas", str(replicas), "--threads", "1", "--port", "0", "--any-model")
    process = subprocess.Popen([sys.executable, "-m", "edge", "serve", bundle, *options], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        url = line.split(" at ")[1].split(",")[0]
        deadline = time.monotonic() + READY_S
        while not _is_ready(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{replicas} replicas did not become ready")
            time.sleep(0.2)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _is_ready(url: str) -> bool:
    try:
        with urlopen(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except URLError:  # 503 while it loads
        return False


@contextmanager
def clients(url: str) -> Iterator[list[openai.OpenAI]]:
    """Yield clients of a server. They live for all rounds, as those of a program do: making one takes 20 ms."""
    with ExitStack() as stack:
        one = partial(openai.OpenAI, base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600)
        yield [stack.enter_context(one()) for _ in range(CLIENTS)]


def tokens_per_s(asking: list[openai.OpenAI], tokens: int, of: str, system: str) -> float:
    """Return the rate of all clients together, from the first question to the last answer."""

    def ask(number: int) -> int:
        answer = asking[number].chat.completions.create(
            model="any",
            messages=[
                {"role": "system", "content": system},
                {"role": "user", "content": f"Round {of}: write about planet {number}."},
            ],
            max_tokens=tokens,
            temperature=0,
            extra_body={"ignore_eos": True},
        )
        assert answer.usage is not None
        return answer.usage.completion_tokens

    began = time.monotonic()
    with ThreadPoolExecutor(len(asking)) as threads:
        written = sum(threads.map(ask, range(len(asking))))
    return written / (time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--tokens", type=int, default=48, help="of each answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--system-words", type=int, default=0, help="of a system prompt that all questions share")
    args = parser.parse_args()
    system = " ".join(["planets"] * args.system_words)
    first = 0.0
    for replicas in args.replicas:
        with served(args.bundle, replicas) as url, clients(url) as asking:
            tokens_per_s(asking, 4, "warm", system)
            rates = [tokens_per_s(asking, args.tokens, str(number), system) for number in range(args.rounds)]
        middle = median(rates)
        first = first or middle
        print(
            f"{replicas} replicas: {middle:.1f} tokens/s ({min(rates):.1f} to {max(rates):.1f}), "
            f"{middle / first:.2f} times the first",
            flush=True,
        )


if __name__ == "__main__":
    main()
