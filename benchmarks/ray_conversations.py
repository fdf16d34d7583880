"""Which share of a conversation's earlier tokens two replicas have cached at each turn, with and without routing.

    python -m benchmarks.ray_conversations glm4-int4 --conversations 4 --turns 10

In: a bundle. Out: a line for each rule of routing: the mean share over all turns but the first ones, and the least of
all. The replicas run on a cluster of this machine alone, under `edge.server.ray:app` as `serve run` has it. The clients
think for a while between two turns, each for another time.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from concurrent.futures import ThreadPoolExecutor

SUBJECTS = ("rivers", "clocks", "bridges", "maps", "bread", "trains", "gardens", "islands")


def shares_of(url: str, subject: str, turns: int, *, run: str = "", thinks_s: float = 0.3) -> list[float]:
    """Have a conversation; return which share of all that was there before each turn but the first was cached.

    run: what sets this conversation apart from others about its subject. thinks_s: at most, between two turns.
    """
    import openai

    thinking = random.Random(f"{subject} {run}")
    messages = [{"role": "system", "content": f"You like {subject} ({run})."}]
    shares, earlier = [], 0
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600) as client:
        for turn in range(turns):
            messages.append({"role": "user", "content": f"Say something about {subject}, the {turn}th time."})
            answer = client.chat.completions.create(
                model="any",
                messages=messages,  # type: ignore[arg-type]  # the same fields
                max_tokens=24,
                temperature=0,
            )
            usage = answer.usage
            assert usage is not None
            if earlier:
                assert usage.prompt_tokens_details is not None
                shares.append((usage.prompt_tokens_details.cached_tokens or 0) / earlier)
            earlier = usage.total_tokens
            messages.append({"role": "assistant", "content": answer.choices[0].message.content or ""})
            time.sleep(thinking.uniform(0, thinks_s))
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--conversations", type=int, default=4, help="at once")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engine", default="auto", help="as of `edge serve` (default: %(default)s)")
    parser.add_argument("--reproducible", action="store_true", help="as the option of `edge serve`")
    args = parser.parse_args()

    from ray import serve

    from edge.profiles.server_process import free_port
    from edge.runtime.cluster import OWN, joined
    from edge.server.ray import app

    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with joined(OWN):
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        given = {"bundle": args.bundle, "replicas": args.replicas, "threads": 1, "any_model": True}
        for by_prefix in (True, False):
            arguments = {**given, "by_prefix": by_prefix, "reproducible": args.reproducible, "engine": args.engine}
            serve.run(app(arguments), name="model", route_prefix="/")
            for number in range(args.rounds):
                with ThreadPoolExecutor(args.conversations) as threads:
                    talks = [
                        threads.submit(shares_of, url, subject, args.turns, run=f"{by_prefix} {number} {at}")
                        for at, subject in zip(range(args.conversations), itertools.cycle(SUBJECTS), strict=False)
                    ]
                    shares = [share for talk in talks for share in talk.result()]
                how = "by prefix" if by_prefix else "to the least loaded"
                print(f"{how}: {sum(shares) / len(shares):.3f} of the tokens, {min(shares):.3f} at least", flush=True)
            serve.delete("model")
        serve.shutdown()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
