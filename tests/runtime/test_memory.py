"""Memory that the system refuses is an error that says how much was wanted and what to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge.runtime.errors import SettingsError
from edge.runtime.kv.memory import PagedMemory, SlotMemory, untouched

SCRIPT = """
import resource, sys
import edge

edge.load(sys.argv[1], engine=sys.argv[2]).close()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (int(sys.argv[3]) << 20), resource.RLIM_INFINITY))
try:
    llm = edge.load(sys.argv[1], engine=sys.argv[2], max_context=int(sys.argv[4]))
except edge.EdgeError as error:
    print(type(error).__name__, error)
else:
    print(llm.generate("hi", max_new_tokens=2, ignore_stop_ids=True).answer().finish_reason)
"""


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_a_refused_map_is_one_error(demo_bundle: Path, engine: str) -> None:
    """An address space with room for the model and 400 MB, where the cache may fill 2.1 GB."""
    command = [sys.executable, "-c", SCRIPT, str(demo_bundle), engine, "400"]
    done = subprocess.run([*command, "8192"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("SettingsError the system refuses the ")
    assert (
        "bytes that the KV cache may fill (Cannot allocate memory); lower kv_cache_bytes or max_context" in done.stdout
    )
    assert int(done.stdout.split("the ")[2].split()[0].replace(",", "")) > 400_000_000
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize("size", [1 << 62, 1 << 63, 1 << 70])
def test_sizes_that_no_system_has(size: int) -> None:
    for make in (
        lambda: untouched((size,), np.uint8),
        lambda: PagedMemory(4, [size // 8] * 8),
        lambda: SlotMemory(1, 2, (1, size, 1), np.float32),
    ):
        with pytest.raises(SettingsError, match=r"refuses the [0-9,]{20,} bytes") as refused:
            make()
        assert refused.value.param == "kv_cache_bytes"
