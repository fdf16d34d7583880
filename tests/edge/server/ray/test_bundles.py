"""A bundle is fetched once, and only the one that was meant."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import copytree

import pytest

from edge.runtime.bundle import open_bundle
from edge.runtime.errors import BundleError

pytest.importorskip("ray")

from edge.server.ray import bundles
from edge.server.ray.bundles import BundleSource, Shelf, sha256_of_manifest


class Counting(SimpleHTTPRequestHandler):
    asked: list[str]

    def do_GET(self) -> None:  # its name
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:  # its name
        pass


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(bundles, "cache_folder", lambda: tmp_path / "kept")
    return tmp_path / "kept"


@pytest.fixture
def folder(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(copytree(tiny_bundle, tmp_path / "there"))


@pytest.fixture
def url(folder: Path) -> Iterator[str]:
    Counting.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Counting, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_node_fetches_a_bundle_once_and_whole(folder: Path, url: str, tmp_path: Path) -> None:
    source = BundleSource(str(tmp_path / "nowhere"), url, sha256_of_manifest(folder))
    found = source.here()
    open_bundle(found).check_hashes()
    asked = len(Counting.asked)
    assert asked == 1 + len(open_bundle(folder).manifest.files)
    assert source.here() == found
    assert len(Counting.asked) == asked


def test_a_node_that_has_the_bundle_fetches_nothing(folder: Path, url: str) -> None:
    assert BundleSource(str(folder), url, sha256_of_manifest(folder)).here() == folder
    assert Counting.asked == []


def test_another_bundle_at_the_path_is_not_taken_for_it(folder: Path, url: str, tmp_path: Path) -> None:
    other = Path(copytree(folder, tmp_path / "other"))
    (other / "manifest.json").write_text("{}")
    found = BundleSource(str(other), url, sha256_of_manifest(folder)).here()
    assert found != other
    open_bundle(found).check_hashes()


@pytest.mark.parametrize("name", ["manifest.json", "openvino_model.bin"])
def test_what_was_changed_on_its_way_is_refused(folder: Path, url: str, name: str, tmp_path: Path, kept: Path) -> None:
    sha256 = sha256_of_manifest(folder)
    changed = json.loads((folder / "manifest.json").read_text())
    if name == "manifest.json":
        changed["recipe"] = "another"
        (folder / name).write_text(json.dumps(changed))
    else:
        raw = bytearray((folder / name).read_bytes())
        raw[0] ^= 1
        (folder / name).write_bytes(raw)
    with pytest.raises(BundleError, match="another than"):
        BundleSource(str(tmp_path / "nowhere"), url, "0" * 64 if name == "manifest.json" else sha256).here()
    assert [path.suffix for path in (kept / "fetched").iterdir()] == [".lock"]


def test_a_url_that_is_none_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="http"):
        BundleSource(str(tmp_path), f"file://{folder}", "1" * 64).here()


def test_a_shelf_hands_out_the_bundles_files_alone(folder: Path) -> None:
    (folder / "secret").write_text("of somebody else")
    shelf = Shelf(str(folder))
    assert shelf.read("manifest.json", 0) == (folder / "manifest.json").read_bytes()
    assert shelf.read("manifest.json", 1 << 30) == b""
    for name in ("secret", "../there/manifest.json", "/etc/hostname"):
        with pytest.raises(ValueError, match="no file of the bundle"):
            shelf.read(name, 0)
