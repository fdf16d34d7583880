"""What `edge inspect` and `edge export` say of picture towers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge.cli import main
from tests import tiny_pictures

PARAMETERS = 184_640  # of the tiny tower: twelve tensors a layer, three layers, and fourteen around them


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures") / "4v"
    tiny_pictures.make_4v(folder)
    return folder


@pytest.fixture(scope="module")
def bundle(checkpoint: Path) -> Path:
    out = checkpoint.with_name("bundle")
    assert main(["export", str(checkpoint), str(out), "--recipe", "int8-asym", "--format", "openvino"]) == 0
    return out


def test_a_tower_of_a_checkpoint(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(checkpoint)]) == 0
    told = capsys.readouterr().out
    assert f"pictures: a tower of 3 layers (eva), {PARAMETERS:,} parameters; 201.2 kB more at int8-asym" in told
    assert main(["inspect", str(checkpoint), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["pictures"]
    assert (found["tensors"], found["parameters"], found["spec"]["kind"]) == (50, PARAMETERS, "eva")


def test_a_tower_of_a_bundle(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(bundle)]) == 0
    told = capsys.readouterr().out
    assert f"pictures: a tower of 3 layers (eva), {PARAMETERS:,} parameters, int8-asym, 201.2 kB of weights" in told
    assert "stages of it checked at export: 5, the worst picture" in told
    assert "bits of float16 headroom" in told
    assert "vision.layers.0-2.mlp.up.weight" in told
    scores = next(line.split() for line in told.splitlines() if line.startswith("layers.attn.scores"))
    assert 2.0 ** float(scores[2]) * float(scores[1]) == pytest.approx(65504, rel=0.05)  # one decimal of bits


def test_what_an_export_would_do_and_did(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, options = (
        str(tmp_path / "out"),
        ["--recipe", "int8-asym", "--format", "openvino", "--pictures", "int4-asym-g64"],
    )
    assert main(["export", str(checkpoint), out, *options, "--dry-run", "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)
    assert expected["pictures"]["recipe"] == "int4-asym-g64"
    assert expected["pictures"]["weights"]["vision.layers.0.attn.o.weight"]["may_become"] == ["int4-asym-g64"]
    assert main(["export", str(checkpoint), out, *options, "--dry-run"]) == 0
    assert "pictures: int4-asym-g64, " in capsys.readouterr().out
    assert main(["export", str(checkpoint), out, *options, "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["pictures"]["weight_bytes"] == expected["pictures"]["weight_bytes"]
    assert [check["stage"] for check in done["checks"]][-2:] == ["picture layer 2", "picture adapter"]
    assert sum(path.stat().st_size for path in Path(out).iterdir()) <= expected["bundle_bytes"]


def test_the_last_line_tells_of_pictures(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--recipe", "fp32", "--format", "onnx", "--verbose"]
    assert main(["export", str(checkpoint), str(tmp_path / "out"), *options]) == 0
    told = capsys.readouterr().out
    assert "10 checks passed" in told
    assert "; for pictures fp32, " in told
    assert "picture layer 1 off by" in told


def test_a_text_has_no_pictures(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tiny_checkpoint)]) == 0
    assert "pictures" not in capsys.readouterr().out
    assert main(["inspect", str(tiny_checkpoint), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pictures"] is None
