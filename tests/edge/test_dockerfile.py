"""The image is what its file says, as far as that can be seen without a container engine.

The file is read as an engine reads it: instructions with continued lines, the folders that .dockerignore lets in. Its
steps for Python run as they are printed, in folders of the test in place of those of the image.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from pathlib import Path

import pytest

from edge.cli import build_parser
from tests.docs.debian import unknown

ROOT = Path(__file__).parents[2]
LINES = (ROOT / "Dockerfile").read_text(encoding="utf-8")
KEY = "a-key-of-the-test-0123456789"


def instructions() -> list[tuple[str, str]]:
    """(name, rest) of each, in order; comments are left out and continued lines are put together."""
    text = "\n".join(line for line in LINES.splitlines() if not line.startswith("#"))
    found = [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in found)]


def values(name: str) -> list[str]:
    return [rest for found, rest in instructions() if found == name]


def context() -> list[Path]:
    """What is sent to an engine: the last pattern of .dockerignore that fits a path, or a parent, decides."""
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]

    def kept(path: str) -> bool:
        keep = True
        parts = path.split("/")
        for pattern in patterns:
            bare = pattern.removeprefix("!")
            names = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
            if bare.startswith("**/"):
                names, bare = parts, bare.removeprefix("**/")
            if any(fnmatch.fnmatchcase(name, bare) for name in names):
                keep = pattern.startswith("!")
        return keep

    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return [Path(name) for name in listed if kept(name)]


def test_what_is_sent_is_what_is_installed() -> None:
    names = {path.as_posix() for path in context()}
    assert {"pyproject.toml", "LICENSE", "README.md", "edge/cli.py", "edge/py.typed", "runtime/llm.py"} <= names
    assert {name.partition("/")[0] for name in names} == {
        "LICENSE", "README.md", "edge", "export", "profiles", "pyproject.toml", "runtime"
    }  # fmt: skip
    assert {"edge/export", "edge/profiles", "edge/runtime"} <= names, "the links are files of the checkout"
    assert not [name for name in names if name.endswith((".pyc", ".key")) or "__pycache__" in name]


def test_it_is_made_of_debian_and_pypi() -> None:
    assert {image.split()[0] for image in values("FROM")} == {"debian:bookworm-slim"}
    assert not re.search(r"https?://(?!127\.0\.0\.1)", " ".join(rest for name, rest in instructions() if name == "RUN"))
    (extras,) = [rest.partition("=")[2].split(",") for rest in values("ARG")]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(extras) <= project["optional-dependencies"].keys() - {"export", "profile", "dev"}
    assert {"server", "onnx", "openvino"} <= set(extras)


def test_its_server_is_not_root_and_its_command_parses() -> None:
    order = [name for name, _ in instructions()]
    assert values("USER") == ["10001"]
    assert order.index("USER") < order.index("ENTRYPOINT")
    assert "useradd --uid 10001" in " ".join(values("RUN"))
    program, *arguments = json.loads(values("ENTRYPOINT")[0])
    assert program == "/opt/edge/bin/edge"
    given = build_parser().parse_args([*arguments, "--alias", "glm"])
    assert (given.verb, given.bundle, given.host) == ("serve", "/bundle", "0.0.0.0")
    assert given.api_key_file == "/run/secrets/edge-key"
    assert values("EXPOSE") == ["8000"]


@pytest.mark.slow
def test_debian_has_the_packages() -> None:
    steps = [part.split() for step in values("RUN") for part in step.split("&&")]
    installed = [words for words in steps if words[:2] == ["apt-get", "install"]]
    names = {word for words in installed for word in words[2:] if not word.startswith("-")}
    assert names == {"python3", "python3-venv"}
    assert unknown(names) == set()


def health_check(port: int) -> list[str]:
    (found,) = values("HEALTHCHECK")
    program, *arguments = json.loads(found.partition("CMD ")[2])
    assert program == "/opt/edge/bin/python"
    assert "127.0.0.1:8000" in arguments[-1]
    return [argument.replace(":8000", f":{port}") for argument in arguments]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="the image is Linux's")
def test_its_steps_make_a_server(demo_bundle: Path, tmp_path: Path) -> None:
    """From the files that are sent, in an environment that has nothing else; of the network it needs PyPI alone."""
    source, environment = tmp_path / "src", tmp_path / "edge"
    for path in context():
        target = source / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / path).is_symlink():
            target.symlink_to((ROOT / path).readlink())
        else:
            shutil.copy(ROOT / path, target)
    (step,) = [step for step in values("RUN") if "pip install" in step]
    (extras,) = values("ARG")
    step = step.replace("/opt/edge", str(environment)).replace("/src", str(source))
    step = re.sub(r"\bpython3\b", str(Path(sys.base_prefix) / "bin" / "python3"), step, count=1)
    subprocess.run(
        ["/bin/sh", "-ec", step], env={"EXTRAS": extras.partition("=")[2], "PATH": "/usr/bin:/bin"}, check=True
    )
    key = tmp_path / "key.txt"
    key.write_text(f"{KEY}\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    replaced = {"/bundle": str(demo_bundle), "/run/secrets/edge-key": str(key)}
    command = [
        replaced.get(word, word.replace("/opt/edge", str(environment))) for word in json.loads(values("ENTRYPOINT")[0])
    ]
    asked = [str(environment / "bin" / "python"), *health_check(port)]
    assert subprocess.run(asked, capture_output=True, check=False).returncode, "nobody is there yet"
    with subprocess.Popen([*command, "--port", str(port)], cwd="/", env={"HOME": str(tmp_path)}) as server:
        try:
            end = time.monotonic() + 120
            while subprocess.run(asked, capture_output=True, check=False).returncode:
                assert server.poll() is None
                assert time.monotonic() < end
                time.sleep(0.5)
            body = json.dumps({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}).encode()
            headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
            request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", body, headers)
            with urllib.request.urlopen(request, timeout=60) as answer:
                assert json.load(answer)["usage"]["completion_tokens"] == 4
            server.terminate()
            assert server.wait(30) == 0
        finally:
            server.kill()
