"""Pictures on the command line, over whole tiny models: processes, files and towers as a user has them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edge import cli
from edge.export.pipeline import export
from edge.runtime.llm import LLM
from edge.runtime.messages import ImagePart, Message, TextPart
from edge.runtime.settings import EngineSettings
from tests.conftest import made_once
from tests.tiny_pictures import make_4v, make_glm4v

Shown = pytest.CaptureFixture[str]
MAKE: dict[str, Any] = {"4v": make_4v, "glm4v": make_glm4v}
FEW = ("--max-new-tokens", "5")


@pytest.fixture(params=["4v", "glm4v"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind: str = request.param

    def make(out: Path) -> None:
        checkpoint = tmp_path_factory.mktemp("checkpoint") / kind
        MAKE[kind](checkpoint)
        export(checkpoint, out, "int8-asym")

    return made_once(tmp_path_factory, f"seeing-{kind}", make)


@pytest.fixture
def cat(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "cat.png")
    return tmp_path / "cat.png"


def process(*words: str | Path, home: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge", *map(str, words)]
    env = {**os.environ, "XDG_CACHE_HOME": str(home)}
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120, check=False, env=env)


def test_run_answers_what_the_library_does(bundle: Path, cat: Path, engine: str, tmp_path: Path) -> None:
    done = process("run", bundle, "What is it?", "--image", cat, "--engine", engine, "--json", *FEW, home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "cat.png: 90 x 60 PNG, 6 tokens\n"
    settings = EngineSettings(engine=engine, kept_pictures_bytes=0)
    question = Message("user", (ImagePart(cat), TextPart("What is it?")))
    with LLM(bundle, settings) as llm:
        expected = llm.chat([question], max_new_tokens=5, temperature=0).answer()
        without = llm.chat([Message("user", "What is it?")], max_new_tokens=5, temperature=0).answer()
    assert json.loads(done.stdout)["token_ids"] == list(expected.token_ids)
    assert expected.token_ids != without.token_ids, "the picture counts"


@pytest.mark.slow  # four processes
def test_a_chat_over_a_pipe_and_a_prefix(bundle: Path, cat: Path, tmp_path: Path) -> None:
    few = ("--engine", "openvino", *FEW)
    typed = f"/image {cat}\nWhat is it?\n"
    said = process("chat", bundle, "--no-history", "--sampling", "greedy", *few, home=tmp_path, stdin=typed)
    once = process("run", bundle, "What is it?", "--image", cat, *few, home=tmp_path)
    assert (said.returncode, said.stdout) == (0, once.stdout)
    built = process("prefix", "build", bundle, tmp_path / "cat.prefix", "--image", cat, *few[:2], home=tmp_path)
    assert built.returncode == 0, built.stderr
    words = ("run", bundle, "What is it?", "--image", cat, "--prefix", tmp_path / "cat.prefix", "--json", *few)
    found = json.loads(process(*words, home=tmp_path).stdout)
    assert found["text"] == once.stdout.rstrip("\n").lstrip()
    assert found["prefix_tokens"] > 6, "all rows of the picture"


def test_what_cannot_be_seen_is_said_before_a_model_is_loaded(
    tiny_bundle: Path, cat: Path, tmp_path: Path, capsys: Shown
) -> None:
    for words, said in (
        (("run", tiny_bundle, "?", "--image", cat), "--image is given, and this model reads text alone; use one that"),
        (("run", tiny_bundle, "?", "--image", cat, "--raw"), "--image needs the chat template"),
        (("prefix", "build", tiny_bundle, tmp_path / "p", "--image", cat), "this model reads text alone"),
        (("prefix", "build", tiny_bundle, tmp_path / "p", "--image", cat, "--raw", "x"), "--image needs the chat"),
        (("run", tiny_bundle, "?", "--file", cat), "give it as --image to a model that sees pictures"),
    ):
        assert cli.main(list(map(str, words))) in (1, 2)
        error = capsys.readouterr().err
        assert error.startswith("edge: ")
        assert said in error


def test_show_says_who_sees(bundle: Path, capsys: Shown) -> None:
    assert cli.main(["show", str(bundle)]) == 0
    told = "6 tokens each, at most 1 in a conversation" if bundle.name.endswith("-4v") else "4 tokens of 56 x 56"
    assert f"pictures          yes, {told}; int8-asym\n" in capsys.readouterr().out
    assert cli.main(["show", str(bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pictures"] is True


def test_files_that_are_no_pictures_are_refused(bundle: Path, tmp_path: Path, capsys: Shown) -> None:
    (tmp_path / "a.png").write_bytes(b"words")
    for name, said in (("a.png", "a.png is text"), ("none.png", "none.png cannot be read (No such file or directory)")):
        assert cli.main(["run", str(bundle), "?", "--image", str(tmp_path / name)]) == 1
        assert f"{said}; give a PNG, JPEG, WebP, GIF, BMP or TIFF file" in capsys.readouterr().err
