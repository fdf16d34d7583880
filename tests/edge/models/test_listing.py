"""`edge list` and `edge show`: what a user has, damaged ones included, told from manifests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edge import cli
from edge.models.hub_cache import find_cached
from edge.models.listing import all_bundles, unfinished
from edge.models.recent import remember

Put = Callable[[str], Path]


def listed(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, object]]:
    capsys.readouterr()
    assert cli.main(["list", "--json"]) == 0
    return {bundle["name"]: bundle for bundle in json.loads(capsys.readouterr().out)["bundles"]}


def test_nothing_yet(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0
    assert capsys.readouterr().out == (
        f"no bundles yet; make one with `edge export SOURCE`, or try `edge demo`\nnames are in {models}\n"
    )
    assert listed(capsys) == {}


def test_bundles_of_all_kinds(put: Put, tmp_path: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, damaged, cut = put("good"), put("damaged"), put("cut")
    (damaged / "manifest.json").write_text("{")
    with (cut / "openvino_model.bin").open("ab") as file:
        file.write(b"x")
    elsewhere = Path(shutil.copytree(tiny_bundle, tmp_path / "elsewhere"))
    remember(elsewhere)
    remember(good)
    found = listed(capsys)
    assert list(found) == ["cut", "damaged", "good", str(elsewhere)]
    assert found["good"]["problem"] is None
    assert found["good"]["bytes"] == sum(path.stat().st_size for path in good.iterdir())
    assert found["good"]["recipe"] == "int8-asym"
    assert found["good"]["used"] == found[str(elsewhere)]["used"] is not None
    assert "manifest.json is not valid JSON" in str(found["damaged"]["problem"])
    assert "openvino_model.bin has" in str(found["cut"]["problem"])
    (cut / "openvino_model.bin").unlink()
    assert "openvino_model.bin is missing" in str(listed(capsys)["cut"]["problem"])
    assert cli.main(["list"]) == 0
    shown = capsys.readouterr().out
    assert "damaged is damaged: manifest.json" in shown.replace(f"{damaged}/", "")
    assert "cut is damaged: openvino_model.bin is missing" in shown


def test_no_file_but_manifests_is_read(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = put("glm4")
    for path in folder.iterdir():
        if path.name != "manifest.json":
            path.write_bytes(b"\0" * path.stat().st_size)
    assert [bundle.problem for bundle in all_bundles()] == [""]


def test_an_export_that_was_stopped(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (models / ".glm4.partial" / "bundle").mkdir(parents=True)
    (models / ".glm4.partial" / "bundle" / "openvino_model.bin").write_bytes(b"x" * 2000)
    assert [(one.name, one.bytes) for one in unfinished()] == [("glm4", 2000)]
    assert cli.main(["list"]) == 0
    assert "glm4 is not finished: 2.0 kB in " in capsys.readouterr().out


def test_a_card(put: Put, capsys: pytest.CaptureFixture[str]) -> None:
    folder = put("glm4")
    (folder / "edge.toml").write_text("max-context = 64\n[chat]\ntemperature = 0.5\n")
    assert cli.main(["show", "glm4", "--json"]) == 0
    card = json.loads(capsys.readouterr().out)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert card["name"] == "glm4"
    assert card["path"] == str(folder)
    assert card["recipe"] == manifest["recipe"] == "int8-asym"
    assert card["engines"] == ["openvino", "onnx", "openvino_npu (for NPU; on CPU by name)"]
    assert card["defaults"] == {"max-context": 64, "[chat] temperature": 0.5}
    assert card["context"] == manifest["spec"]["max_position_embeddings"]
    assert cli.main(["show", "glm4"]) == 0
    shown = capsys.readouterr().out
    assert "max-context = 64, [chat] temperature = 0.5" in shown
    assert cli.main(["show"]) == 0
    said = capsys.readouterr()
    assert said.err == "edge: showing glm4, the only one\n"
    assert said.out == shown
    (folder / "manifest.json").write_text("{")
    assert cli.main(["show", "glm4"]) == 1
    assert "manifest.json is not valid JSON" in capsys.readouterr().err


def test_names_with_escapes_are_shown_harmless(put: Put, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put("a\x1b[2Jb")
    assert cli.main(["list"]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_what_a_download_left(
    put: Put, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the layout of the hub's client, where a link leads to each blob."""
    from huggingface_hub import constants, scan_cache_dir

    hub = home / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    assert find_cached("THUDM/glm-4-9b-chat") is None
    repository = hub / "models--THUDM--glm-4-9b-chat"
    snapshot = repository / "snapshots" / "0123abc"
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "blobs" / "b10b").write_bytes(b"x" * 5000)
    (snapshot / "model.safetensors").symlink_to(repository / "blobs" / "b10b")
    found = find_cached("THUDM/glm-4-9b-chat")
    assert found is not None
    assert found.path == repository
    assert 5000 <= found.bytes < 5200
    assert find_cached("hf:THUDM/glm-4-9b-chat") == find_cached("THUDM/glm-4-9b-chat@main") == found
    assert {repo.repo_id: repo.size_on_disk for repo in scan_cache_dir(hub).repos} == {"THUDM/glm-4-9b-chat": 5000}
    for source in ("THUDM/other", "glm4", "./glm4", "/x/y", "../../hub/models--THUDM--glm-4-9b-chat"):
        assert find_cached(source) is None
    manifest = put("glm4") / "manifest.json"
    text = json.loads(manifest.read_text())
    text["source"] = "THUDM/glm-4-9b-chat"
    from edge.runtime.manifest import DIGEST, digest_of

    text[DIGEST] = digest_of(text)
    manifest.write_text(json.dumps(text))
    assert cli.main(["list"]) == 0
    assert (
        f"the checkpoint THUDM/glm-4-9b-chat is still in the hub's cache, {found.bytes / 1000:.1f} kB; to free them"
        in (capsys.readouterr().out)
    )
