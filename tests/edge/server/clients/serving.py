"""A server as users start it, with the demo model: a process of its own, whose log is looked at afterwards."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.edge.server.live import Live, process

MODEL = "demo"
FREE_S = 2.0  # within which a client that left has to be forgotten
UNCOUNTED = 8  # tokens that steps wrote into cached blocks while their clients left: one each at most


@contextmanager
def serving(bundle: Path, log: Path, *options: str) -> Iterator[Live]:
    """Start a server that is ready; end it as a service manager does."""
    with process(bundle, "--alias", MODEL, *options, stderr=log) as live:
        assert live.process is not None
        yield live
        assert live.process.poll() is None, log.read_text(encoding="utf-8")
    told = log.read_text(encoding="utf-8")
    assert live.process.returncode == 0, told
    assert "Traceback" not in told


def wait_until_free(live: Live) -> None:
    """Wait until nothing runs and every token of the cache that is not kept for later is free."""
    deadline = time.monotonic() + FREE_S
    while True:
        told = live.get("/page/status.json").json
        in_use = told["kv_tokens"] - told["kv_free_tokens"] - told["kv_cached_tokens"]
        if told["running"] == told["waiting"] == 0 and 0 <= in_use <= UNCOUNTED:
            return
        assert time.monotonic() < deadline, told
        time.sleep(0.05)
