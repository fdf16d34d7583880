"""A program that runs the application under Serve, fetches its bundle, asks it, and changes the bundle under load.

In: paths of two bundles, as arguments. Out: what it saw, as JSON on the last line.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import ray
from ray import serve

import edge
from edge.runtime.cluster import OWN, joined
from edge.runtime.cores import _take
from edge.server.ray import app
from edge.server.ray.bundles import BundleSource, fetchable, sha256_of_manifest
from edge.server.ray.settings import SHELF
from tests.edge.server.live import Live, free_port
from tests.edge.update.web import serving

CLIENTS = 8
PROMPTS = [f"Tell me about planet {number}" for number in range(4)]
GIVEN: dict[str, Any] = {"max_tokens": 24, "temperature": 0.9, "seed": 5}  # Any: fields of a request
LOADED: dict[str, Any] = {"engine": "openvino", "reproducible": True, "threads": 1}  # Any: keywords of edge.load


def fetched_elsewhere(bundle: Path, cache: Path) -> str:
    """Have a process with another cache folder fetch a bundle from this one's shelf; return where it is."""
    source = replace(fetchable(str(bundle), SHELF), path="/nowhere")

    def fetch(source: BundleSource) -> str:
        return str(source.here())

    there = ray.remote(fetch).options(runtime_env={"env_vars": {"XDG_CACHE_HOME": str(cache)}})
    return str(ray.get(there.remote(source)))


def one_by_one(bundle: Path) -> dict[str, str]:
    """What a model by itself answers to each prompt."""
    with edge.load(bundle, **LOADED) as llm:
        return {
            prompt: llm.chat([{"role": "user", "content": prompt}], max_new_tokens=24, temperature=0.9, seed=5).text()
            for prompt in PROMPTS
        }


def streamed(live: Live, prompt: str) -> tuple[str, str, str]:
    """Return which model answered, its answer, and how it ended."""
    reply = live.chat(prompt, stream=True, **GIVEN)
    if reply.status != 200:
        return "", "", f"{reply.status}: {reply.body.decode()[:300]}"
    *events, last = reply.events
    choices = [choice for event in events for choice in event.get("choices", ())]
    return events[0]["model"], "".join(one["delta"].get("content") or "" for one in choices), str(last)


def changed_under_load(live: Live, second: Path, arguments: dict[str, str]) -> list[tuple[str, str, str, str]]:
    """Change the bundle while clients ask one thing after the other; return all of their answers."""
    is_changed = threading.Event()

    def ask(client: int) -> list[tuple[str, str, str, str]]:
        got, left, number = [], 2, client
        while left:
            prompt = PROMPTS[number % len(PROMPTS)]
            got.append((prompt, *streamed(live, prompt)))
            number += 1
            left -= is_changed.is_set()
        return got

    with ThreadPoolExecutor(CLIENTS) as threads:
        asking = [threads.submit(ask, client) for client in range(CLIENTS)]
        serve.run(app({**arguments, "bundle": str(second)}), name="model", route_prefix="/")
        is_changed.set()
        return [one for client in asking for one in client.result()]


def free_processors() -> int:
    """How many no other replica on this machine has taken."""
    with ExitStack() as stack:
        return sum(_take(processor, stack) for processor in os.sched_getaffinity(0))


def processors_of_replicas() -> list[list[int]]:
    own = []
    for process in psutil.Process().children(recursive=True):
        if process.name().startswith("ray::ServeRepl") and process.cmdline()[0].endswith(":Replica"):
            own.append(sorted(set().union(*(os.sched_getaffinity(one.id) for one in process.threads()))))
    return own


def main() -> None:
    first, second, cache = map(Path, sys.argv[1:])
    told: dict[str, Any] = {"alone": {bundle.name: one_by_one(bundle) for bundle in (first, second)}}
    live = Live(f"http://127.0.0.1:{free_port()}")
    # Texts, as `serve run` has them.
    arguments = {"replicas": "2", "threads": "1", "engine": "openvino", "reproducible": "true"}
    with joined(OWN, num_cpus=2, object_store_bytes=80 << 20), serving(first) as web:
        told["elsewhere"] = fetched_elsewhere(second, cache)
        told["free"] = free_processors()
        serve.start(http_options={"host": "127.0.0.1", "port": live.port})
        of_first = {"bundle": f"/nowhere/{first.name}", "fetch": web.url, "sha256": sha256_of_manifest(first)}
        serve.run(app({**arguments, **of_first}), name="model", route_prefix="/")
        told["fetched"] = [name for name, _ in web.asked]
        told["processors"] = processors_of_replicas()
        told["model"] = live.get("/v1/models").json["data"][0]["id"]
        told["refused"] = live.post("/v1/chat/completions", {"messages": "x"}).error["code"]
        told["whole"] = live.chat(PROMPTS[0], **GIVEN).json["choices"][0]["message"]["content"]
        told["streamed"] = streamed(live, PROMPTS[0])
        told["changed"] = changed_under_load(live, second, arguments)
        serve.shutdown()  # type: ignore[no-untyped-call]
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    main()
