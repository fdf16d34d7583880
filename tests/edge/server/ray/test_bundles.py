"""A bundle is fetched once, and only the one that was meant."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree

import pytest

from edge.runtime.bundle import open_bundle
from edge.runtime.errors import BundleError, OutputError, SettingsError, UpdateError

pytest.importorskip("ray")

from edge.server.ray import bundles
from edge.server.ray.bundles import BundleSource, Shelf, fetchable, sha256_of_manifest
from tests.edge.update.web import Handler, Web, serving


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(bundles, "cache_folder", lambda: tmp_path / "kept")
    return tmp_path / "kept"


@pytest.fixture
def folder(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(copytree(tiny_bundle, tmp_path / "there"))


@pytest.fixture
def web(folder: Path) -> Iterator[Web]:
    with serving(folder) as found:
        yield found


def test_a_node_fetches_a_bundle_once_and_whole(folder: Path, web: Web, tmp_path: Path) -> None:
    source = BundleSource(str(tmp_path / "nowhere"), web.url, sha256_of_manifest(folder))
    found = source.here()
    open_bundle(found).check_hashes()
    assert sorted(name for name, _ in web.asked) == sorted(["manifest.json", *open_bundle(folder).manifest.files])
    asked = len(web.asked)
    assert source.here() == found
    assert len(web.asked) == asked


def test_a_node_that_has_the_bundle_fetches_nothing(folder: Path, web: Web) -> None:
    assert BundleSource(str(folder), web.url, sha256_of_manifest(folder)).here() == folder
    assert web.asked == []


def test_another_bundle_at_the_path_is_not_taken_for_it(folder: Path, web: Web, tmp_path: Path) -> None:
    other = Path(copytree(folder, tmp_path / "other"))
    (other / "manifest.json").write_text("{}")
    found = BundleSource(str(other), web.url, sha256_of_manifest(folder)).here()
    assert found != other
    open_bundle(found).check_hashes()


@pytest.mark.parametrize("name", ["manifest.json", "openvino_model.bin"])
def test_what_was_changed_on_its_way_is_refused(
    folder: Path, tiny_bundle: Path, web: Web, name: str, tmp_path: Path, kept: Path
) -> None:
    sha256 = sha256_of_manifest(folder)
    changed = json.loads((folder / "manifest.json").read_text())
    if name == "manifest.json":
        changed["recipe"] = "another"
        (folder / name).write_text(json.dumps(changed))
    else:
        raw = bytearray((folder / name).read_bytes())
        raw[0] ^= 1
        (folder / name).write_bytes(raw)
    source = BundleSource(str(tmp_path / "nowhere"), web.url, sha256)
    with pytest.raises((BundleError, UpdateError), match=r"manifest is another|another sha256"):
        source.here()
    left = {path.name for path in (kept / "fetched").iterdir()}
    assert left == {f"{sha256}.lock"} | ({f"{sha256}.incoming"} if name != "manifest.json" else set())
    if name != "manifest.json":  # the next attempt goes on with the files that came
        (folder / name).write_bytes((tiny_bundle / name).read_bytes())
        web.asked.clear()
        open_bundle(source.here()).check_hashes()
        assert name in {asked for asked, _ in web.asked} < set(open_bundle(folder).manifest.files) | {"manifest.json"}
        assert {path.name for path in (kept / "fetched").iterdir()} == {f"{sha256}.lock", sha256}


def test_a_server_that_sends_us_elsewhere_is_not_followed(folder: Path, web: Web, tmp_path: Path) -> None:
    def elsewhere(handler: Handler, _content: bytes, _start: int) -> None:
        handler.head(302, 0, Location=f"http://localhost:{web.port}/r/manifest.json")

    web.answers["manifest.json"] = elsewhere
    with pytest.raises(UpdateError, match="sent us on to the host 'localhost', which was not named; name the URL"):
        BundleSource(str(tmp_path / "nowhere"), web.url, sha256_of_manifest(folder)).here()
    assert len(web.asked) == 1


def test_a_source_that_is_none_is_refused_at_once(folder: Path) -> None:
    with pytest.raises(SettingsError, match=r"source is 'ftp://files.example/b'"):
        fetchable(str(folder), "ftp://files.example/b")


def test_a_shelf_hands_out_the_bundles_files_alone(folder: Path) -> None:
    (folder / "secret").write_text("of somebody else")
    shelf = Shelf(str(folder))
    assert shelf.read("manifest.json", 0) == (folder / "manifest.json").read_bytes()
    assert shelf.read("manifest.json", 1 << 30) == b""
    for name in ("secret", "../there/manifest.json", "/etc/hostname"):
        with pytest.raises(ValueError, match="no file of the bundle"):
            shelf.read(name, 0)


@pytest.mark.parametrize("suffix", ["", ".incoming"])
def test_a_file_of_others_in_the_bundles_place_stays(
    folder: Path, web: Web, tmp_path: Path, kept: Path, suffix: str
) -> None:
    sha256 = sha256_of_manifest(folder)
    strange = kept / "fetched" / f"{sha256}{suffix}"
    strange.parent.mkdir(parents=True)
    strange.write_text("mine")
    with pytest.raises(OutputError, match="in the way"):
        BundleSource(str(tmp_path / "nowhere"), web.url, sha256).here()
    assert strange.read_text() == "mine"
    assert {path.name for path in strange.parent.iterdir()} == {strange.name, f"{sha256}.lock"}
