"""A server as users start it, with the demo model: a process of its own, whose log is looked at afterwards."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.edge.server.live import Live, process

MODEL = "demo"
FREE_S = 8.0  # within which a client that left has to be forgotten; its answer would take longer


@contextmanager
def serving(bundle: Path, log: Path, *options: str) -> Iterator[Live]:
    """Start a server that is ready; end it as a service manager does."""
    with process(bundle, "--alias", MODEL, *options, said=log) as live:
        assert live.process is not None
        yield live
        assert live.process.poll() is None, log.read_text(encoding="utf-8")
    told = log.read_text(encoding="utf-8")
    assert live.process.returncode == 0, told
    assert "Traceback" not in told


def wait_until_free(live: Live) -> None:
    """Wait until nothing runs and every block of the cache that is not kept for later is free."""
    deadline = time.monotonic() + FREE_S
    while True:
        told = live.get("/metrics").body.decode()
        blocks = {state: float(count) for state, count in re.findall(r'_blocks\{state="(\w+)"\} (\S+)', told)}
        busy = re.findall(r"^edge_num_requests_(?:running|waiting) [^0]", told, re.MULTILINE)
        if not busy and blocks["used"] == blocks["kept"]:
            return
        assert time.monotonic() < deadline, told
        time.sleep(0.05)
