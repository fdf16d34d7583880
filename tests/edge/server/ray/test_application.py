"""What `serve run edge.server.ray:app` runs answers as a server does, and refuses arguments that it does not know."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import edge
from edge.runtime.bundle import MANIFEST, open_bundle
from edge.runtime.cluster import SILENT
from edge.runtime.errors import SettingsError

pytest.importorskip("ray")

from edge.server.ray.bundles import sha256_of_manifest


@pytest.fixture(scope="module")
def told(demo_bundle: Path, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the program saw. Any: JSON."""
    home = tmp_path_factory.mktemp("home")
    environment = {**os.environ, **SILENT, "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    paths = [str(demo_bundle), str(tiny_bundle), str(home / "elsewhere")]
    command = [sys.executable, "-m", "tests.edge.server.ray.under_serve", *paths]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_it_answers_as_a_server_does(told: dict[str, Any], demo_bundle: Path) -> None:
    alone = next(iter(told["alone"][demo_bundle.name].values()))
    assert told["streamed"] == [demo_bundle.name, alone, "[DONE]"]
    assert (told["whole"], told["refused"], told["model"]) == (alone, "invalid_type", demo_bundle.name)
    if told["free"] > 1:  # no other replicas have them
        (first,), (second,) = told["processors"]
        assert first != second


@pytest.mark.slow
def test_a_node_without_the_bundle_fetches_it_once(told: dict[str, Any], demo_bundle: Path, tiny_bundle: Path) -> None:
    assert sorted(told["fetched"]) == sorted([MANIFEST, *open_bundle(demo_bundle).manifest.files])  # by an URL
    assert Path(told["elsewhere"]).name == sha256_of_manifest(tiny_bundle)  # from the shelf, by another process
    open_bundle(told["elsewhere"]).check_hashes()


@pytest.mark.slow
def test_a_change_of_the_bundle_costs_no_answer(told: dict[str, Any], demo_bundle: Path, tiny_bundle: Path) -> None:
    alone, answered = told["alone"], set()
    for prompt, model, text, end in told["changed"]:
        assert end == "[DONE]"
        assert text == alone[model][prompt]
        answered.add(model)
    assert answered == {demo_bundle.name, tiny_bundle.name}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({}, "bundle is missing"),
        ({"bundle": "/b", "replica": 2}, "'replica' is no argument"),
        ({"bundle": "/b", "replicas": "many"}, "replicas"),
        ({"bundle": "/b", "port": 80}, "'port' is no argument"),  # Serve's own
        ({"bundle": "/b", "threads": 0}, "threads"),
        ({"bundle": "/b", "fetch": "https://files.example/b"}, "fetch needs sha256"),
        ({"bundle": "/b", "fetch": "ftp://files.example/b", "sha256": "0" * 64}, "source is 'ftp"),
    ],
)
def test_a_wrong_argument_is_refused(arguments: dict[str, object], named: str) -> None:
    from edge.server.ray import app

    with pytest.raises(SettingsError, match=named):
        app(arguments)


def test_a_model_that_does_not_get_ready_is_closed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from edge.server.ray import application

    llm = edge.scripted_llm(edge.replies({}))
    monkeypatch.setattr(application, "load", lambda _path, **_options: llm)
    wanted = application.Load(prefixes=(str(tmp_path / "missing.prefix"),))
    with pytest.raises(edge.EdgeError, match=r"missing\.prefix"):
        application._opened(wanted, "anywhere", 1)
    with pytest.raises(edge.ClosedError):
        llm.generate("after that")
