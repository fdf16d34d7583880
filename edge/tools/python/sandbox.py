"""The walls: what bubblewrap is told to show to the interpreter, and whether this machine has it at all.

In: the folder that becomes /mnt/data, and the limits. Out: a command line. Knows nothing about cells.

Visible inside, read-only: /usr (with /bin, /lib, /lib64), the linker's cache, /etc/alternatives, the `bin` and `lib`
of the running Python and of its virtual environment (so that numpy and what else is installed there can be imported),
and one file of ours. In memory, of limited size: /tmp, and /mnt/data unless it is a folder of the caller's choice,
which is the one place on disk that can be written. Nothing else: no /home, no /etc/passwd, no /proc, no /sys, of /dev
only null, zero, full, random and urandom; no network, not even loopback's sockets; no variable of the environment.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from edge.runtime.errors import ToolError, in_words, shown
from edge.runtime.files import real_path
from edge.tools.python.limits import Limits
from edge.tools.python.syscalls import supported

DATA = "/mnt/data"
_CHILD = "/run/edgeglm/child.py"
_OLDEST = (0, 7)  # the first bubblewrap with --size
_INSTALL = "install it with `apt-get install bubblewrap`, or your system's equivalent"
_SYSTEM = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/alternatives", "/etc/ld.so.cache")
_DEVICES = ("null", "zero", "full", "random", "urandom")
_ENVIRONMENT = {
    "HOME": "/tmp",  # inside
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "MPLBACKEND": "Agg",
    "OMP_NUM_THREADS": "1",  # each thread of a BLAS takes memory from the limit, used or not
    "OPENBLAS_NUM_THREADS": "1",
}


def find_bwrap() -> str:
    """Return the path of bubblewrap's program. Raises ToolError with the reason why there can be no sandbox."""
    if sys.platform != "linux":
        raise ToolError(f"the python tool needs Linux, whose namespaces its sandbox is made of; this is {sys.platform}")
    if not supported(platform.machine()):
        raise ToolError(
            f"the python tool's sandbox filters system calls on x86_64 and aarch64; this is {platform.machine()}"
        )
    found = shutil.which("bwrap")
    if found is None:
        raise ToolError(f"the python tool needs bubblewrap (bwrap) for its sandbox, which is not installed; {_INSTALL}")
    try:
        done = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolError(f"the python tool cannot run {shown(found)}: {in_words(error)}; {_INSTALL}") from None
    version = re.search(r"(\d+)\.(\d+)", done.stdout)
    if version is None or tuple(map(int, version.groups())) < _OLDEST:
        raise ToolError(
            f"the python tool needs bubblewrap {_OLDEST[0]}.{_OLDEST[1]} or later; {shown(found)} says "
            f"{shown(done.stdout.strip())}; install a later one"
        )
    return found


def command(bwrap: str, folder: Path | None, limits: Limits, answers: int, filter_fd: int) -> list[str]:
    """Return the command line that starts the interpreter."""
    return [
        bwrap,
        *("--unshare-all", "--unshare-user", "--die-with-parent", "--new-session", "--cap-drop", "ALL"),
        *("--hostname", "sandbox", "--uid", "1000", "--gid", "1000", "--clearenv"),
        *(word for name, value in _ENVIRONMENT.items() for word in ("--setenv", name, value)),
        *("--perms", "1777", "--size", str(limits.temporary_bytes), "--tmpfs", "/tmp"),
        *_shown_files(),  # a virtual environment can be in /tmp
        *_data(folder, limits),
        *("--remount-ro", "/"),  # the root itself is a tmpfs, and without a limit
        *("--chdir", DATA, "--seccomp", str(filter_fd), "--"),
        *(sys.executable, "-I", "-B", "-u", "-X", "utf8", _CHILD, str(answers), _rlimits(limits)),
    ]


def _shown_files() -> Iterator[str]:
    yield from ("--ro-bind", "/usr", "/usr")
    for path in map(Path, _SYSTEM):
        if path.is_symlink() and path.parent == Path("/"):
            yield from ("--symlink", str(path.readlink()), str(path))
        elif path.exists():
            yield from ("--ro-bind", str(path), str(path))
    for device in _DEVICES:
        yield from ("--dev-bind", f"/dev/{device}", f"/dev/{device}")
    program = real_path(sys.executable)
    prefixes = dict.fromkeys((*map(Path, (sys.base_prefix, sys.prefix)), program.parent.parent))
    for prefix in prefixes:
        for part in ("bin", "lib", "lib64", "pyvenv.cfg"):
            path = prefix / part
            if path.exists() and prefix != Path("/") and not prefix.is_relative_to("/usr"):
                yield from ("--ro-bind", str(path), str(path))
    yield from ("--ro-bind", str(Path(__file__).with_name("child.py")), _CHILD)


def _data(folder: Path | None, limits: Limits) -> Iterator[str]:
    if folder is None:
        yield from ("--size", str(limits.disk_bytes), "--tmpfs", DATA)
    else:
        yield from ("--bind", str(folder), DATA)


def _rlimits(limits: Limits) -> str:
    """Return what the interpreter sets before it reads a cell, as JSON: names of `resource`, soft and hard limits."""
    both = {
        "RLIMIT_AS": limits.memory_bytes,
        "RLIMIT_FSIZE": limits.file_bytes,
        "RLIMIT_NOFILE": limits.open_files,
        "RLIMIT_CORE": 0,
        "RLIMIT_MSGQUEUE": 0,
        "RLIMIT_MEMLOCK": 0,
    }
    processor = (limits.cpu_seconds, limits.cpu_seconds + 1)  # SIGXCPU, which says why; then SIGKILL
    return json.dumps({"RLIMIT_CPU": processor, **{name: (most, most) for name, most in both.items()}})
