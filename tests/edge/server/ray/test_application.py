"""What `serve run edge.server.ray:app` runs answers as a server does, and refuses arguments that it does not know."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge.runtime.cluster import SILENT
from edge.runtime.errors import SettingsError

pytest.importorskip("ray")

SCRIPT = """
import json, os, sys
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil
from ray import serve

from edge.runtime.cluster import OWN, joined
from edge.server.ray import app

url = "http://127.0.0.1:" + sys.argv[2]
told = {}

def post(body):
    asked = Request(url + "/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        with urlopen(asked, timeout=60) as answer:
            return answer.read().decode()
    except HTTPError as error:
        return error.read().decode()

with joined(OWN, num_cpus=2, object_store_bytes=80 << 20):
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
    # Texts, as `serve run` has them.
    arguments = {"bundle": sys.argv[1], "replicas": "2", "threads": "1", "any_model": "true", "reproducible": "true"}
    serve.run(app(arguments), name="model", route_prefix="/")
    question = {"messages": [{"role": "user", "content": "Say hello"}], "max_tokens": 5, "temperature": 0}
    told["whole"] = json.loads(post(question))["choices"][0]["message"]["content"]
    lines = [line[6:] for line in post({**question, "stream": True}).splitlines() if line.startswith("data: ")]
    told["last"] = lines.pop()
    choices = [choice for line in lines for choice in json.loads(line)["choices"]]
    told["streamed"] = "".join(choice["delta"].get("content") or "" for choice in choices)
    told["refused"] = json.loads(post({"messages": "x"}))["error"]["code"]
    told["model"] = json.loads(urlopen(url + "/v1/models").read())["data"][0]["id"]
    own = []
    for process in psutil.Process().children(recursive=True):
        if process.name().startswith("ray::ServeRepl") and process.cmdline()[0].endswith(":Replica"):
            own.append(sorted(set().union(*(os.sched_getaffinity(one.id) for one in process.threads()))))
    told["processors"] = own
    serve.shutdown()
print(json.dumps(told))
"""


@pytest.mark.slow
def test_it_answers_as_a_server_does(demo_bundle: Path, tmp_path: Path) -> None:
    from tests.runtime.test_cluster import free_port

    environment = {**os.environ, **SILENT, "HOME": str(tmp_path)}
    command = [sys.executable, "-c", SCRIPT, str(demo_bundle), str(free_port())]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=170, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["whole"] == told["streamed"] != ""
    assert (told["last"], told["refused"], told["model"]) == ("[DONE]", "invalid_type", demo_bundle.name)
    if len(os.sched_getaffinity(0)) > 1:
        (first,), (second,) = told["processors"]
        assert first != second


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({}, "bundle is missing"),
        ({"bundle": "/b", "replica": 2}, "'replica' is no argument"),
        ({"bundle": "/b", "replicas": "many"}, "replicas"),
        ({"bundle": "/b", "port": 80}, "'port' is no argument"),  # Serve's own
        ({"bundle": "/b", "threads": 0}, "threads"),
    ],
)
def test_a_wrong_argument_is_refused(arguments: dict[str, object], named: str) -> None:
    from edge.server.ray import app

    with pytest.raises(SettingsError, match=named):
        app(arguments)
