"""The registry of engines: whatever lists engines reads it, so that a new one is a file and a record."""

from __future__ import annotations

import logging
import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

import edge
from edge.cli import build_parser, main
from edge.profiles.plot import COLOURS, _style
from edge.profiles.settings import SweepSettings
from edge.profiles.sweep_plan import _check_names
from edge.runtime.bundle import open_bundle
from edge.runtime.engines.choice import engines_for, open_engine
from edge.runtime.engines.registry import ENGINES, EngineRecord
from edge.runtime.engines.scripted import ScriptedEngine, noise
from edge.runtime.errors import BundleError, DeviceError, MissingPackageError, SettingsError
from edge.runtime.extras import BROUGHT, install_command
from edge.runtime.settings import EngineSettings

PROMPT = "a secret that no log may hold"


def record(name: str, package: str = "numpy") -> EngineRecord:
    return EngineRecord(
        name=name,
        package=package,
        extra="npu",
        graph="scripted graph",
        bundle_format="openvino",
        families=("VPU",),
        kv_precisions=("f16",),
        reads_links=True,
        holds=lambda bundle: (bundle.path / "manifest.json").exists(),
        weights=lambda bundle: [],
        open=lambda bundle, settings: ScriptedEngine(noise(), bundle.manifest.spec.vocab_size, name=name),
        devices=list,
    )


@pytest.fixture
def npu(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(ENGINES, "npu", record("npu"))
    return "npu"


def test_a_record_is_all_that_an_engine_needs(npu: str, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with edge.load(tiny_bundle, engine=npu, device="VPU", self_test="off") as llm:
        assert llm.engine.info.name == npu
        assert len(llm.generate([1, 2], max_new_tokens=3).answer().token_ids) == 3
    assert engines_for(open_bundle(tiny_bundle), "VPU") == [npu]
    assert edge.load(tiny_bundle, device="VPU", self_test="off").engine.info.name == npu  # the only one for that device
    _check_names(SweepSettings(recipes=("int8-asym",), engines=(npu,)))
    assert len({_style(name) for name in (*ENGINES, "unheard of")}) == len(COLOURS)
    assert "{auto,openvino,onnx,openvino_npu,npu}" in re.sub(r"\s", "", _help("run"))
    words = ["run", str(tiny_bundle), "Hello", "--raw", "--engine", npu, "--self-test", "off", "--max-new-tokens", "2"]
    assert main(words) == 0
    assert capsys.readouterr().err == ""


def test_a_wrong_engine_at_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", "bundle", "Hello", "--engine", "onx"])
    assert ended.value.code == 2
    assert "engine 'onx' is unknown, did you mean 'onnx'? known are auto, openvino (" in capsys.readouterr().err


def _help(verb: str) -> str:
    verbs = next(action.choices for action in build_parser()._actions if isinstance(action.choices, dict))
    return str(verbs[verb].format_help())


def test_what_is_wrong_with_an_engine_is_said(npu: str, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=r"engine 'np' is unknown, did you mean 'npu'\? known are auto, openvino"):
        edge.load(tiny_bundle, engine="np")
    with pytest.raises(DeviceError, match="device 'TPU': no engine runs on it"):
        edge.load(tiny_bundle, device="TPU")
    monkeypatch.setitem(ENGINES, "npu", record("npu", "a_package_that_is_not_there"))
    with pytest.raises(MissingPackageError, match=re.escape(f"is not installed; {install_command('npu')}")):
        open_engine(open_bundle(tiny_bundle), EngineSettings("npu"))
    with pytest.raises(SettingsError, match=rf"known are .*npu \({re.escape(install_command('npu'))}\)"):
        edge.load(tiny_bundle, engine="tpu")


def test_a_bundle_without_the_graph_of_an_engine(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "npu", replace(record("npu"), holds=lambda bundle: False))
    with pytest.raises(BundleError, match="holds no scripted graph; use --engine openvino or onnx, or export it"):
        edge.load(tiny_bundle, engine="npu")


def test_extras_bring_the_packages_of_engines() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for known in ENGINES.values():
        assert known.package in BROUGHT[known.extra]
        assert any(re.match(rf"{known.package}\b", wanted) for wanted in project["optional-dependencies"][known.extra])


def test_records_say_what_engines_take() -> None:
    """The command line and sweeps ask the record, before an engine's package is imported."""
    from edge.runtime.engines.onnx_kernels import CACHE_TYPES
    from edge.runtime.engines.openvino_paged import FAMILIES

    assert ENGINES["onnx"].kv_precisions == tuple(CACHE_TYPES)
    assert ENGINES["openvino"].families == FAMILIES


def test_logs_tell_what_happens_and_never_what_is_said(caplog: pytest.LogCaptureFixture, tiny_bundle: Path) -> None:
    caplog.set_level(logging.DEBUG, "edge")
    edge.load(tiny_bundle).close()
    llm = edge.scripted_llm(noise(), max_context=96, block_size=4, num_blocks=24)
    llm.generate_batch([f"{PROMPT} {i}" for i in range(6)], ignore_stop_ids=True)
    llm.prefixes.pin("x" * 60)
    llm.generate_batch(["y" * 50], max_new_tokens=40)
    llm.close()
    said = caplog.text
    for event in ("engine ", "waits for room", "preempted request", "refused: ", "closed "):
        assert event in said, said
    assert PROMPT not in said
    assert "xxxx" not in said
