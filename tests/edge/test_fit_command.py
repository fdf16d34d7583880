"""`edge fit` and `edge devices` as they are typed."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from edge import cli
from edge.commands.tables import cell_width
from edge.profiles.devices.bandwidth import Bandwidth
from edge.profiles.devices.table import device_profiles
from edge.profiles.fit.report import USEFUL
from edge.runtime.machine import MemoryLimit


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured differs at every call, and takes a second."""
    monkeypatch.setattr("edge.profiles.devices.bandwidth.measured_bandwidth", lambda: Bandwidth(20.0, 40.0, 2))


@pytest.fixture
def config(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A config without anything beside it."""
    return Path(shutil.copy(tiny_checkpoint / "config.json", tmp_path / "config.json"))


def said(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> str:
    try:
        found = cli.main([str(word) for word in words])
    except SystemExit as stopped:
        found = int(stopped.code or 0)
    shown = capsys.readouterr()
    assert found == code, shown.err
    return shown.err if code else shown.out


def as_json(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(said(capsys, *words, "--json"))
    return found


def test_a_config_gets_every_device_and_this_machine(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "fit", config)
    for key in device_profiles():
        assert key in text
    for words in ("here:", "40 GB/s measured", "error of tok/s:", "error on an NPU: about", *USEFUL):
        assert words in text
    found = as_json(capsys, "fit", config)
    assert [place["device"] for place in found["places"]] == ["here"]
    assert [place["device"] for place in found["devices"]] == list(device_profiles())
    assert [one["recipe"] for one in found["places"][0]["recipes"]] == list(USEFUL)


def test_one_device_is_told_of_alone_and_always_alike(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (said(capsys, "fit", config, "--device", "Core Ultra 7 258V") for _ in range(2))
    assert first == second
    assert "core-ultra-258v.gpu: Core Ultra 7 258V: Arc 140V" in first
    assert "136.5 GB/s at most" in first
    assert "here" not in first
    assert "arc-b580" not in first


def test_memory_and_context_are_what_was_said(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("fit", config, "--device", "n100.cpu", "--recipe", "int8-asym", "--context", 64)
    place = as_json(capsys, *words, "--memory", "8GiB")["places"][0]
    assert place["memory_bytes"] == 8 << 30
    assert place["room_bytes"] < 8 << 30
    [one] = place["recipes"]
    assert one["recipe"] == "int8-asym"
    assert one["runs"]
    small = as_json(capsys, *words, "--memory", "2.001GB")["places"][0]["recipes"][0]
    assert not small["runs"]
    assert small["longest_context"] == 0
    assert "no: too little memory" in said(capsys, *words, "--memory", "2.001GB")


def test_a_bundle_is_told_of_as_it_is(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys, "fit", tiny_bundle, "--device", "here")
    assert found["devices"] == []
    assert [one["recipe"] for one in found["places"][0]["recipes"]] == ["int8-asym"]
    assert "is a bundle" in said(capsys, "fit", tiny_bundle, "--recipe", "fp16", code=2)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--device", "258w"), 1, "did you mean core-ultra-258v"),
        (("--device", "NPU"), 1, "which of core-ultra-155h.npu"),
        (("--context", "0"), 2, "--context is 0, expected 1 to"),
        (("--context", "99999999"), 2, "the model's limit"),
        (("--context", "many"), 2, "not a whole number"),
        (("--recipe", "int3"), 2, "int3"),
        (("--memory", "none"), 2, "not a size"),
    ],
)
def test_what_is_wrong_is_one_line(
    config: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: int, message: str
) -> None:
    error = said(capsys, "fit", config, *words, code=code)
    assert message in error
    assert error.count("\n") == 1


def test_an_unknown_architecture_is_refused_as_an_export_refuses_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert "architecture 'bert' in safetensors is not supported" in said(capsys, "fit", tmp_path, code=1)


def test_no_hub_is_asked_for_what_is_a_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such path" in said(capsys, "fit", tmp_path / "nothing", code=1)


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_a_terminal_gets_lines_as_wide_as_it_is(config: Path, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("COLUMNS", str(width))
    assert cli.main(["fit", str(config)]) == 0
    lines = stream.getvalue().splitlines()
    told = [line for line in lines if str(config) not in line]
    assert max(map(cell_width, told)) <= width
    assert width < 60 or any("core-ultra-x7-358h.npu" in line for line in lines)


def test_devices_tells_what_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "devices")
    assert "CPU" in text
    assert "not measured; --measure does" in text
    assert "40 GB/s read by 2 cores" in said(capsys, "devices", "--measure")
    found = as_json(capsys, "devices")
    assert found["bandwidth"] is None
    assert found["memory"]["total_bytes"] >= found["memory"]["available_bytes"] > 0
    assert found["processor"]["cores"]
    assert as_json(capsys, "devices", "--measure")["bandwidth"]["all_cores_gbs"] == 40


def test_a_containers_limit_is_told_and_kept_to(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = [MemoryLimit("this machine", 1 << 40, 1 << 39, 1 << 39), MemoryLimit("the container", 1 << 30, 1, 1)]
    for name, value in (("memory_limits", limits), ("total_bytes", 1 << 40), ("available_bytes", 1)):
        monkeypatch.setattr(f"edge.runtime.machine.{name}", lambda value=value: value)
    assert "1.07 GB allowed by the container" in said(capsys, "devices")
    memory = as_json(capsys, "devices")["memory"]
    assert memory["limits"] == [{"name": "the container", "limit_bytes": 1 << 30}]
    place = as_json(capsys, "fit", config)["places"][0]
    assert (place["memory_bytes"], place["room_bytes"]) == (1 << 30, 1)
    assert not any(one["runs"] for one in place["recipes"])


def test_a_matched_device_is_told_with_its_source(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edge.profiles.devices.here import Machine, Match, Processor

    row = device_profiles()["core-ultra-258v.cpu"]
    machine = Machine(
        Processor("GenuineIntel", 6, 189, 1, "Ultra 7 258V"), (0x64A0,), "4P+4E", {"cpu": Match(row, "name")}
    )
    monkeypatch.setattr("edge.profiles.devices.here.this_machine", lambda: machine)
    text = said(capsys, "devices")
    assert "core-ultra-258v.cpu" in text
    assert "136.5 GB/s at most with LPDDR5X-8533" in text
    assert "source: beebom.com" in text
    device = as_json(capsys, "devices")["devices"][0]
    assert device["profile"]["sources"]["memory"].startswith("beebom.com")


def test_replicas_are_counted_for_clients(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("fit", config, "--clients", 40, "--tokens-per-s", "8", "--context", 64)
    text = said(capsys, *words)
    assert "replicas for 40 clients of 8 tokens a second, all asking all the time" in text
    assert "replicas for 40 clients of 8 tokens a second, by device" in text
    found = as_json(capsys, *words)
    assert found["clients"] == {"count": 40, "tokens_s": 8.0}
    for place in (*found["places"], *found["devices"]):
        for one in place["recipes"]:
            counted = one["replicas"]
            if one["runs"]:
                assert 1 <= counted["fewest"] <= counted["count"]
                assert counted["origin"]
            else:
                assert counted["count"] is None
    assert "replicas" not in as_json(capsys, "fit", config)["places"][0]["recipes"][0]


def test_clients_and_their_speed_are_given_together(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("--clients", 4), ("--tokens-per-s", 4), ("--simulate",)):
        assert "--clients" in said(capsys, "fit", config, *words, code=2)


def test_what_clients_wait_for_is_simulated(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("simpy")
    words = ("fit", config, "--device", "n100.cpu", "--clients", 3, "--tokens-per-s", "50", "--context", 64)
    text = said(capsys, *words, "--simulate")
    assert text == said(capsys, *words, "--simulate")  # a seed, and no clock
    assert "replicas, simulated: conversations of 4 turns" in text
    for rule in ("prefix", "two-choices", "round-robin"):
        assert f"\n{rule}" in text
    [one] = as_json(capsys, *words, "--simulate")["simulated"]
    assert one["device"] == "n100.cpu"
    assert all(run["result"]["answered"] == run["result"]["asked"] for run in one["runs"])
