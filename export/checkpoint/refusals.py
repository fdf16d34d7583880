"""What a path is if it is not a checkpoint, and what to give instead.

In: a path that exists. Out: words for an error. Looks at names and first bytes only.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edge.export.checkpoint.weight_files import is_unfinished, other_kind, read_head, unfinished_downloads
from edge.runtime import bundle
from edge.runtime.errors import CheckpointError

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_ADAPTER = "adapter_config.json"


def why_no_checkpoint(path: Path) -> str | None:
    """The words that follow the path in an error; None where nothing is known about it."""
    if path.is_dir():
        return next(_of_folder(path), None)
    return _of_file(path) if path.is_file() else None


def _of_file(path: Path) -> str | None:
    if is_unfinished(path):
        return "an unfinished download; finish it, or give the finished file"
    if path.suffix == ".safetensors" or path.name == "config.json":
        return f"a part of a checkpoint; give its folder, {path.parent}"
    return other_kind(read_head(path, CheckpointError))


def _of_folder(path: Path) -> Iterator[str]:
    """What is known about a folder, the most telling first."""
    if bundle.is_bundle(path):
        yield "a bundle, which an export writes; give the checkpoint that it was made from"
    if (path / bundle.MODEL_XML).is_file():
        yield f"a model that was exported to OpenVINO ({bundle.MODEL_XML}); give the checkpoint that it was made from"
    if found := unfinished_downloads(path):
        yield f"{found[0].relative_to(path)} is an unfinished download; finish it"
    if (path / _ADAPTER).is_file():
        yield f"a LoRA ({_ADAPTER}), not a model; give the model's checkpoint, and this folder with --adapter"
    if found := sorted(path.glob("*.gguf")):
        yield f"a folder with GGUF files; give one of them, like {found[0]}"
    if found := sorted(file for pattern in _PICKLES for file in path.glob(pattern)):
        yield (
            f"the weights are pickled ({found[0].name}), and unpickling can run code; use the model's safetensors "
            "files, or convert them once if you trust the source"
        )
    if (path / "config.json").is_file():
        yield "config.json but no *.safetensors; download the weights into the folder"
    if any(path.glob("*.safetensors")):
        yield "*.safetensors but no config.json; download it into the folder"
