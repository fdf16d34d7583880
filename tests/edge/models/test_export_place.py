"""`edge export SOURCE [OUT]`: a word is a name in the models folder, and a path works as ever."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge import cli
from edge.models.recent import recent

SMALL = ("--recipe", "int8-asym", "--format", "onnx")


def export(*words: object) -> int:
    return cli.main(["export", *map(str, words), *SMALL])


def test_a_word_is_a_name(models: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(tiny_checkpoint, "glm4") == 0
    assert f"{models / 'glm4'}: int8-asym, " in capsys.readouterr().out
    assert list(Path().iterdir()) == []
    assert [used.path for used in recent()] == [models / "glm4"]
    assert cli.main(["run", "glm4", "--raw", "a", "--max-new-tokens", "2"]) == 0
    assert export(tiny_checkpoint, "glm4") == 1
    assert "glm4 exists already; choose another folder, or give --force" in capsys.readouterr().err
    assert export(tiny_checkpoint, "GLM4") == 1
    assert "would be one name on some file systems" in capsys.readouterr().err
    assert export(tiny_checkpoint, "glm4", "--force") == 0


def test_without_a_word_it_has_the_sources_name(models: Path, tiny_checkpoint: Path) -> None:
    """After an option, too, where argparse looks for arguments that may be missing in another way."""
    source = tiny_checkpoint.rename(tiny_checkpoint.with_name("Tiny GLM"))
    try:
        assert export(source) == 0
    finally:
        source.rename(tiny_checkpoint)
    assert [path.name for path in models.iterdir()] == ["tiny-glm-int8-asym"]


@pytest.mark.parametrize("out", ["./glm4", "empty", "deep/er"])
def test_a_path_is_a_path(out: str, home: Path, tiny_checkpoint: Path) -> None:
    Path("empty").mkdir()
    assert export(tiny_checkpoint, out) == 0
    assert (Path(out) / "manifest.json").is_file()
    assert not (home / "data").exists()


def test_a_bundle_that_is_here_is_replaced_here(home: Path, tiny_checkpoint: Path) -> None:
    assert export(tiny_checkpoint, "./glm4") == 0
    assert export(tiny_checkpoint, "glm4") == 1
    assert export(tiny_checkpoint, "glm4", "--force") == 0
    assert not (home / "data").exists()


def test_nothing_is_made_to_look(home: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(tiny_checkpoint, "glm4", "--dry-run") == 0
    assert export(tiny_checkpoint, ".glm4") == 2
    assert "'.glm4' cannot be the name of a bundle: it begins with one of" in capsys.readouterr().err
    assert export("nothing", "glm4") == 1
    assert not home.exists()


def test_where_no_models_folder_can_be(home: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home.touch()
    assert export(tiny_checkpoint, "glm4") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(home) in error
    assert export(tiny_checkpoint, "./glm4") == 0


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ((), "glm-4-9b-chat-int4"),
        (("--recipe", "int4-asym-g64"), "glm-4-9b-chat-int4-asym-g64"),
        (("--max-bytes", "5.2GB"), "glm-4-9b-chat-5.2gb"),
        (("--max-bytes", "90e6"), "glm-4-9b-chat-90mb"),
        (("--max-kld", "0.05"), "glm-4-9b-chat-kld0.05"),
        (("--adapter", "x/Museum"), "glm-4-9b-chat-museum-int4"),
    ],
)
def test_names_that_are_made_up(options: tuple[str, ...], name: str) -> None:
    from edge.commands.export_place import settle

    args = cli.build_parser().parse_args(["export", "THUDM/glm-4-9b-chat", *options])
    settle(args)
    assert args.called == Path(args.out).name == name


def test_what_the_download_left_is_told(
    models: Path, home: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a hub id that the cache has, so that no hub is asked."""
    from huggingface_hub import constants

    hub, name = home / "hub", "models--THUDM--tiny-glm"
    snapshot = hub / name / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    for file in tiny_checkpoint.iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
    (hub / name / "refs").mkdir()
    (hub / name / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert export("THUDM/tiny-glm") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("the checkpoint THUDM/tiny-glm is still in the hub's cache, ")
    assert str(hub / name) in last
    capsys.readouterr()
    assert cli.main(["list", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [one["id"] for one in shown["hub_cache"]] == ["THUDM/tiny-glm"]
    assert [one["name"] for one in shown["bundles"]] == ["tiny-glm-int8-asym"]
