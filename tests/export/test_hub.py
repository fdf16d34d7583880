"""The hub's own client against a small hub on 127.0.0.1: what is asked for, what arrives, what is said when not."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants, utils

from edge.export.checkpoint.hub import config_of, download, find_downloaded
from edge.export.checkpoint.sources import is_hub_id
from edge.runtime.errors import CheckpointError

COMMIT, OLD_COMMIT = "c" * 40, "d" * 40
CHUNK = 1000  # bytes; what the client writes at a time here
WEIGHTS = bytes(range(256)) * 20  # 5 chunks and a bit
BESIDE = {
    "config.json": b"{}",
    "generation_config.json": b'{"eos_token_id": 1}',
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer.model": b"sentencepiece",
    "tokenizer_config.json": b'{"a": 1}',
    "special_tokens_map.json": b'{"b": 2}',
    "added_tokens.json": b'{"c": 3}',
    "chat_template.jinja": b"{{ messages }}",
    "chat_template.json": b'{"d": 4}',
}
UNWANTED = {
    "README.md": b"# Model",
    ".gitattributes": b"*.bin filter=lfs",
    "pytorch_model.bin": b"\x80\x04.",
    "adapter_model.safetensors": b"an adapter",
    "onnx/model.safetensors": b"in a folder",
    "tokenizer/tokenizer.json": b"in a folder too",
}
SHARDS = {
    "model-00001-of-00002.safetensors": WEIGHTS,
    "model-00002-of-00002.safetensors": WEIGHTS[::-1],
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {f"t{i}": f"model-0000{i}-of-00002.safetensors" for i in (1, 2)}}
    ).encode(),
}
SINGLE = {**BESIDE, "model.safetensors": WEIGHTS}


@dataclass
class Repository:
    files: dict[str, bytes]
    revisions: dict[str, str] = field(default_factory=lambda: {"main": COMMIT, COMMIT: COMMIT})
    token: str | None = None  # without it the repository is not there
    gated: bool = False  # listed for everyone, files for none
    moves: list[dict[str, str]] = field(default_factory=list)  # what changes in `revisions` after each listing


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]  # names in lower case


class Hub(ThreadingHTTPServer):
    """Repositories by name, and what was asked for."""

    daemon_threads = True
    request_queue_size = 64  # the client connects from eight threads at once

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.breaks: dict[str, int] = {}  # file: bytes after which its next response breaks off
        self.truncated: dict[str, int] = {}  # file: bytes that every response has, as if they were all
        self.status: int | None = None  # what every request is answered with

    def files_asked(self, method: str = "GET") -> list[str]:
        resolved = [r.path.split("/resolve/")[1] for r in self.requests if r.method == method and "/resolve/" in r.path]
        return sorted(path.split("/", 1)[1] for path in resolved)


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(Request(self.command, path, {k.lower(): v for k, v in self.headers.items()}))
        if self.server.status:
            return self.answer(self.server.status)
        listing = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/(.+)", path)
        resolve = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        match = listing or resolve
        repository = self.server.repositories.get(match[1]) if match else None
        if repository is None or match is None or not self.may_read(repository):
            return self.answer(404, {"X-Error-Code": "RepoNotFound"})
        commit = repository.revisions.get(match[3] if listing else match[2])
        if commit is None:
            return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        if listing:
            siblings = [sibling(name, data) for name, data in repository.files.items()]
            tree = [{"type": "file", "path": s["rfilename"], "size": s["size"], "oid": s["blobId"]} for s in siblings]
            if match[2] == "revision" and repository.moves:
                repository.revisions.update(repository.moves.pop(0))
            found = tree if match[2] == "tree" else {"id": match[1], "sha": commit, "siblings": siblings}
            return self.answer(200, {"Content-Type": "application/json"}, json.dumps(found).encode())
        if repository.gated:
            return self.answer(403, {"X-Error-Code": "GatedRepo"})
        if match[3] not in repository.files:
            return self.answer(404, {"X-Error-Code": "EntryNotFound"})
        self.send_file(match[3], repository.files[match[3]], commit)

    do_HEAD = do_GET

    def may_read(self, repository: Repository) -> bool:
        return repository.token is None or self.headers["Authorization"] == f"Bearer {repository.token}"

    def send_file(self, name: str, data: bytes, commit: str) -> None:
        size, start = len(data), 0
        headers = {"ETag": f'"{blob(data)}"', "X-Repo-Commit": commit, "X-Linked-Size": str(size)}
        if self.command == "GET" and name in self.server.truncated:
            data = data[: self.server.truncated[name]]
        elif asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(asked[1])
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        stop = self.server.breaks.pop(name, size) if self.command == "GET" else size
        self.answer(206 if start else 200, headers, data[start:stop], length=len(data) - start)

    def answer(
        self, status: int, headers: dict[str, str] | None = None, body: bytes = b"", length: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def blob(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def sibling(name: str, data: bytes) -> dict[str, Any]:
    return {"rfilename": name, "size": len(data), "blobId": blob(data)}


@pytest.fixture
def hub(client: None) -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The client as it is without the user's settings: no token, no proxy, nothing of theirs to write to."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    for name in ("HF_HUB_CACHE", "HF_XET_CACHE", "HF_TOKEN_PATH"):
        monkeypatch.setattr(constants, name, str(tmp_path / "home" / name))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CHUNK)
    close_connections()
    yield
    close_connections()
    assert not (tmp_path / "home").exists()


def close_connections() -> None:
    """Connections outlive a request, and before 1.0 remember whether the client was offline."""
    reset = "reset_sessions" if hasattr(utils, "reset_sessions") else "close_session"
    getattr(utils, reset)()


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refusal(source: str, **settings: Any) -> str:
    """What `download` says; one line that names the source."""
    with pytest.raises(CheckpointError) as caught:
        download(source, **settings)
    message = str(caught.value)
    assert message.startswith(f"{source}: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "source",
    [
        "THUDM/glm-4-9b-chat-hf",
        "zai-org/GLM-4-9B-0414",
        "a/b_c.d",
        "org/name@v1.0",
        "org/name@refs/pr/3",
        f"org/name@{COMMIT}",
        "org/name/file.gguf",
        "org/name/Q8_0/x-00001-of-00002.gguf@main",
    ],
)
def test_hub_ids(source: str) -> None:
    assert is_hub_id(source)


@pytest.mark.parametrize(
    "source",
    [
        "",
        "name",
        "org/",
        "/org/name",
        "./org/name",
        "../name",
        "org/..",
        "~/models",
        "~user/name",
        ".org/name",
        "org/.name",
        r"org\name",
        r"C:\models",
        "C:/models",
        "org/name/file.safetensors",
        "org/name/",
        "org/name/../x.gguf",
        "models/x.gguf",
        "org/na--me",
        "org/na..me",
        "org/name.git",
        "org/name@",
        "org/name@../x",
        "org/name@a@b",
        "org/na me",
        "org/name\n",
        "org/näme",
        "https://huggingface.co/org/name",
    ],
)
def test_no_hub_ids(source: str) -> None:
    assert not is_hub_id(source)


def test_no_hub_id_is_refused() -> None:
    assert "not a hub id; expected org/name" in refusal("~/name")
    for source in ("org/name.git", f"org/{'n' * 97}"):  # what only the client objects to
        assert re.search(r"not a hub id \(.+\); expected org/name", refusal(source))


def test_only_needed_files(hub: Hub, cache: Path) -> None:
    hub.repositories["org/name"] = Repository({**BESIDE, **SHARDS, **UNWANTED})
    folder = download("org/name", endpoint=hub.url, cache=cache)
    assert contents(folder) == {**BESIDE, **SHARDS}
    assert hub.files_asked("GET") == hub.files_asked("HEAD") == sorted({**BESIDE, **SHARDS})


def test_named_templates_are_needed(hub: Hub, cache: Path) -> None:
    name = "additional_chat_templates/tool_use.jinja"
    hub.repositories["org/name"] = Repository({**SINGLE, name: b"{{ tools }}", "templates/other.jinja": b""})
    folder = download("org/name", endpoint=hub.url, cache=cache)
    assert (folder / name).read_bytes() == b"{{ tools }}"
    assert not (folder / "templates").exists()


def test_weights_in_two_layouts(hub: Hub, cache: Path) -> None:
    """One of them is enough: the one transformers loads."""
    hub.repositories["org/index"] = Repository({**BESIDE, **SHARDS, "consolidated.safetensors": WEIGHTS})
    hub.repositories["org/single"] = Repository({**SINGLE, "consolidated.safetensors": WEIGHTS})
    hub.repositories["org/other"] = Repository({**BESIDE, "a.safetensors": WEIGHTS, "b.safetensors": WEIGHTS[1:]})
    assert contents(download("org/index", endpoint=hub.url, cache=cache)) == {**BESIDE, **SHARDS}
    assert contents(download("org/single", endpoint=hub.url, cache=cache)) == SINGLE
    assert {"a.safetensors", "b.safetensors"} < contents(download("org/other", endpoint=hub.url, cache=cache)).keys()


def test_second_download_fetches_nothing(hub: Hub, cache: Path) -> None:
    hub.repositories["org/name"] = Repository({**BESIDE, **SHARDS})
    first = download("org/name", endpoint=hub.url, cache=cache)
    hub.requests.clear()
    assert download("org/name", endpoint=hub.url, cache=cache) == first
    assert hub.requests
    assert hub.files_asked("GET") == hub.files_asked("HEAD") == []


def test_revision(hub: Hub, cache: Path) -> None:
    hub.repositories["org/name"] = Repository(SINGLE, {"refs/pr/1": OLD_COMMIT, OLD_COMMIT: OLD_COMMIT})
    folder = download("org/name@refs/pr/1", endpoint=hub.url, cache=cache)
    assert folder.name == OLD_COMMIT
    assert download(f"org/name@{OLD_COMMIT}", endpoint=hub.url, cache=cache) == folder


def test_requests_tell_nothing_about_other_packages(hub: Hub, cache: Path) -> None:
    hub.repositories["org/name"] = Repository(SINGLE)
    download("org/name", endpoint=hub.url, cache=cache)
    assert all("torch" not in request.headers["user-agent"] for request in hub.requests)
    assert not [request for request in hub.requests if "telemetry" in request.path]


@pytest.mark.parametrize("terminal", [False, True])
def test_bars_only_on_a_terminal(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(stderr, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(sys, "stderr", stderr)
    hub.repositories["org/name"] = Repository(SINGLE)
    download("org/name", endpoint=hub.url, cache=cache)
    assert ("Fetching" in stderr.getvalue()) == terminal
    assert terminal or not stderr.getvalue()


def test_broken_download_goes_on(hub: Hub, cache: Path) -> None:
    hub.repositories["org/name"] = Repository(SINGLE)
    hub.breaks["model.safetensors"] = 2 * CHUNK + 10
    with contextlib.suppress(CheckpointError):  # newer clients go on by themselves
        download("org/name", endpoint=hub.url, cache=cache)
    folder = download("org/name", endpoint=hub.url, cache=cache)
    ranges = [r.headers["range"] for r in hub.requests if r.method == "GET" and "range" in r.headers]
    assert ranges == [f"bytes={2 * CHUNK}-"]
    assert contents(folder) == SINGLE


def test_truncated_file(hub: Hub, cache: Path) -> None:
    hub.repositories["org/name"] = Repository(SINGLE)
    hub.truncated["model.safetensors"] = 3000
    message = refusal("org/name", endpoint=hub.url, cache=cache)
    assert re.search(r"broke off \(.*size 5120 but has size 3000 \(.*model.safetensors\)", message)
    assert not list(cache.rglob("model.safetensors"))
    hub.truncated.clear()
    assert contents(download("org/name", endpoint=hub.url, cache=cache)) == SINGLE


def test_damaged_cache(hub: Hub, cache: Path) -> None:
    hub.repositories["org/name"] = Repository(SINGLE)
    blob_path = (download("org/name", endpoint=hub.url, cache=cache) / "model.safetensors").resolve()
    os.truncate(blob_path, 7)
    message = refusal("org/name", endpoint=hub.url, cache=cache)
    assert f"model.safetensors is 7 bytes in the cache, the hub lists 5,120; delete {blob_path} and retry" in message
    blob_path.unlink()
    assert contents(download("org/name", endpoint=hub.url, cache=cache)) == SINGLE


def test_token(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["org/name"] = Repository(SINGLE, token="hf_secret")
    message = refusal("org/name", endpoint=hub.url, cache=cache)
    assert f"no such local path, and no repository {hub.url}/org/name, or a private one" in message
    assert "HF_TOKEN" in message
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert contents(download("org/name", endpoint=hub.url, cache=cache)) == SINGLE


@pytest.mark.parametrize("status", [401, 403, 404])
def test_no_access(hub: Hub, cache: Path, status: int) -> None:
    hub.status = status
    assert "or a private one" in refusal("org/name", endpoint=hub.url, cache=cache)


def test_gated(hub: Hub, cache: Path) -> None:
    hub.repositories["org/name"] = Repository(SINGLE, gated=True)
    message = refusal("org/name", endpoint=hub.url, cache=cache)
    assert f"gated; accept its terms at {hub.url}/org/name and set HF_TOKEN" in message


def test_unknown_revision(hub: Hub, cache: Path) -> None:
    hub.repositories["org/name"] = Repository(SINGLE)
    message = refusal("org/name@v2", endpoint=hub.url, cache=cache)
    assert "the repository has no revision v2; give a branch, tag or commit" in message


def test_gguf_only(hub: Hub, cache: Path) -> None:
    files = {f"Q{i}.gguf": WEIGHTS for i in range(1, 8)}
    hub.repositories["org/name"] = Repository({**BESIDE, **files})
    message = refusal("org/name", endpoint=hub.url, cache=cache)
    assert "(Q1.gguf, Q2.gguf, Q3.gguf, Q4.gguf, Q5.gguf and 2 more)" in message
    assert message.endswith("give one of them as org/name/FILE.gguf")
    assert not hub.files_asked()


@pytest.mark.parametrize("pickle", ["pytorch_model.bin", "model.pt"])
def test_pickles_only(hub: Hub, cache: Path, pickle: str) -> None:
    hub.repositories["org/name"] = Repository({**BESIDE, pickle: WEIGHTS, "adapter_model.safetensors": b"an adapter"})
    message = refusal("org/name", endpoint=hub.url, cache=cache)
    assert f"only pickled weights ({pickle}), and unpickling can run code" in message
    assert not hub.files_asked()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, "no weights; expected config.json and *.safetensors, or GGUF files"),
        (UNWANTED.keys() - {"pytorch_model.bin"}, "no weights"),
        ({"model.safetensors"}, "*.safetensors but no config.json"),
        ({"config.json", *SHARDS} - {"model-00002-of-00002.safetensors"}, "names model-00002-of-00002.safetensors"),
    ],
)
def test_incomplete_repository(hub: Hub, cache: Path, files: set[str], expected: str) -> None:
    all_files = {**SINGLE, **SHARDS, **UNWANTED}
    hub.repositories["org/name"] = Repository({name: all_files[name] for name in sorted(files)})
    assert expected in refusal("org/name", endpoint=hub.url, cache=cache)
    assert not [name for name in hub.files_asked() if name.endswith(".safetensors")]


def test_gguf_file(hub: Hub, cache: Path) -> None:
    files = {"Q4.gguf": b"GGUF four", "sub/Q8.gguf": b"GGUF eight", "tokenizer.json": b"{}"}
    hub.repositories["org/name"] = Repository(files)
    assert download("org/name/Q4.gguf", endpoint=hub.url, cache=cache).read_bytes() == b"GGUF four"
    assert hub.files_asked() == ["Q4.gguf"]
    assert download("org/name/sub/Q8.gguf@main", endpoint=hub.url, cache=cache).read_bytes() == b"GGUF eight"
    message = refusal("org/name/Q5.gguf", endpoint=hub.url, cache=cache)
    assert "the repository has no Q5.gguf; expected one of its GGUF files: Q4.gguf, sub/Q8.gguf" in message


def test_split_gguf(hub: Hub, cache: Path) -> None:
    parts = {f"m-0000{i}-of-00003.gguf": f"GGUF {i}".encode() for i in (1, 2, 3)}
    hub.repositories["org/name"] = Repository({**parts, "m-00001-of-00002.gguf": b"GGUF of another"})
    file = download("org/name/m-00002-of-00003.gguf", endpoint=hub.url, cache=cache)
    assert file.name == "m-00001-of-00003.gguf"
    assert contents(file.parent) == parts
    message = refusal("org/name/m-00001-of-00002.gguf", endpoint=hub.url, cache=cache)
    assert "the repository has no m-00002-of-00002.gguf" in message


@pytest.fixture(params=["no connection", "offline", "unavailable"])
def outage(request: pytest.FixtureRequest, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """Cuts the client off when it is called; returns what a message has to say about it."""

    def cut() -> str:
        close_connections()
        if request.param == "offline":
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
            return "HF_HUB_OFFLINE is set"
        if request.param == "unavailable":
            hub.status = 503
            return "503"
        hub.shutdown()
        hub.server_close()
        return f"{hub.url} cannot be reached ([Errno {errno.ECONNREFUSED}] {os.strerror(errno.ECONNREFUSED)})"

    return cut


def test_outage_and_nothing_cached(hub: Hub, cache: Path, outage: Callable[[], str]) -> None:
    hub.repositories["org/name"] = Repository(SINGLE)
    reason = outage()
    for source in ("org/name", "org/name/Q4.gguf"):
        message = refusal(source, endpoint=hub.url, cache=cache)
        assert reason in message
        assert f"{cache} holds no copy of revision main" in message
    assert not cache.exists()


def test_outage_and_all_cached(hub: Hub, cache: Path, outage: Callable[[], str]) -> None:
    hub.repositories["org/name"] = Repository({**BESIDE, **SHARDS})
    hub.repositories["org/ggufs"] = Repository({"sub/Q4.gguf": b"GGUF"})
    sources = ("org/name", "org/name@main", f"org/name@{COMMIT}", "org/ggufs/sub/Q4.gguf")
    online = [download(source, endpoint=hub.url, cache=cache) for source in sources]
    outage()
    assert [download(source, endpoint=hub.url, cache=cache) for source in sources] == online


def test_outage_and_part_cached(hub: Hub, cache: Path, outage: Callable[[], str]) -> None:
    hub.repositories["org/name"] = Repository({**BESIDE, **SHARDS})
    (download("org/name", endpoint=hub.url, cache=cache) / "model-00002-of-00002.safetensors").unlink()
    reason = outage()
    message = refusal("org/name", endpoint=hub.url, cache=cache)
    assert reason in message
    assert "holds only a part of it" in message


def test_weights_come_last(hub: Hub, cache: Path) -> None:
    """So a cache that has the weights has everything, however the download ended."""
    hub.repositories["org/name"] = Repository(SINGLE)
    hub.truncated["tokenizer.json"] = 3
    refusal("org/name", endpoint=hub.url, cache=cache)
    assert "model.safetensors" not in hub.files_asked("HEAD")


def test_branch_moves_meanwhile(hub: Hub, cache: Path) -> None:
    """Files of two commits are never mixed: what moves after the second listing does not count."""
    revisions = {"main": OLD_COMMIT, OLD_COMMIT: OLD_COMMIT, COMMIT: COMMIT}
    hub.repositories["org/late"] = Repository(SINGLE, dict(revisions), moves=[{}, {"main": COMMIT}])
    folder = download("org/late", endpoint=hub.url, cache=cache)
    assert folder.name == OLD_COMMIT
    assert contents(folder) == SINGLE
    hub.repositories["org/early"] = Repository(SINGLE, dict(revisions), moves=[{"main": COMMIT}])
    assert "config.json did not arrive; retry" in refusal("org/early", endpoint=hub.url, cache=cache)
    assert download("org/early", endpoint=hub.url, cache=cache).name == COMMIT


def test_no_space_for_it(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["org/name"] = Repository(SINGLE)
    beside, weights = sum(map(len, BESIDE.values())), len(WEIGHTS)
    free = beside + weights - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 0, free))
    assert contents(download("org/name", endpoint=hub.url, cache=cache)) == SINGLE
    hub.repositories["org/other"] = Repository({**BESIDE, "model.safetensors": WEIGHTS * 2})
    message = refusal("org/other", endpoint=hub.url, cache=cache)
    assert f"10,240 bytes to download and {free:,} free at {cache}; free some space, or set HF_HOME" in message
    # What has arrived of a file, and a file that another revision has already, take no more.
    incomplete = cache / "models--org--other" / "blobs" / f"{blob(WEIGHTS * 2)}.incomplete"
    incomplete.write_bytes((WEIGHTS * 2)[: 10_240 - free])
    assert download("org/other", endpoint=hub.url, cache=cache)
    free = 0
    hub.repositories["org/name"].revisions.update({"v2": OLD_COMMIT, OLD_COMMIT: OLD_COMMIT})
    assert contents(download("org/name@v2", endpoint=hub.url, cache=cache)) == SINGLE


def test_disk_full_meanwhile(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **settings: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    hub.repositories["org/name"] = Repository(SINGLE)
    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    assert f"the disk is full at {cache}; free some space" in refusal("org/name", endpoint=hub.url, cache=cache)


def test_cache_cannot_be_written(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["org/name"] = Repository(SINGLE)
    (tmp_path / "file").touch()
    message = refusal("org/name", endpoint=hub.url, cache=tmp_path / "file" / "cache")
    assert re.search(r"cache cannot be written \(Not a directory\); set HF_HOME", message)


def test_what_was_downloaded_is_found_without_asking(hub: Hub, cache: Path) -> None:
    hub.repositories["org/name"] = Repository({**BESIDE, **SHARDS})
    hub.repositories["org/ggufs"] = Repository({"sub/Q4.gguf": b"GGUF"})
    sources = ("org/name", f"org/name@{COMMIT}", "org/ggufs/sub/Q4.gguf")
    online = [download(source, endpoint=hub.url, cache=cache) for source in sources]
    hub.requests.clear()
    assert [find_downloaded(source, cache=cache) for source in sources] == online
    (online[0] / "model-00002-of-00002.safetensors").unlink()
    for source, what in (("org/name", "holds only a part of it"), ("org/other", "holds no copy of revision main")):
        with pytest.raises(
            CheckpointError, match=f"{source}: .*nothing is downloaded .*{what}.*`edge export` downloads"
        ):
            find_downloaded(source, cache=cache)
    with pytest.raises(CheckpointError, match=r"not a hub id \(.+\); expected org/name"):
        find_downloaded(f"org/{'n' * 97}", cache=cache)
    assert hub.requests == []


@pytest.mark.parametrize(
    "index",
    [
        b"[]",
        b"{",
        b"{}",
        b'{"weight_map": []}',
        b'{"weight_map": {"a": 1}}',
        b'{"weight_map": {"a": "../x.safetensors"}}',
    ],
)
def test_index_that_is_none(hub: Hub, cache: Path, index: bytes) -> None:
    """Nothing that it names is asked for."""
    hub.repositories["org/name"] = Repository({**BESIDE, **SHARDS, "model.safetensors.index.json": index})
    with pytest.raises(CheckpointError, match=r"index\.json.*; delete .* and retry"):
        download("org/name", endpoint=hub.url, cache=cache)
    assert not [name for name in hub.files_asked() if name.endswith(".safetensors")]


def test_a_config_is_fetched_without_the_weights(hub: Hub, cache: Path) -> None:
    files = {"config.json": b"{}", "model.safetensors": b"x" * 1000, "tokenizer.json": b"{}"}
    hub.repositories["org/name"] = Repository(files)
    path = config_of("org/name", endpoint=hub.url, cache=cache)
    assert path.read_bytes() == b"{}"
    assert hub.files_asked() == ["config.json"]


def test_a_config_that_is_not_there_is_told(hub: Hub, cache: Path) -> None:
    hub.repositories["org/name"] = Repository({"model.gguf": b"x"})
    for source, said in (("org/name", "no config.json"), ("org/name/model.gguf", "cannot be looked at before")):
        with pytest.raises(CheckpointError, match=said):
            config_of(source, endpoint=hub.url, cache=cache)
    assert hub.files_asked() == []


def test_a_config_without_a_hub_is_an_error_of_one_line(cache: Path, client: None) -> None:
    with pytest.raises(CheckpointError, match="cannot be reached") as raised:
        config_of("org/name", endpoint="http://127.0.0.1:9", cache=cache)
    assert "\n" not in str(raised.value)
