"""A live server for each file, the same model in this process, and clients that reach nothing but this machine."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.commands.serve import EXPECTED_CLIENTS
from edge.runtime.llm import LLM
from edge.runtime.settings import EngineSettings
from tests.edge.server.clients.serving import serving
from tests.edge.server.live import Live

# Read when the clients are imported: no tables from the network, no reports to it.
os.environ |= {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_TELEMETRY": "False",
    "LANGSMITH_TRACING": "false",
    "LANGCHAIN_TRACING_V2": "false",
    "INSTRUCTOR_TELEMETRY": "off",
}


@pytest.fixture(autouse=True)
def only_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that looks for another host fails its test."""
    look_up = socket.getaddrinfo

    def guarded(host: Any, *arguments: Any, **more: Any) -> Any:  # Any: what `getaddrinfo` takes and returns
        assert host in ("127.0.0.1", "localhost", b"127.0.0.1", b"localhost"), f"a client looks for {host}"
        return look_up(host, *arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", guarded)


@pytest.fixture(scope="module")
def live(request: pytest.FixtureRequest, demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server with the options that the file names, in OPTIONS."""
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with serving(demo_bundle, log, "--reproducible", *getattr(request.module, "OPTIONS", ())) as found:
        yield found


@pytest.fixture(scope="session")
def single(demo_bundle: Path) -> Iterator[LLM]:
    """The same model on the same engine, without a server."""
    with LLM(demo_bundle, EngineSettings(reproducible=True, expected_clients=EXPECTED_CLIENTS)) as llm:
        yield llm
