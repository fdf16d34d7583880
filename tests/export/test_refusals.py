"""What lies where a checkpoint should: one line that says what it is and what to give instead."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edge.export.architectures.registry import describe
from edge.export.checkpoint.checkpoint import open_checkpoint
from edge.runtime.errors import CheckpointError, TokenizerError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a" * 16 + b"\nsize 4999802720\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>" + b" " * 1000


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def refused(path: Path, what: str) -> None:
    with pytest.raises(CheckpointError, match=what) as error:
        describe(open_checkpoint(path))
    assert "\n" not in str(error.value)


KINDS = [
    (POINTER, "a Git LFS pointer .* run `git lfs pull`"),
    (PAGE, "a web page saved as the file"),
    (b"PK\3\4" + bytes(600), "a PyTorch pickle"),
    (b"\x80\2}q\0" + bytes(600), "a PyTorch pickle"),
    (bytes(5000), "a file that begins with zeros, like an unfinished download"),
    (b"tjgg\3\0\0\0" + bytes(600), "a GGML file from before GGUF"),
]


@pytest.mark.parametrize(("content", "what"), KINDS, ids=["lfs", "html", "zip", "pickle", "zeros", "ggml"])
@pytest.mark.parametrize("name", ["model.safetensors", "x.gguf", "x.bin"])
def test_files_that_are_something_else(checkpoint: Path, name: str, content: bytes, what: str) -> None:
    (checkpoint / name).write_bytes(content)
    refused(checkpoint if name == "model.safetensors" else checkpoint / name, f"{name}(:| is) {what}")


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_small_files_that_are_pointers(checkpoint: Path, name: str) -> None:
    (checkpoint / name).write_bytes(POINTER)
    with pytest.raises(CheckpointError, match=rf"{name} is a Git LFS pointer"):
        open_checkpoint(checkpoint).generation_config()


def test_a_tokenizer_that_is_a_pointer(checkpoint: Path, demo_gguf: Path, tmp_path: Path) -> None:
    (checkpoint / "tokenizer.json").write_bytes(POINTER)
    (checkpoint / "model.gguf").symlink_to(demo_gguf)
    for path in (checkpoint, checkpoint / "model.gguf"):
        with pytest.raises(TokenizerError, match=r"tokenizer\.json is a Git LFS pointer"):
            open_checkpoint(path).write_tokenizer(tmp_path / "tokenizer.json")
    assert not (tmp_path / "tokenizer.json").exists()


def move_to_cache(folder: Path) -> None:
    place = folder / ".cache" / "huggingface" / "download"
    place.mkdir(parents=True)
    (folder / "model.safetensors").rename(place / "x.4d7a.incomplete")


def make_a_pipe(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda f: (f / "model.safetensors").rename(f / "model.safetensors.part"), "an unfinished download"),
        (lambda f: (f / "model.safetensors.aria2").touch(), "model.safetensors.aria2 beside it says that its download"),
        (move_to_cache, r"x\.4d7a\.incomplete is an unfinished download; finish it"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), r"pickled \(pytorch_model\.bin\)"),
        (lambda f: (f / "model.safetensors").unlink(), r"config\.json but no \*\.safetensors; download"),
        (lambda f: (f / "config.json").unlink(), r"\*\.safetensors but no config\.json; download it"),
        (lambda f: (f / "manifest.json").touch(), "a bundle, which an export writes; give the checkpoint"),
        (
            lambda f: (f / "model.safetensors").rename(f / "openvino_model.xml"),
            "a model that was exported to OpenVINO",
        ),
        (lambda f: (f / "config.json").rename(f / "adapter_config.json"), "a LoRA .* this folder with --adapter"),
        (make_a_pipe, "model.safetensors is not an ordinary file"),
    ],
)  # fmt: skip
def test_folders_that_are_none(checkpoint: Path, change: Callable[[Path], object], what: str) -> None:
    change(checkpoint)
    refused(checkpoint, what)


def test_a_file_of_a_checkpoint(checkpoint: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        refused(checkpoint / name, f"a part of a checkpoint; give its folder, {checkpoint}")


def test_gguf_downloads_that_are_not_finished(demo_gguf: Path, tmp_path: Path) -> None:
    begun = tmp_path / "x.gguf.part"
    begun.write_bytes(demo_gguf.read_bytes()[:10_000])
    refused(begun, "an unfinished download; finish it, or give the finished file")
    refused(tmp_path / "x.gguf", "no such path, and x.gguf.part is an unfinished download")
    (tmp_path / "y.gguf").symlink_to(demo_gguf)
    (tmp_path / "y.gguf.aria2").touch()
    refused(tmp_path / "y.gguf", "y.gguf.aria2 beside it says")


def test_gguf_under_another_name(demo_gguf: Path, tmp_path: Path) -> None:
    """As Ollama keeps it."""
    (tmp_path / "sha256-4d7a").symlink_to(demo_gguf)
    assert describe(open_checkpoint(tmp_path / "sha256-4d7a"))[0] == describe(open_checkpoint(demo_gguf))[0]


QUANTIZED: list[tuple[dict[str, object], str, str, str]] = [
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "weight", "U8", "quantized with bitsandbytes"),
    ({"quant_method": "gptq", "bits": 4}, "qweight", "I32", "quantized with gptq"),
    ({"quant_method": "awq", "bits": 4}, "qzeros", "I32", "quantized with awq"),
    ({"quant_method": "fp8"}, "weight_scale_inv", "F32", "quantized with fp8"),
    ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "weight_packed", "I32", "compressed-tensors"),
    ({"group_size": 64, "bits": 4}, "scales", "F16", "quantized with MLX"),
    ({"weight_bits": 4}, "weight", "I8", "a quantized checkpoint"),
    ({"quant_method": "\x1b[2J" * 1000}, "weight", "I8", "quantized with "),
]
DTYPES = {"U8": np.uint8, "I32": np.int32, "I8": np.int8, "F32": np.float32, "F16": np.float16}


@pytest.mark.parametrize(("settings", "part", "dtype", "what"), QUANTIZED)
def test_quantized_checkpoints(checkpoint: Path, settings: dict[str, object], part: str, dtype: str, what: str) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    # Floats under the names of a float checkpoint are one, whatever its config says of where they come from.
    describe(open_checkpoint(checkpoint))
    tensors = load_file(checkpoint / "model.safetensors")
    tensors[f"model.layers.0.mlp.down_proj.{part}"] = np.zeros((4096, 1), DTYPES[dtype])
    save_file(tensors, checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{what}.*; give the model's float checkpoint") as error:
        open_checkpoint(checkpoint)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 300


def test_what_is_neither_file_nor_folder(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "loop").symlink_to("loop")
    refused(tmp_path / "pipe.gguf", "not a checkpoint; expected a folder")
    refused(Path("/dev/zero"), "not a checkpoint; expected a folder")
    refused(tmp_path / "loop", "not a path that can be read")
