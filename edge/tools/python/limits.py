"""What code in the sandbox may use: time, memory, disk, threads, output.

In: numbers from a caller, checked by `rules`. Out: a frozen record. Knows nothing about how a limit is held.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge.runtime.rules import Number, Settings, Whole, setting

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits(Settings):
    """Limits of one sandbox. Raises SettingsError for a value of the wrong type or outside its range."""

    seconds: float = setting(60.0, Number(0, 3600, above=True), "time of one call, as GLM-4's own prompt promises")
    cpu_seconds: int = setting(600, Whole(1, 86_400), "processor time of all calls together, until it starts again")
    memory_bytes: int = setting(2048 * MIB, Whole(128 * MIB), "address space of the interpreter")
    file_bytes: int = setting(64 * MIB, Whole(4096), "size of one file that is written")
    disk_bytes: int = setting(256 * MIB, Whole(MIB), "what /mnt/data may grow by in one call")
    disk_files: int = setting(10_000, Whole(1), "files that may be added to /mnt/data in one call")
    temporary_bytes: int = setting(64 * MIB, Whole(MIB), "size of /tmp, which is in memory")
    open_files: int = setting(128, Whole(16, 4096), "files open at the same time")
    threads: int = setting(64, Whole(1, 1024), "threads, the first included; there is never a second process")
    output_bytes: int = setting(16_384, Whole(256, 16 * MIB), "of printed text in a result; more is cut in the middle")
