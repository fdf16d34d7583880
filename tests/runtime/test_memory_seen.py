"""A limit seen to hold: real loads and exports in processes of their own, below real limits of the system.

Where control groups can be made (as root, outside of most containers), the system itself ends a process that takes
more. Everywhere, what a process takes that cannot be dropped is sampled while it answers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.export.plan import make_plan
from edge.export.settings import ExportSettings
from edge.export.space import memory_bytes

pytestmark = pytest.mark.slow

BOTH = ("onnx", "openvino")
WEIGHT_FILES = ("openvino_model.bin", "model.onnx.data")
MB = 10**6
V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
SCRIPT = """
import json, os, sys, threading, time
from pathlib import Path

bundle, options, group = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
if group:
    Path(group, "cgroup.procs").write_text(str(os.getpid()))
import edge
from edge.runtime.machine import anonymous_bytes

peak, opened, ended = [0], [], threading.Event()

def watch():
    while not ended.wait(0.002):
        peak[0] = max(peak[0], anonymous_bytes())

def open_is_noted(event, arguments):
    if event == "open":
        opened.append(os.path.basename(os.fsdecode(arguments[0])) if not isinstance(arguments[0], int) else "")

sys.addaudithook(open_is_noted)
threading.Thread(target=watch, daemon=True).start()
said = {"refused": None}
try:
    llm = edge.load(bundle, **options)
except edge.EdgeError as error:
    said["refused"] = f"{type(error).__name__}: {error}"
    said["opened"] = opened
else:
    context = llm.engine.info.max_context
    ids = llm.tokenizer.encode("The quick brown fox jumps over the lazy dog. " * 200)[: min(context, 1000) - 16]
    long = llm.generate(ids, max_new_tokens=8, ignore_stop_ids=True).answer()
    prompts = [ids[start : start + 16] for start in range(16)]
    several = llm.generate_batch(prompts, max_new_tokens=8, ignore_stop_ids=True)
    short = llm.generate("The capital of France is", max_new_tokens=8, ignore_stop_ids=True).answer()
    said |= {"context": context, "cache": llm.engine.pool.bytes, "short": short.token_ids}
    said["errors"] = sum(answer.error is not None for answer in [long, *several])
ended.set()
print(json.dumps(said | {"peak": peak[0]}))
"""


def run(bundle: Path, group: Path | None = None, **options: Any) -> dict[str, Any]:
    """Load and answer in a process of its own. Any: options of edge.load, and JSON."""
    command = [sys.executable, "-c", SCRIPT, str(bundle), json.dumps(options), str(group or "")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-2000:]}"
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of this test's own, of either version."""
    made = (V1 if (V1 / "memory.limit_in_bytes").exists() else V2) / f"edge-test-{os.getpid()}"
    try:
        made.mkdir()
    except OSError:
        pytest.skip("no control group can be made here")
    if not any((made / name).exists() for name in ("memory.limit_in_bytes", "memory.max")):
        made.rmdir()
        pytest.skip("control groups here do not limit memory")
    yield made
    made.rmdir()


def limit(group: Path, size: int) -> None:
    name = "memory.limit_in_bytes" if (group / "memory.limit_in_bytes").exists() else "memory.max"
    (group / name).write_text(str(size))


@pytest.mark.parametrize("engine", BOTH)
def test_a_process_stays_below_what_it_was_given(demo_bundle: Path, engine: str, group: Path) -> None:
    """In a group that ends it if it took a tenth more; ids are those of a run without a limit."""
    free = run(demo_bundle, engine=engine, max_context=2048, kv_precision="f16")
    given = 380 * MB
    limit(group, given * 11 // 10)
    bound = run(demo_bundle, group, engine=engine, max_memory_bytes=given, kv_precision="f16")
    assert bound["refused"] is None
    assert bound["errors"] == 0
    assert bound["peak"] <= given
    assert bound["cache"] < free["cache"]
    assert bound["short"] == free["short"]


@pytest.mark.parametrize("engine", BOTH)
def test_what_does_not_fit_is_refused_before_weights_are_opened(demo_bundle: Path, engine: str, group: Path) -> None:
    found = run(demo_bundle, engine=engine, max_memory_bytes=200 * MB)
    assert found["refused"].startswith("MemoryLimitError: ")
    assert "max_memory_bytes is 200.0 MB" in found["refused"]
    assert found["peak"] < 120 * MB
    assert not set(WEIGHT_FILES) & set(found["opened"])
    limit(group, 160 * MB)  # by the system, with nothing said on the command line
    found = run(demo_bundle, group, engine=engine)
    assert f"(limit of the control group {group.name}: 160.0 MB)" in found["refused"]
    assert not set(WEIGHT_FILES) & set(found["opened"])


def test_a_container_gives_a_shorter_context_instead_of_an_end(demo_bundle: Path, group: Path) -> None:
    """Without any option: the cache would have been 2.1 GB, and the process ended in the middle of an answer."""
    limit(group, 450 * MB)
    found = run(demo_bundle, group, engine="onnx")
    assert found["refused"] is None
    assert found["errors"] == 0
    assert found["cache"] < 250 * MB


def test_an_export_stays_below_what_it_was_given(demo_gguf: Path, tmp_path: Path, group: Path) -> None:
    """In a group that ends it if it took a tenth more than what was forecast."""
    given = memory_bytes(make_plan(demo_gguf, ExportSettings("int8-asym", format="openvino")))
    limit(group, given * 11 // 10)
    script = (
        "import os, sys, pathlib; pathlib.Path(sys.argv[1], 'cgroup.procs').write_text(str(os.getpid())); "
        "from edge.cli import main; sys.exit(main(sys.argv[2:]))"
    )
    words = ["export", str(demo_gguf), str(tmp_path / "out"), "--recipe", "int8-asym", "--format", "openvino"]
    command = [sys.executable, "-c", script, str(group), *words, "--max-memory"]
    done = subprocess.run([*command, "100MB"], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1
    assert "--max-memory is 100.0 MB" in done.stderr
    assert "nothing was written" in done.stderr
    assert list(tmp_path.iterdir()) == []
    done = subprocess.run([*command, f"{given}B"], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "out" / "manifest.json").exists()
