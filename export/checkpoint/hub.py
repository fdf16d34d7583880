"""A hub id: the files of a model repository, downloaded once into the hub's own cache.

In: `org/name` or `org/name/file.gguf`, either of them optionally followed by `@revision`. Out: the local folder, or the
.gguf file. Only what an export reads is fetched, and never a pickle. Knows nothing about what the files hold, except
which shards an index names, and nothing about how files are fetched: that is `hub_repository.py`.
"""

from __future__ import annotations

import re
from pathlib import Path

from edge.export.checkpoint.hub_repository import Repository, reason
from edge.export.checkpoint.safetensors import INDEX, PICTURES, read_index
from edge.export.checkpoint.sources import HUB_ID
from edge.runtime.errors import CheckpointError
from edge.runtime.files import real_path

CONFIG = "config.json"
_BESIDE_WEIGHTS = (
    CONFIG,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    *PICTURES,
    INDEX,
)
_SINGLE = "model.safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def download(source: str, *, endpoint: str | None = None, cache: Path | None = None) -> Path:
    """The local folder of a repository, or its .gguf file (the first part of a split one). Raises CheckpointError.

    endpoint, cache: the address of the hub and its cache folder; by default what the hub's client is set to.
    """
    return _find(source, endpoint, cache, ask=True)


def find_downloaded(source: str, *, cache: Path | None = None) -> Path:
    """Like `download`, but only what is in the cache already, without the network. Raises CheckpointError."""
    return _find(source, None, cache, ask=False)


def config_of(source: str, *, endpoint: str | None = None, cache: Path | None = None) -> Path:
    """The config.json of a repository, which alone is fetched. Raises CheckpointError."""
    repository, file = _repository(source, endpoint, cache, ask=True)
    if file:
        raise repository.error("a GGUF file cannot be looked at before it is downloaded; give org/name for the model's")
    if CONFIG not in repository.files:
        raise repository.error(f"the repository has no {CONFIG}; expected a model that transformers loads")
    return repository.fetch([CONFIG]) / CONFIG


def _find(source: str, endpoint: str | None, cache: Path | None, *, ask: bool) -> Path:
    repository, file = _repository(source, endpoint, cache, ask=ask)
    return _gguf_file(repository, file) if file else _folder(repository)


def _repository(source: str, endpoint: str | None, cache: Path | None, *, ask: bool) -> tuple[Repository, str | None]:
    """A repository, and the GGUF file in it that is meant."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined,unused-ignore]  # not in its __all__

    constants.HF_HUB_DISABLE_TELEMETRY = True  # else every request tells which other packages are installed
    match = HUB_ID.fullmatch(source)
    if match is None:
        raise CheckpointError(f"{source}: not a hub id; expected org/name or org/name/file.gguf, optionally @revision")
    try:
        validate_repo_id(match["repo"])
    except HFValidationError as error:
        raise CheckpointError(f"{source}: not a hub id ({reason(error)}); expected org/name") from error
    repository = Repository(
        source,
        match["repo"],
        match["revision"] or constants.DEFAULT_REVISION,
        endpoint or constants.ENDPOINT,
        cache or Path(constants.HF_HUB_CACHE),
        anchor=match["file"] or CONFIG,
        ask=ask,
    )
    return repository, match["file"]


def _gguf_file(repository: Repository, file: str) -> Path:
    from edge.export.checkpoint.gguf import part_names

    parts = part_names(file)
    for part in parts:
        if part not in repository.files:
            present = _some([name for name in repository.files if name.endswith(".gguf")])
            raise repository.error(f"the repository has no {part}; expected one of its GGUF files: {present}")
    return repository.fetch(parts) / parts[0]


def _folder(repository: Repository) -> Path:
    files = repository.files
    weights = [name for name in files if re.fullmatch(r"(?!adapter_)[^/]+\.safetensors", name)]
    if not weights:
        raise repository.error(_without_weights(repository))
    if CONFIG not in files:
        raise repository.error("the repository has *.safetensors but no config.json; give one that transformers loads")
    # Fetched before the weights: the index says which ones, and a cache that has the weights then has all the rest.
    templates = [name for name in files if re.fullmatch(r"additional_chat_templates/[^/]+\.jinja", name)]
    folder = repository.fetch([name for name in (*_BESIDE_WEIGHTS, *templates) if name in files])
    if INDEX in files:
        weights = _shards(folder / INDEX)
        if missing := [name for name in weights if name not in files]:
            raise repository.error(f"{INDEX} names {missing[0]}, which is missing; the repository is incomplete")
    elif _SINGLE in files:
        weights = [_SINGLE]  # others beside it are the same weights in another layout
    repository.fetch(weights)
    return folder


def _without_weights(repository: Repository) -> str:
    if ggufs := [name for name in repository.files if name.endswith(".gguf")]:
        return (
            f"the repository has GGUF files and no *.safetensors ({_some(ggufs)}); give one of them as "
            f"{repository.name}/FILE.gguf"
        )
    if pickles := [name for name in repository.files if name.endswith(_PICKLES)]:
        return (
            f"the repository has only pickled weights ({_some(pickles)}), and unpickling can run code; give one with "
            "*.safetensors, or convert them once if you trust the source"
        )
    return "the repository has no weights; expected config.json and *.safetensors, or GGUF files, at its top level"


def _shards(index: Path) -> list[str]:
    try:
        return sorted(set(read_index(index).values()))
    except CheckpointError as error:
        raise CheckpointError(f"{error}; delete {real_path(index)} and retry") from error


def _some(names: list[str]) -> str:
    return ", ".join(sorted(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
