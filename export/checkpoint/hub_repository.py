"""The files of one revision of a hub repository, fetched into the hub's own cache.

In: a repository, a revision, names of files. Out: the local folder that has them, or a CheckpointError in words. The
hub's client downloads, resumes, keeps the cache and reads its own settings (HF_ENDPOINT, HF_HOME, HF_TOKEN,
HF_HUB_OFFLINE); if the hub cannot be reached, a complete copy in the cache is used. Knows nothing about what the files
hold, or which ones are needed.
"""

from __future__ import annotations

import errno
import glob
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.runtime.errors import CheckpointError, telling_line
from edge.runtime.files import real_path


@dataclass(frozen=True, slots=True)
class RepositoryFile:
    size: int | None  # bytes, where the hub says so
    blob: str | None  # its name in the cache


class Repository:
    """The files of one revision: as the hub lists them, or as the cache has them if the hub cannot be reached.

    anchor: the file that the cache must have to be used without the hub. ask: whether the hub may be asked at all.
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
        self._cached: Path | None = None  # the folder that is used without the hub
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
        except Exception as error:  # of two HTTP libraries: one before version 1.0 of the client, one after
            if not _is_outage(error):
                raise self._explain(error) from error
            offline = isinstance(error, OfflineModeIsEnabled)
            self._unreachable = (
                "HF_HUB_OFFLINE is set" if offline else f"{endpoint} cannot be reached ({reason(error)})"
            )
            self._advice = "unset it and retry" if offline else "check the connection and retry"
            self._use_cached(anchor, error)
        else:
            self._commit = info.sha or revision
            self.files = {
                file.rfilename: RepositoryFile(file.size, file.lfs.sha256 if file.lfs else file.blob_id)
                for file in info.siblings or []
            }

    def error(self, what: str) -> CheckpointError:
        """An error about the files; if only the cache was used, it says that the cache may be the cause."""
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
                # The client ignores what has arrived of a file, and the other files; `_check_space` counts both.
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
        self._revision = self._commit  # the name is in the cache now; later files must be of the same commit
        of_commit = Path(folder).with_name(self._commit)
        for name in names:
            self._check_size(of_commit / name, self.files[name].size)
        return of_commit

    def _use_cached(self, anchor: str, error: Exception | None) -> None:
        """Use the cache, if it has the anchor. error: why the hub is not used."""
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(self.name, anchor, cache_dir=self._cache, revision=self._revision)
        if not isinstance(path, str):
            raise CheckpointError(
                f"{self._source}: no such local path, {self._unreachable}, and {self._cache} holds no copy of "
                f"revision {self._revision}; {self._advice}, or give a local checkpoint"
            ) from error
        self._cached = Path(path).parents[anchor.count("/")]
        found = [file for file in self._cached.rglob("*") if file.is_file()]
        self.files = {file.relative_to(self._cached).as_posix(): RepositoryFile(None, None) for file in found}

    def _check_space(self, names: list[str]) -> None:
        """Raises CheckpointError before anything is written; the client would fill the disk first."""
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
                f"delete {real_path(path)} and retry"
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
                f"no such local path, and no repository {page}, or a private one; expected a local checkpoint or "
                "org/name; check the spelling, or set HF_TOKEN to a token that may read it"
            )
        elif getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            what = f"the disk is full at {self._cache}; free some space, or set HF_HOME to a folder on another disk"
        elif isinstance(error, OSError) and error.filename is not None:
            what = f"{self._cache} cannot be written ({error.strerror}); set HF_HOME to a folder that can"
        else:
            what = f"the download broke off ({reason(error)}); retry, it resumes where it stopped"
        return CheckpointError(f"{self._source}: {what}")


def _status(error: Exception) -> int | None:
    """The HTTP status that an error came with."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _is_outage(error: Exception) -> bool:
    """Whether the hub did not answer, or answered that it cannot serve now."""
    status = _status(error)
    return status is None or status in (408, 429) or status >= 500


def reason(error: BaseException) -> str:
    """The telling line of the root cause: the system's error, not an HTTP library's account of it."""
    while inner := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        error = inner
    return telling_line(error)


def _bar() -> type[Any]:
    """The client's progress bar, shown only if stderr is a terminal."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **settings: Any) -> None:
            settings.setdefault("disable", None)  # None: where stderr is no terminal
            super().__init__(*args, **settings)  # type: ignore[no-untyped-call,unused-ignore]

    return Bar
