"""Memory that the system refuses is an error that says how much was wanted and what to do."""

from __future__ import annotations

import re
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
    llm = edge.load(sys.argv[1], engine=sys.argv[2], max_context=int(sys.argv[4]), max_memory_bytes=int(sys.argv[5]))
except edge.EdgeError as error:
    print(type(error).__name__, error)
else:
    print(llm.generate("hi", max_new_tokens=2, ignore_stop_ids=True).answer().finish_reason)
"""


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_a_refused_map_is_one_error(demo_bundle: Path, engine: str) -> None:
    """An address space with room for less than the cache of the context that was asked for, whatever else was said."""
    command = [sys.executable, "-c", SCRIPT, str(demo_bundle), engine, "100"]
    done = subprocess.run([*command, "8192", str(10**12)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    if engine == "openvino":  # which maps the weights before it asks for a cache
        assert re.match(r"DeviceError CPU cannot run .*Cannot allocate memory", done.stdout)
        return
    assert done.stdout.startswith("SettingsError a context of 8192 tokens needs ")
    needed, allowed = (int(word.replace(",", "")) for word in re.findall(r"(\d[\d,]{6,}) ", done.stdout))
    assert needed > allowed


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
