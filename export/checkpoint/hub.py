"""A hub id: the files of a model repository, downloaded once into the hub's own cache.

In: `org/name` or `org/name/file.gguf`, either with `@revision` at its end. Out: the local folder, or the .gguf file.
Only what an export reads is fetched, and never a pickle. The hub's client downloads, resumes, keeps the cache and reads
its own settings (HF_ENDPOINT, HF_HOME, HF_TOKEN, HF_HUB_OFFLINE); where the hub cannot be reached, a whole copy in the
cache serves. Knows nothing about what the files hold, except which shards an index names.
"""

from __future__ import annotations

import errno
import glob
import re
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.export.checkpoint.safetensors import INDEX, read_index
from edge.export.checkpoint.sources import HUB_ID
from edge.runtime.errors import CheckpointError, telling_line

_BESIDE_WEIGHTS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    INDEX,
)
_SINGLE = "model.safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def download(source: str, *, endpoint: str | None = None, cache: Path | None = None) -> Path:
    """The local folder of a repository, or its .gguf file (the first one of a split file). Raises CheckpointError.

    endpoint, cache: the address of the hub and its cache folder; by default what the hub's client is set to.
    """
    return _find(source, endpoint, cache, ask=True)


def find_downloaded(source: str, *, cache: Path | None = None) -> Path:
    """Like `download`, of what is in the cache already, without the network. Raises CheckpointError."""
    return _find(source, None, cache, ask=False)


def _find(source: str, endpoint: str | None, cache: Path | None, *, ask: bool) -> Path:
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
        raise CheckpointError(f"{source}: not a hub id ({_reason(error)}); expected org/name") from error
    repository = _Repository(
        source,
        match["repo"],
        match["revision"] or constants.DEFAULT_REVISION,
        endpoint or constants.ENDPOINT,
        cache or Path(constants.HF_HUB_CACHE),
        anchor=match["file"] or "config.json",
        ask=ask,
    )
    return _gguf_file(repository, match["file"]) if match["file"] else _folder(repository)


def _gguf_file(repository: _Repository, file: str) -> Path:
    from edge.export.checkpoint.gguf import part_names

    parts = part_names(file)
    for part in parts:
        if part not in repository.files:
            present = _some([name for name in repository.files if name.endswith(".gguf")])
            raise repository.error(f"the repository has no {part}; expected one of its GGUF files: {present}")
    return repository.fetch(parts) / parts[0]


def _folder(repository: _Repository) -> Path:
    files = repository.files
    weights = [name for name in files if re.fullmatch(r"(?!adapter_)[^/]+\.safetensors", name)]
    if not weights:
        raise repository.error(_without_weights(repository))
    if "config.json" not in files:
        raise repository.error("the repository has *.safetensors but no config.json; give one that transformers loads")
    # Before the weights: the index says which ones, and a cache that has the weights has all the rest.
    templates = [name for name in files if re.fullmatch(r"additional_chat_templates/[^/]+\.jinja", name)]
    folder = repository.fetch([name for name in (*_BESIDE_WEIGHTS, *templates) if name in files])
    if INDEX in files:
        weights = _shards(folder / INDEX)
        if missing := [name for name in weights if name not in files]:
            raise repository.error(f"{INDEX} names {missing[0]}, which is not there; the repository is incomplete")
    elif _SINGLE in files:
        weights = [_SINGLE]  # others beside it are the same weights in another layout
    repository.fetch(weights)
    return folder


def _without_weights(repository: _Repository) -> str:
    if ggufs := [name for name in repository.files if name.endswith(".gguf")]:
        return (
            f"the repository has GGUF files and no *.safetensors ({_some(ggufs)}); give one of them as "
            f"{repository.name}/FILE.gguf"
        )
    if pickles := [name for name in repository.files if name.endswith(_PICKLES)]:
        return (
            f"the repository has only pickled weights ({_some(pickles)}), and unpickling can run code; give one with "
            "*.safetensors, or convert them once where you trust the source"
        )
    return "the repository has no weights; expected config.json and *.safetensors, or GGUF files, at its top level"


def _shards(index: Path) -> list[str]:
    try:
        return sorted(set(read_index(index).values()))
    except CheckpointError as error:
        raise CheckpointError(f"{error}; delete {index.resolve()} and retry") from error


def _some(names: list[str]) -> str:
    return ", ".join(sorted(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


@dataclass(frozen=True, slots=True)
class _File:
    size: int | None  # bytes, where the hub says so
    blob: str | None  # its name in the cache


class _Repository:
    """The files of one revision: as the hub lists them, or as the cache has them where the hub cannot be reached.

    `anchor` is the file that the cache must have to serve without the hub. ask: whether the hub may be asked at all.
    """

    def __init__(
        self, source: str, name: str, revision: str, endpoint: str, cache: Path, anchor: str, *, ask: bool
    ) -> None:
        from huggingface_hub import HfApi, constants
        from huggingface_hub.errors import OfflineModeIsEnabled

        self.name = name
        self._source = source
        self._revision = revision
        self._endpoint = endpoint
        self._cache = cache
        self._cached: Path | None = None  # the folder that serves without the hub
        self._unreachable = ""
        if not ask:
            self._unreachable = "nothing is downloaded to look at it"
            self._advice = "`edge export` downloads it"
            self._use_cached(anchor, None)
            return
        try:
            info = HfApi(endpoint=endpoint).model_info(
                name, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT, files_metadata=True
            )
        except Exception as error:  # two HTTP libraries, as the client is before 1.0 or after
            if not _is_outage(error):
                raise self._explain(error) from error
            offline = isinstance(error, OfflineModeIsEnabled)
            self._unreachable = (
                "HF_HUB_OFFLINE is set" if offline else f"{endpoint} cannot be reached ({_reason(error)})"
            )
            self._advice = "unset it and retry" if offline else "check the connection and retry"
            self._use_cached(anchor, error)
        else:
            self._commit = info.sha or revision
            self.files = {
                file.rfilename: _File(file.size, file.lfs.sha256 if file.lfs else file.blob_id)
                for file in info.siblings or []
            }

    def error(self, what: str) -> CheckpointError:
        """An error about the files; a cache that serves without the hub is to blame before the repository is."""
        if self._unreachable:
            what = f"{self._unreachable}, and {self._cache} holds only a part of it; {self._advice}"
        return CheckpointError(f"{self._source}: {what}")

    def fetch(self, names: list[str]) -> Path:
        """Download files of this revision that the cache does not have. Returns the folder they are in."""
        from huggingface_hub import snapshot_download

        if self._cached:
            return self._cached
        self._check_space(names)
        try:
            with warnings.catch_warnings():
                # The client counts neither what has arrived of a file nor the files beside it; `_check_space` does.
                warnings.filterwarnings("ignore", "Not enough free disk space")
                folder = snapshot_download(
                    self.name,
                    revision=self._revision,
                    endpoint=self._endpoint,
                    cache_dir=self._cache,
                    allow_patterns=[glob.escape(name) for name in names],
                    tqdm_class=_bar(),
                )
        except Exception as error:
            raise self._explain(error) from error
        self._revision = self._commit  # the name is in the cache now; what follows is of the same commit
        of_commit = Path(folder).with_name(self._commit)
        for name in names:
            self._check_size(of_commit / name, self.files[name].size)
        return of_commit

    def _use_cached(self, anchor: str, error: Exception | None) -> None:
        """Have the cache serve, where it has the anchor. error: why the hub does not."""
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(self.name, anchor, cache_dir=self._cache, revision=self._revision)
        if not isinstance(path, str):
            raise CheckpointError(
                f"{self._source}: no such path here, {self._unreachable}, and {self._cache} holds no copy of "
                f"revision {self._revision}; {self._advice}, or give a local checkpoint"
            ) from error
        self._cached = Path(path).parents[anchor.count("/")]
        found = [file for file in self._cached.rglob("*") if file.is_file()]
        self.files = {file.relative_to(self._cached).as_posix(): _File(None, None) for file in found}

    def _check_space(self, names: list[str]) -> None:
        """Before anything is written: the client would fill the disk first."""
        from huggingface_hub.file_download import repo_folder_name

        folder = self._cache / repo_folder_name(repo_id=self.name, repo_type="model")
        needed = 0
        for name in names:
            blob = folder / "blobs" / (self.files[name].blob or "unknown")
            if not blob.exists() and not (folder / "snapshots" / self._commit / name).exists():
                begun = blob.with_name(blob.name + ".incomplete")
                needed += (self.files[name].size or 0) - (begun.stat().st_size if begun.exists() else 0)
        try:
            self._cache.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self._cache).free
        except OSError as error:
            raise self._explain(error) from error
        if free < needed:
            raise CheckpointError(
                f"{self._source}: {needed:,} bytes to download and {free:,} free at {self._cache}; free some space, or "
                "set HF_HOME to a folder on another disk"
            )

    def _check_size(self, path: Path, size: int | None) -> None:
        if not path.is_file():
            raise CheckpointError(f"{self._source}: {path.name} did not arrive; retry, what has arrived is kept")
        if size is not None and path.stat().st_size != size:
            raise CheckpointError(
                f"{self._source}: {path.name} is {path.stat().st_size:,} bytes in the cache, the hub lists {size:,}; "
                f"delete {path.resolve()} and retry"
            )

    def _explain(self, error: Exception) -> CheckpointError:
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

        page = f"{self._endpoint}/{self.name}"
        if isinstance(error, GatedRepoError):
            what = f"gated; accept its terms at {page} and set HF_TOKEN to a token of that account"
        elif isinstance(error, RevisionNotFoundError):
            what = f"the repository has no revision {self._revision}; give a branch, tag or commit of {page}"
        elif isinstance(error, RepositoryNotFoundError) or _status(error) in (401, 403, 404):
            what = (
                f"no such path here, and no repository {page}, or a private one; expected a local checkpoint or "
                "org/name; check the spelling, or set HF_TOKEN to a token that may read it"
            )
        elif getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            what = f"the disk is full at {self._cache}; free some space, or set HF_HOME to a folder on another disk"
        elif isinstance(error, OSError) and error.filename is not None:
            what = f"{self._cache} cannot be written ({error.strerror}); set HF_HOME to a folder that can"
        else:
            what = f"the download broke off ({_reason(error)}); retry, it goes on where it stopped"
        return CheckpointError(f"{self._source}: {what}")


def _status(error: Exception) -> int | None:
    """The HTTP status that an error came with."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _is_outage(error: Exception) -> bool:
    """Whether the hub did not answer, or only that it cannot now."""
    status = _status(error)
    return status is None or status in (408, 429) or status >= 500


def _reason(error: BaseException) -> str:
    """The telling line of the error that all others came from: the system's, not a HTTP library's account of it."""
    while inner := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        error = inner
    return telling_line(error)


def _bar() -> type[Any]:
    """The client's progress bar, only where stderr is a terminal."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **settings: Any) -> None:
            settings.setdefault("disable", None)  # None: where stderr is no terminal
            super().__init__(*args, **settings)  # type: ignore[no-untyped-call,unused-ignore]

    return Bar
