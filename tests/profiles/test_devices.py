"""The table of devices, machines that it is matched with, and the measured bandwidth."""

from __future__ import annotations

import re
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest

from edge.profiles.devices import bandwidth
from edge.profiles.devices.here import Machine, matches, this_machine
from edge.profiles.devices.table import ARITHMETIC, PAGES, device_profiles, find_profile, read_profiles
from edge.runtime.errors import DeviceError, ProfileError

TEXT = files("edge.profiles.devices").joinpath("devices.toml").read_text(encoding="utf-8")
RAW = tomllib.loads(TEXT)
A380 = TEXT[TEXT.index("[arc-a380.gpu]") : TEXT.index("[arc-a770.gpu]")]
INTEL = """processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: {model}
model name\t: {name}
stepping\t: {stepping}

processor\t: 1
vendor_id\t: GenuineIntel
model name\t: another
"""
# /proc/cpuinfo of some machines -> the chip's row, and how it was found.
MACHINES = (
    (189, "Intel(R) Core(TM) Ultra 7 258V", "core-ultra-258v.cpu", "name"),
    (189, "Intel(R) Core(TM) Ultra 9 288V", "core-ultra-288v.cpu", "name"),
    (189, "Intel(R) Core(TM) Ultra 5 226V", "core-ultra-258v.cpu", "generation"),
    (170, "Intel(R) Core(TM) Ultra 7 155H", "core-ultra-155h.cpu", "name"),
    (170, "Intel(R) Core(TM) Ultra 5 125H", "core-ultra-155h.cpu", "generation"),
    (186, "13th Gen Intel(R) Core(TM) i7-13700H", "core-i7-13700h.cpu", "name"),
    (154, "12th Gen Intel(R) Core(TM) i5-1240P", "core-i5-1240p.cpu", "name"),
    (190, "Intel(R) N100", "n100.cpu", "name"),
    (190, "Intel(R) N97", "n100.cpu", "generation"),
    (143, "Intel(R) Xeon(R) Platinum 8480+", "xeon-8480.cpu", "name"),
    (173, "Intel(R) Xeon(R) 6980P", "xeon-6980p.cpu", "name"),
    (204, "Intel(R) Core(TM) Ultra X7 358H", "core-ultra-x7-358h.cpu", "name"),
)


def root_of(
    tmp_path: Path, cpuinfo: str, pci: tuple[tuple[int, int, int], ...] = (), cores: dict[str, str] | None = None
) -> Path:
    """A folder with /proc and /sys of a machine. pci: vendor, device and class of each."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(cpuinfo)
    for index, (vendor, device, kind) in enumerate(pci):
        folder = tmp_path / f"sys/bus/pci/devices/0000:00:{index:02x}.0"
        folder.mkdir(parents=True)
        for name, value in (("vendor", vendor), ("device", device), ("class", kind)):
            (folder / name).write_text(f"0x{value:x}\n")
    for which, listed in (cores or {}).items():
        (tmp_path / "sys/devices" / which).mkdir(parents=True)
        (tmp_path / "sys/devices" / which / "cpus").write_text(f"{listed}\n")
    return tmp_path


# --- The table --------------------------------------------------------------------------------------------------------


def test_every_value_has_its_source() -> None:
    assert len(device_profiles()) == sum(len(kinds) for chip, kinds in RAW.items() if chip != PAGES)
    for chip, kinds in RAW.items():
        for kind, values in kinds.items() if chip != PAGES else ():
            given = set(values) - {"name", "shares", "source"}
            assert given == set(values["source"]), (chip, kind)
            for source in values["source"].values():
                assert source in RAW[PAGES] or source.startswith(ARITHMETIC)
    assert "recalled" not in TEXT


@pytest.mark.parametrize("key", device_profiles())
def test_a_line_taken_out_of_a_source_is_missed(key: str) -> None:
    chip, kind = key.rsplit(".", 1)
    head, mark, tail = TEXT.partition(f"[{chip}.{kind}.source]\n")
    line, _, rest = tail.partition("\n")
    assert mark
    with pytest.raises(ProfileError, match="has no source"):
        read_profiles(f"{head}{mark}{rest}")
    assert "=" in line


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('cores = "4P+8E"', 'cores = "many"', "expected like 4P+8E"),
        ('memory = "LPDDR5-5200"', 'memory = "fast"', "expected like LPDDR5X-8533"),
        ("bits = 128", "bits = 1", "bits"),
        ("int8_tops = 18", 'int8_tops = "18"', "int8_tops"),
        ("int8_tops = 18", "int8_tops = 1e999", "int8_tops"),
        ("pci = [0x7D55]", "pci = [-1]", "pci"),
        ("xmx = false", "xmx = 0", "xmx"),
        ('cores = "notebookcheck-1240p"', 'cores = "recalled"', "no page"),
        ('name = "Core i5-1240P"', "", "name"),
        ('name = "Core i5-1240P"', 'name = "x"\nmhz = 5', "unknown"),
        ('shares = "n100.cpu"', 'shares = "n101.cpu"', "not above it"),
        ("[n100.gpu]", "[n100.tpu]", "not a cpu, gpu, npu"),
        ("\n[pages]", "\n[pages]\nunused = 'a page'", "nothing has the source unused"),
        ("\n[pages]", "\n[pages", "devices.toml"),
        ("bandwidth_gbs = 186\n", "", "bandwidth_gbs has a source and no value"),
        (
            A380,
            A380.replace("bandwidth_gbs = 186\n", "").replace('bandwidth_gbs = "svethardware"\n', ""),
            "has neither",
        ),
    ],
)
def test_what_is_wrong_with_a_table_is_said(before: str, after: str, said: str) -> None:
    assert before in TEXT
    with pytest.raises(ProfileError, match=re.escape(said)):
        read_profiles(TEXT.replace(before, after, 1))


def test_peak_bandwidth_is_width_times_transfers() -> None:
    assert device_profiles()["core-ultra-258v.gpu"].bandwidth_gbs == 136.5  # 8,533 MT/s x 16 bytes
    assert device_profiles()["n100.cpu"].bandwidth_gbs == 38.4
    assert device_profiles()["xeon-6980p.cpu"].bandwidth_gbs == 614.4  # as [simmtester] has it
    assert device_profiles()["xeon-8480.cpu"].bandwidth_gbs == 307.2


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ("core-ultra-258v.npu", "core-ultra-258v.npu"),
        ("Core-Ultra-258V", "core-ultra-258v.gpu"),
        ("Core Ultra 7 258V", "core-ultra-258v.gpu"),
        ("258v npu", "core-ultra-258v.npu"),
        ("Arc B580", "arc-b580.gpu"),
        ("8480+", "xeon-8480.cpu"),
        ("n100", "n100.gpu"),
    ],
)
def test_a_device_is_found_by_what_people_call_it(given: str, key: str) -> None:
    assert find_profile(given).key == key


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("b850", "did you mean arc-b580"),
        ("arc", "which of"),
        ("x" * 5000, "not in the table"),
        ("", "not in"),
        ("+", "n"),
    ],
)
def test_an_unknown_device_is_answered_with_close_names(given: str, said: str) -> None:
    with pytest.raises(DeviceError, match=said) as raised:
        find_profile(given)
    assert len(str(raised.value)) < 500


# --- Machines ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "name", "key", "by"), MACHINES)
def test_processors_are_told_by_cpuid_and_name(tmp_path: Path, model: int, name: str, key: str, by: str) -> None:
    machine = this_machine(root_of(tmp_path, INTEL.format(model=model, name=name, stepping=1)), "linux")
    match = machine.matches["cpu"]
    assert (match.profile.key, match.by) == (key, by)


def test_a_gpu_is_told_by_its_pci_id_and_the_processor(tmp_path: Path) -> None:
    """258V and 288V have GPUs and NPUs of the same ids; the processor's name says which."""
    pci = (
        (0x8086, 0x64A0, 0x030000),
        (0x8086, 0x643E, 0x120000),
        (0x10DE, 0x56A0, 0x030000),
        (0x8086, 0xE20B, 0x020000),
    )
    root = root_of(tmp_path, INTEL.format(model=189, name="Intel(R) Core(TM) Ultra 9 288V", stepping=1), pci)
    machine = this_machine(root, "linux")
    assert machine.pci == (0x643E, 0x64A0)  # neither another vendor's, nor an adapter of networks
    assert {kind: match.profile.key for kind, match in machine.matches.items()} == {
        "cpu": "core-ultra-288v.cpu",
        "gpu": "core-ultra-288v.gpu",
        "npu": "core-ultra-288v.npu",
    }


def test_a_card_comes_before_the_gpu_inside(tmp_path: Path) -> None:
    root = root_of(tmp_path, "", ((0x8086, 0x7D55, 0x030000), (0x8086, 0x56A0, 0x038000)))
    assert this_machine(root, "linux").profile("gpu") == device_profiles()["arc-a770.gpu"]


def test_cores_are_counted_by_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(22)), raising=False)
    root = root_of(tmp_path, "", cores={"cpu_core": "0-11", "cpu_atom": "12-19,20-21"})
    for processor in range(22):
        folder = root / f"sys/devices/system/cpu/cpu{processor}/topology"
        folder.mkdir(parents=True)
        first = processor - processor % 2 if processor < 12 else processor
        last = first + 1 if processor < 12 else processor
        (folder / "thread_siblings_list").write_text(f"{first}-{last}")
    assert this_machine(root, "linux").cores == "6P+10E"
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 12}, raising=False)
    assert this_machine(root, "linux").cores == "1P+1E"


@pytest.mark.parametrize(
    "cpuinfo",
    [
        "",
        "\n\n\n",
        "CPU implementer\t: 0x41\nCPU part\t: 0xd0c\n",
        "vendor_id\t: GenuineIntel\ncpu family\t: six\nmodel\t: -1\n",
        "vendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t: 99999999999999999999\n",
        "vendor_id\t: AuthenticAMD\ncpu family\t: 6\nmodel\t\t: 189\nmodel name\t: AMD 258V\n",
        "model name\t: \x1b[2J\udce9".encode("utf-8", "replace").decode(),
    ],
)
def test_other_machines_match_nothing(tmp_path: Path, cpuinfo: str) -> None:
    machine = this_machine(root_of(tmp_path, cpuinfo, ((0x1234, 0x1111, 0x030000),)), "linux")
    assert machine.matches == {}
    assert machine.pci == ()


def test_a_machine_that_tells_nothing_is_a_machine(tmp_path: Path) -> None:
    machine = this_machine(tmp_path / "nothing", "linux")
    assert machine == Machine(None, (), machine.cores, {})
    assert matches(None, [0x64A0])["gpu"].profile.chip == "Core Ultra 7 258V"  # the first of the two


def test_windows_says_it_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROCESSOR_IDENTIFIER", "Intel64 Family 6 Model 170 Stepping 4, GenuineIntel")
    monkeypatch.setattr("edge.profiles.devices.here.processor_name", lambda: "Intel(R) Core(TM) Ultra 7 155H")
    monkeypatch.setattr("edge.profiles.devices.here._registry_keys", lambda _: ["VEN_8086&DEV_7D1D&SUBSYS_1", "ACPI"])
    machine = this_machine(tmp_path, "win32")
    assert machine.processor is not None
    assert machine.processor.stepping == 4
    assert {kind: match.by for kind, match in machine.matches.items()} == {"cpu": "name", "npu": "pci"}


def test_bandwidth_is_measured() -> None:
    found = bandwidth.measured_bandwidth(0.0, 1 << 20)
    assert found.threads >= 1
    assert 0 < found.one_thread_gbs < 10_000
    assert 0 < found.all_cores_gbs < 100_000
