"""Files on Windows, where none can be replaced that is open or mapped, and mapped pages are dropped in another way."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from edge.export.checkpoint import mapped
from edge.export.checkpoint.mapped import MappedFiles
from edge.runtime.errors import CacheError, SnapshotError
from edge.runtime.kv import pages
from edge.runtime.kv.snapshot import open_snapshot
from tests.platforms.windows_memory import Kernel32
from tests.runtime.test_snapshot import IDENTITY, content, paged, save

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which files and pages are in use")


def in_use(path: Path) -> bool:
    """Whether this process has a file open or mapped."""
    numbers = list(Path("/proc/self/fd").iterdir())
    opened = {str(number.readlink()) for number in numbers if number.is_symlink()}
    return str(path) in opened or str(path) in Path("/proc/self/maps").read_text()


def test_a_loaded_prefix_can_be_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It could not be: `save_prefix` over a prefix that was loaded ended with "cannot be written"."""
    path, pool = tmp_path / "prefix", paged()
    whole = save(path)
    assert not in_use(path)
    with_map = open_snapshot(path, IDENTITY)
    assert in_use(path), "elsewhere it stays mapped"
    with_map.close()
    monkeypatch.setattr(sys, "platform", "win32")
    snapshot = open_snapshot(path, IDENTITY)
    snapshot.check_payload()
    assert not in_use(path)
    for _ in range(2):
        assert b"".join(content(pool, snapshot.restore(pool, 10), 10)) == whole[4096:]
        assert not in_use(path)
    monkeypatch.undo()
    assert save(path, paged(seed=2)) != whole
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SnapshotError, match="was overwritten since it was opened"):
        snapshot.restore(paged(), 10)
    path.unlink()
    with pytest.raises(SnapshotError, match="cannot be read again"):
        snapshot.restore(paged(), 10)
    snapshot.close()
    with pytest.raises(CacheError, match="has been closed"):
        snapshot.restore(paged(), 10)


def test_mapped_weights_leave_the_working_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, path = Kernel32(), tmp_path / "weights"
    path.write_bytes(bytes(range(256)) * 64)
    monkeypatch.setattr(pages, "kernel32", lambda: kernel)
    monkeypatch.setattr(mapped, "READ_BYTES", 100)
    files = MappedFiles()
    view = files.view(path, 4096, 8192)
    monkeypatch.setattr(sys, "platform", "win32")
    files.release()
    assert kernel.dropped == [(view.ctypes.data - 4096, 256 * 64)]
    assert (view == np.arange(8192, dtype=np.uint8)).all(), "it stays valid"
