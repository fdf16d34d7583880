"""A report tells what a device did, whatever happens meanwhile, and nothing about whose it is."""

from __future__ import annotations

import getpass
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.runtime import device_report, device_runs
from edge.runtime.bundle import open_bundle
from edge.runtime.device_facts import device_facts, machine_facts
from edge.runtime.device_report import FINISHED, FORMAT, write_report
from edge.runtime.device_runs import compared
from edge.runtime.differences import FLOAT32_BOUND
from edge.runtime.engines import openvino_paged
from edge.runtime.errors import OutputError
from edge.runtime.golden import GoldenLogits
from edge.runtime.lint.findings import Finding
from edge.runtime.private_words import Scrubber
from tests.runtime.test_openvino_gpu import StandIn


def read(path: Path) -> dict[str, Any]:
    """Strict JSON: without NaN."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    return content


@pytest.fixture(scope="module")
def report(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.json"
    made = write_report(open_bundle(tiny_bundle), "CPU", path)
    assert made.failures == ()
    assert made.content == read(path)
    return path


def test_what_a_report_tells(report: Path) -> None:
    """Of a device that is here: both engines, exact and usual, as they ran."""
    content = read(report)
    assert (content["format"], content["state"]) == (FORMAT, FINISHED)
    assert content["machine"]["packages"]["openvino"]
    assert content["device"]["here"] == ["CPU"]
    assert content["device"]["properties"]["FULL_DEVICE_NAME"]
    assert content["rules"]["findings"] == []
    assert content["bundle"]["recipe"] == "int8-asym"
    runs = {run["run"]: run for run in content["runs"]}
    assert list(runs) == [f"{engine}, {how}" for engine in ("openvino", "onnx") for how in ("exact", "usual")]
    for name, run in runs.items():
        golden, times = run["golden"], run["times"]
        assert golden["non_finite"] == golden["rows_with_non_finite"] == 0
        assert golden["again_bit_equal"] is True
        assert 0 <= golden["error_of_scale"] <= (FLOAT32_BOUND if "exact" in name else 1)
        assert times["prompt_tokens"] > 100
        assert times["decode_ms_a_token"] > 0
        assert run["info"]["kv_bytes_per_token"] > 0
    [keys, values] = runs["openvino, exact"]["caches"]
    assert (keys["type"], keys["layers"], values["layers"]) == ("f32", 3, 3)
    assert runs["openvino, exact"]["info"]["tokens_per_block"] == 32
    assert runs["openvino, exact"]["info"]["kv_memory"] == "arrays"


def test_a_machine_without_the_device(tiny_bundle: Path, tmp_path: Path) -> None:
    """Everything that is known is there, with the reason why the rest is not."""
    made = write_report(open_bundle(tiny_bundle), "GPU", tmp_path / "report.json")
    content = read(tmp_path / "report.json")
    assert content["state"] == FINISHED
    assert content["device"]["here"] == ["CPU"]
    assert content["device"]["properties"] == {}
    assert content["machine"]["memory_bytes"] > 0
    assert [run["run"] for run in content["runs"]] == [
        f"openvino, {how}, {memory} memory" for how in ("exact", "usual") for memory in ("device", "host")
    ]
    assert all("GPU" in run["error"] for run in content["runs"])
    assert len(made.failures) == 5


def test_a_gpu_is_asked_with_both_memories(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU in its place: see tests/runtime/test_openvino_gpu.py."""
    monkeypatch.setattr(openvino_paged, "make_core", StandIn)
    write_report(open_bundle(tiny_bundle), "GPU", tmp_path / "report.json", ())
    runs = {run["run"]: run for run in read(tmp_path / "report.json")["runs"]}
    assert [run["info"]["kv_memory"] for run in runs.values()] == ["device", "host"] * 2
    assert {run["golden"]["error_of_scale"] for name, run in runs.items() if "exact" in name}.pop() < 1e-2
    assert runs["openvino, exact, device memory"]["settings"]["kv_precision"] == "f16"


def test_what_a_run_raises_is_in_it_and_the_next_is_tried(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def failing(*_args: object) -> dict[str, Any]:
        calls.append(1)
        if len(calls) % 2:
            raise RuntimeError("Exception from src/core.cpp:117:\n[GPU] CL_OUT_OF_RESOURCES")
        return {"load_s": float("nan"), "golden": {"largest": float("inf")}}

    monkeypatch.setattr(device_report, "measure", failing)
    made = write_report(open_bundle(tiny_bundle), "CPU", tmp_path / "report.json")
    runs = read(tmp_path / "report.json")["runs"]
    assert [run.get("error") for run in runs] == ["RuntimeError: [GPU] CL_OUT_OF_RESOURCES", None] * 2
    assert made.failures == ("RuntimeError: [GPU] CL_OUT_OF_RESOURCES",) * 2
    assert (runs[1]["load_s"], runs[1]["golden"]["largest"]) == ("nan", "inf")


def test_a_process_that_a_driver_ends_leaves_what_is_known(tiny_bundle: Path, tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path\n"
        "from edge.runtime import device_report; from edge.runtime.bundle import open_bundle\n"
        "device_report.measure = lambda *_args: os._exit(139)\n"
        "device_report.write_report(open_bundle(sys.argv[1]), 'CPU', Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", script, str(tiny_bundle), str(tmp_path / "report.json")]
    assert subprocess.run(command, check=False, timeout=60).returncode == 139
    content = read(tmp_path / "report.json")
    assert content["state"] == "began to run openvino, exact; if nothing follows, this ended the process"
    assert content["device"]["properties"]
    assert content["runs"] == []


def test_what_rules_refuse_is_not_compiled(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_report, "measure", lambda *_args: pytest.fail("it was compiled"))
    found = Finding("gpu-test", "crash", "it crashes", "choose another", "a page", refused=True)
    write_report(open_bundle(tiny_bundle), "CPU", tmp_path / "report.json", [found])
    content = read(tmp_path / "report.json")
    assert content["state"] == "finished; nothing was compiled, as rules refuse it: gpu-test"
    assert content["rules"]["findings"][0]["message"] == "it crashes"


@pytest.mark.parametrize("content", [b"mine", b'{"format": "other"}', b"\xff\xfe"])
def test_a_file_of_others_stays(content: bytes, tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(content)
    with pytest.raises(OutputError, match="exists and is not a device report; move it away, or name another file"):
        write_report(open_bundle(tiny_bundle), "CPU", path)
    assert path.read_bytes() == content
    for wrong in (tmp_path, tmp_path / "no" / "folder"):
        with pytest.raises(OutputError):
            write_report(open_bundle(tiny_bundle), "CPU", wrong)


def test_an_older_report_is_replaced(report: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    again = report.with_name("again.json")
    shutil.copy(report, again)
    monkeypatch.setattr(device_report, "measure", lambda *_args: {})
    write_report(open_bundle(tiny_bundle), "CPU", again)
    assert read(again)["runs"][0].keys() == {"run", "settings"}


def test_a_report_does_not_tell_whose_it_is(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in what it asks for, and not in what a driver says when it fails."""
    monkeypatch.setattr(platform, "node", lambda: "quicksilver.example.org")
    monkeypatch.setattr(getpass, "getuser", lambda: "kasimir")
    secret = tmp_path / "kasimir's models" / "unannounced-model"
    shutil.copytree(tiny_bundle, secret)

    def failing(*_args: object) -> dict[str, Any]:
        raise RuntimeError(
            f"[GPU] {secret / 'openvino_model.xml'} of Kasimir on QUICKSILVER: {secret!r}, "
            "C:\\Users\\Ka Simir\\cl.dll, /opt/unannounced/cache/cl.bin, "
            f"{Path.home() / 'plans' / 'x.txt'}, \\\\quicksilver\\share\\y.bin"
        )

    monkeypatch.setattr(device_report, "measure", failing)
    monkeypatch.chdir(secret)
    for bundle in (secret, Path(), Path("..") / secret.name):
        write_report(open_bundle(bundle), "CPU", tmp_path / "report.json")
        text = (tmp_path / "report.json").read_text(encoding="utf-8").lower()
        for word in ("kasimir", "quicksilver", "unannounced", str(tmp_path).lower(), "/plans/", "ka simir"):
            assert word not in text, word
        assert "openvino_model.xml" in text, "what is wrong can still be read"


def test_names_of_nobody_stay() -> None:
    scrubber = Scrubber({}, {"root": "<user>", "user": "<user>", "ab": "<user>", "intel": "<machine>"})
    assert scrubber.text("user root ab") == "user root ab"
    assert scrubber.text("Intel(R) intelligent 2026.4.1-22982-releases/2026/4") == (
        "<machine>(R) intelligent 2026.4.1-22982-releases/2026/4"
    )
    assert scrubber.json({"intel": ["intel", 3, None, {"a": True}]}) == {"intel": ["<machine>", 3, None, {"a": True}]}


@given(st.lists(st.text("abc/\\ :.~'\"", max_size=12), max_size=6), st.sampled_from(["/home/kasimir", "C:\\Kasimir"]))
def test_wherever_a_place_is(parts: list[str], place: str) -> None:
    scrubber = Scrubber({place: "BUNDLE"}, {"kasimir": "<user>"})
    assert "kasimir" not in scrubber.text(place.join(parts)).lower()


def test_numbers_that_are_not_finite_are_counted() -> None:
    right = np.arange(12, dtype=np.float32).reshape(2, 6)
    golden = GoldenLogits(np.arange(5), right, right)
    assert compared(right, golden)["error_of_scale"] == compared(right, golden)["kld_from_float"] == 0
    for wrong, count in ((np.nan, 1), (np.inf, 1)):
        rows = right.copy()
        rows[1, 2] = wrong
        found = compared(rows, golden)
        assert (found["non_finite"], found["rows_with_non_finite"], found["largest"]) == (count, 1, 11)
        assert found["error_of_scale"] is None
        assert found["kld_from_compressed"] is None
    nothing = compared(np.full_like(right, np.nan), golden)
    assert (nothing["non_finite"], nothing["largest"]) == (12, None)
    other = compared(right[:, ::-1].copy(), golden)
    assert (other["error_of_scale"], other["same_best_token"]) == (0.4545, 0)


def test_drivers_of_a_machine(tmp_path: Path) -> None:
    """Intel's alone, with the kernel's driver for each; nothing where the system has no such files."""
    assert machine_facts(tmp_path)["drivers"] == {}
    status = tmp_path / "var/lib/dpkg/status"
    status.parent.mkdir(parents=True)
    status.write_text(
        "Package: intel-opencl-icd\nStatus: install ok installed\nVersion: 25.31.34666.3-1\n\n"
        "Package: libze-intel-gpu1\nStatus: deinstall ok config-files\nVersion: 1\n\n"
        "Package: secret-plans\nStatus: install ok installed\nVersion: 2\nDescription: all\n of it: here\n"
    )
    for card, vendor in (("card0", "0x8086"), ("card1", "0x10de")):
        device = tmp_path / "sys/class/drm" / card / "device"
        device.mkdir(parents=True)
        (device / "vendor").write_text(f"{vendor}\n")
        (device / "device").write_text("0x64a0\n")
        (tmp_path / "drivers/xe").mkdir(parents=True, exist_ok=True)
        (device / "driver").symlink_to(tmp_path / "drivers/xe")
    (tmp_path / "sys/class/drm/card0-HDMI-A-1").mkdir()
    found = machine_facts(tmp_path)
    assert found["drivers"] == {"intel-opencl-icd": "25.31.34666.3-1"}
    assert found["kernel_drivers"] == [{"kind": "drm", "pci": "0x8086:0x64a0", "driver": "xe"}]


def test_properties_that_tell_places_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Core:
        available_devices = ("CPU", "GPU")

        def get_property(self, _device: str, name: str) -> Any:
            if name == "SUPPORTED_PROPERTIES":
                return dict.fromkeys(
                    ["CACHE_DIR", "WEIGHTS_PATH", "DEVICE_UUID", "DEVICE_LUID", "GPU_X", "CONFIG_FILE", "BAD"]
                )
            if name == "BAD":
                raise RuntimeError("not readable")
            return "value of " + name

    monkeypatch.setattr("edge.runtime.engines.openvino_core.make_core", Core)
    assert device_facts("GPU")["properties"] == {"BAD": "(RuntimeError: not readable)", "GPU_X": "value of GPU_X"}


def test_a_run_gives_its_blocks_back(tiny_bundle: Path) -> None:
    """Also where it fails in between."""
    from edge.runtime.engines.choice import open_engine
    from edge.runtime.settings import EngineSettings

    engine = open_engine(open_bundle(tiny_bundle), EngineSettings("openvino", max_context=96, kv_cache_bytes=1 << 18))
    device_runs.golden_rows(engine, np.arange(20), 4)
    with pytest.raises(Exception, match=r"blocks|tokens"):
        device_runs.golden_rows(engine, np.arange(3000) % 256, 2900)
    assert engine.pool.num_free == engine.pool.num_blocks
    engine.close()
