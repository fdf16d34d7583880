"""List the devices of this machine, the engines that run on them, and what is known of them.

Processors are matched by CPUID and name with a table of Intel's, GPUs and NPUs by PCI id. With --measure, the bandwidth
of memory is measured, which takes about a second: how fast memory is read is how fast a model writes.

examples:
  edge devices
  edge devices --measure
  edge devices --json
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from edge.commands import options

if TYPE_CHECKING:
    from edge.profiles.devices.bandwidth import Bandwidth
    from edge.profiles.devices.here import Machine, Match


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--measure", action="store_true", help="measure how fast memory is read, for about a second")
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    from edge.commands.console import print_json, print_table
    from edge.commands.tables import print_text
    from edge.profiles.devices.bandwidth import measured_bandwidth
    from edge.profiles.devices.here import this_machine
    from edge.runtime.engines.choice import find_devices
    from edge.runtime.machine import available_bytes, family_of, memory_limits, processor_name, total_bytes

    devices, machine = find_devices(), this_machine()
    bandwidth = measured_bandwidth() if args.measure else None
    total, available = total_bytes(), available_bytes()
    limits = [limit for limit in memory_limits() if not limit.addresses and limit.total_bytes < (total or 0)]
    rows = []
    for device, engines in devices.items():
        match = next((match for kind, match in machine.matches.items() if kind == family_of(device.name).lower()), None)
        rows.append((device.name, device.full_name, engines, match))
    if args.json:
        print_json(
            {
                "devices": [
                    {"name": name, "full_name": full_name, "engines": engines, "profile": _profile_json(match)}
                    for name, full_name, engines, match in rows
                ],
                "processor": {"name": processor_name(), "cores": machine.cores, "cpuid": _cpuid(machine)},
                "pci": [f"8086:{number:04x}" for number in machine.pci],
                "memory": {
                    "total_bytes": total,
                    "available_bytes": available,
                    "limits": [{"name": limit.name, "limit_bytes": limit.total_bytes} for limit in limits],
                },
                "bandwidth": None if bandwidth is None else _bandwidth_json(bandwidth),
            }
        )
        return 0
    print_table(
        ["device", "engines", "what it is", "in the table"],
        (
            [name, ", ".join(engines) or "none yet", full_name, _matched(match)]
            for name, full_name, engines, match in rows
        ),
        spare=["in the table"],
        prose=["what it is"],
    )
    print()
    for name, text in {
        "processor": f"{processor_name()}, {_cpuid(machine) or 'no CPUID'}, {machine.cores or 'unknown'} cores",
        "memory": ", ".join(
            [
                _bytes(total),
                *(f"{_bytes(limit.total_bytes)} allowed by {limit.name}" for limit in limits),
                f"{_bytes(available)} available",
            ]
        ),
        "bandwidth": _bandwidth(bandwidth, machine),
    }.items():
        print_text(f"{name + ':':<11}{text}")
    for kind in machine.matches:
        print_text(f"{kind.upper() + ':':<11}{_told(machine.matches[kind])}")
    return 0


def _matched(match: Match | None) -> str:
    if match is None:
        return "-"
    return match.profile.key if match.by != "generation" else f"like {match.profile.key}"


def _told(match: Match) -> str:
    """A row of the table in words, with the source of its memory."""
    row = match.profile
    by = {"name": "by its name", "generation": "another of its generation, by CPUID", "pci": "by its PCI id"}[match.by]
    facts = [
        f"{row.bandwidth_gbs:g} GB/s at most" + (f" with {row.memory}" if row.memory else ""),
        *([f"{row.cores} cores"] if row.cores and row.kind == "cpu" else []),
        *([f"{row.int8_tops:g} TOPS"] if row.int8_tops else []),
        *([f"at most {row.limit_gb:g} GB"] if row.limit_gb else []),
    ]
    source = row.sources.get("bandwidth_gbs") or row.sources.get("memory", "")
    return f"{row.full_name} ({by}): {', '.join(facts)}; source: {source}"


def _bandwidth(bandwidth: Bandwidth | None, machine: Machine) -> str:
    row = machine.profile("cpu")
    peak = "" if row is None else f", of at most {row.bandwidth_gbs:g}"
    if bandwidth is None:
        return "not measured; --measure does, in about a second"
    return (
        f"{bandwidth.all_cores_gbs:g} GB/s read by {bandwidth.threads} cores{peak}, {bandwidth.one_thread_gbs:g} by "
        f"one ({bandwidth.method})"
    )


def _cpuid(machine: Machine) -> str:
    found = machine.processor
    return "" if found is None else f"family {found.family}, model {found.model}, stepping {found.stepping}"


def _bytes(size: int | None) -> str:
    from edge.commands.console import human_bytes

    return "unknown" if size is None else human_bytes(size)


def _bandwidth_json(bandwidth: Bandwidth) -> dict[str, Any]:  # Any: JSON
    return {
        "one_thread_gbs": bandwidth.one_thread_gbs,
        "all_cores_gbs": bandwidth.all_cores_gbs,
        "threads": bandwidth.threads,
        "method": bandwidth.method,
    }


def _profile_json(match: Match | None) -> dict[str, Any] | None:  # Any: JSON
    if match is None:
        return None
    row = match.profile
    return {
        "key": row.key,
        "name": row.full_name,
        "matched_by": match.by,
        "bandwidth_gbs": row.bandwidth_gbs,
        "memory": row.memory or None,
        "int8_tops": row.int8_tops,
        "max_memory_gb": row.limit_gb,
        "npu": row.npu or None,
        "sources": dict(row.sources),
    }
