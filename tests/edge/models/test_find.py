"""What a word on a command line or in Python means: a path first, then a name."""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

import edge
from edge import cli
from edge.models.config_file import models_folder
from edge.models.find import find_bundle, find_named, name_of, names_in, place_for
from edge.models.folders import config_folder, data_folder, state_folder
from edge.runtime.errors import BundleError, EdgeError, OutputError, SettingsError

Put = Callable[[str], Path]


def test_folders_are_of_this_test(home: Path) -> None:
    """None of what a test does can reach the folders of whoever runs it."""
    folders = (data_folder(), config_folder(), state_folder(), models_folder())
    assert all(folder is not None and home in folder.parents for folder in folders)


def test_a_name_is_found_from_anywhere(put: Put) -> None:
    glm = put("glm4")
    assert find_bundle("glm4") == find_named("glm4") == glm
    assert find_bundle("GLM4") == glm  # there can be no other
    assert name_of(glm) == "glm4"


def test_a_path_wins(put: Put, tiny_bundle: Path) -> None:
    glm = put("glm4")
    shutil.copytree(tiny_bundle, "glm4")
    assert find_bundle("glm4") == Path("glm4")
    assert find_bundle(f".{os.sep}glm4") == Path("glm4")
    assert find_bundle(str(glm)) == glm
    assert name_of(Path("glm4")) is None


def test_a_folder_that_is_not_a_bundle_does_not_hide_a_name(put: Put) -> None:
    glm = put("glm4")
    Path("glm4").mkdir()
    assert find_bundle("glm4") == glm
    assert find_bundle("./glm4") == Path("glm4")
    Path("other").mkdir()
    assert find_bundle("other") == Path("other")  # opening it says what is wrong


def test_what_is_not_there_is_said_with_what_is(put: Put) -> None:
    with pytest.raises(
        BundleError, match=r"^glm4: no such path, and no bundle of that name in .*models; no bundle has"
    ):
        find_bundle("glm4")
    put("glm-4-9b-int4")
    put("smol")
    for given in ("glm4-9b-int4", "glm", "GLM-4-9b-int8"):
        with pytest.raises(BundleError, match=r"did you mean 'glm-4-9b-int4'\? `edge list`"):
            find_bundle(given)
    with pytest.raises(BundleError, match="there are 'glm-4-9b-int4', 'smol'; `edge list`"):
        find_bundle("zzz")
    assert find_bundle("a/zzz") == Path("a/zzz")  # a path is left to who opens it
    with pytest.raises(SettingsError, match="bundle is ''"):
        find_bundle("")


def test_letters_that_unicode_has_twice(put: Put) -> None:
    folder = put(unicodedata.normalize("NFC", "café"))
    assert find_bundle(unicodedata.normalize("NFD", "café")) == folder


def test_python_takes_names_as_text(put: Put) -> None:
    put("glm4")
    with edge.load("glm4", engine="onnx") as llm:
        assert llm.bundle.path == find_bundle("glm4")
    with pytest.raises(BundleError, match="no such path"):
        edge.load(Path("glm4"), engine="onnx")  # a Path is a path
    with pytest.raises(BundleError, match=r"did you mean 'glm4'\?"):
        edge.load("glm", engine="onnx")


def test_commands_take_names(put: Put, capsys: pytest.CaptureFixture[str]) -> None:
    put("glm4")
    assert cli.main(["run", "glm4", "--raw", "a", "--max-new-tokens", "2", "--engine", "onnx"]) == 0
    assert cli.main(["verify", "glm4"]) == 0
    assert cli.main(["inspect", "glm4"]) == 0
    capsys.readouterr()
    assert cli.main(["run", "glm5", "--raw", "a"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("edge: glm5: no such path, and no bundle of that name in ")
    assert said.endswith("did you mean 'glm4'? `edge list` shows all names\n")


def test_where_a_new_bundle_goes(models: Path, put: Put) -> None:
    assert place_for("glm4") == models / "glm4"
    for path in ("./glm4", "a/glm4", str(models / "x" / "y")):
        assert place_for(path) == Path(path)
    Path("glm4").mkdir()
    assert place_for("glm4") == Path("glm4")  # an empty folder, or a bundle that --force replaces
    with pytest.raises(SettingsError, match="cannot be the name"):
        place_for(".hidden")
    put("Museum")
    with pytest.raises(OutputError, match=r"'museum' and 'Museum', which is in .*, would be one name"):
        place_for("museum")
    assert place_for("Museum") == models / "Museum"


def test_the_config_file_moves_the_models(home: Path, tmp_path: Path) -> None:
    file = home / "config" / "edgeglm" / "config.toml"
    file.parent.mkdir(parents=True)
    file.write_text(f"models = '{tmp_path / 'disk'}'\n")
    assert models_folder() == tmp_path / "disk"
    file.write_text("models = 'beside'\n")
    assert models_folder() == file.parent / "beside"
    file.write_text("models = '~/glm'\n")
    assert models_folder() == Path.home() / "glm"
    for wrong in ("models = 5", "models = ''", "models = 'a\\u0000b'".replace("'", '"')):
        file.write_text(wrong)
        with pytest.raises(SettingsError, match=r"config\.toml: models is .*, expected the path of a folder"):
            models_folder()
    file.write_text("models = \n")
    with pytest.raises(SettingsError, match=r"config\.toml is not valid TOML: .*line 1"):
        models_folder()
    assert find_bundle("./a") == Path("a")  # a path needs no file of defaults


@pytest.mark.parametrize("how", ["no home", "no platformdirs"])
def test_without_a_models_folder_a_word_is_a_path(
    how: str, monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if how == "no platformdirs":
        monkeypatch.setitem(sys.modules, "platformdirs", None)
    else:
        for name in ("DATA", "CONFIG", "STATE"):
            monkeypatch.delenv(f"XDG_{name}_HOME")
        monkeypatch.delenv("HOME", raising=False)
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # of an account that no list of users has
    assert models_folder() is None
    assert find_bundle("glm4") == Path("glm4")
    assert place_for("glm4") == Path("glm4")
    assert cli.main(["run", "glm4", "hi"]) == 1
    assert capsys.readouterr().err.startswith("edge: glm4: no such path; expected a bundle folder")
    shutil.copytree(tiny_bundle, "glm4")
    assert cli.main(["run", "glm4", "--raw", "a", "--max-new-tokens", "2", "--engine", "onnx"]) == 0


def test_links_in_the_models_folder_are_names(models: Path, tiny_bundle: Path) -> None:
    (models / "linked").symlink_to(tiny_bundle)
    (models / "dangling").symlink_to(models / "nothing")
    (models / ".glm.partial").mkdir()
    (models / "notes").mkdir()
    assert list(names_in(models)) == ["dangling", "linked"]
    assert find_bundle("linked") == models / "linked"


def test_a_models_folder_that_is_a_file_has_no_names(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = home / "data" / "edgeglm"
    folder.mkdir(parents=True)
    (folder / "models").touch()
    with pytest.raises(EdgeError, match="no such path, and no bundle"):
        find_bundle("glm4")
