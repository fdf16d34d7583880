"""System calls that code in the sandbox cannot make, as a program for the kernel's seccomp filter.

In: the machine's architecture. Out: the bytes that `bwrap --seccomp` reads: instructions of classic BPF. The namespaces
are the walls; this closes what they leave open. No process but the interpreter can exist, so that a limit of one
process is a limit of all; there are no sockets but a connected pair, so that a socket of the host in a shared folder is
out of reach; and memory that does not count as address space cannot be had.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator

# AUDIT_ARCH_* of linux/audit.h
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# Numbers on x86_64 and aarch64: asm/unistd_64.h and asm-generic/unistd.h of Linux 6.1. None: not in that table.
REFUSED: dict[str, tuple[int, int | None]] = {
    "fork": (57, None),
    "vfork": (58, None),
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "mq_open": (240, 180),
}
# Where a program falls back to another call when the kernel does not have this one.
MISSING: dict[str, tuple[int, int | None]] = {
    "clone3": (435, 435),  # its flags are in memory, which a filter cannot read; glibc takes clone instead
    "io_uring_setup": (425, 425),  # opens sockets without the call
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
}
CLONE = (56, 220)
SOCKETPAIR = (53, 199)
_CLONE_THREAD = 0x00010000
_TYPE, _STREAM = 0xF, 1  # of a socket; the other bits are flags. An unconnected kind could send to a path
_X32 = 0x40000000  # another table of numbers under the architecture of x86_64

_LOAD, _EQUAL, _AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_NUMBER, _ARCHITECTURE = 0, 4  # where they are in struct seccomp_data
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000


def supported(machine: str) -> bool:
    return machine in _ARCHITECTURES


def filter_program(machine: str) -> bytes:
    """Return the instructions for a machine as `platform.machine` names it."""
    column = list(_ARCHITECTURES).index(machine)
    return b"".join(_instructions(_ARCHITECTURES[machine], column))


def _instructions(architecture: int, column: int) -> Iterator[bytes]:
    """Short groups, each of which ends in an answer or falls through to the next."""
    refuse, missing = _ERROR | errno.EPERM, _ERROR | errno.ENOSYS
    yield _op(_LOAD, _ARCHITECTURE)
    yield _op(_EQUAL, architecture, 1, 0)
    yield _op(_RETURN, _KILL)
    yield _op(_LOAD, _NUMBER)
    yield _op(_AT_LEAST, _X32, 0, 1)
    yield _op(_RETURN, refuse)
    for table, answer in ((REFUSED, refuse), (MISSING, missing)):
        for numbers in table.values():
            if (number := numbers[column]) is not None:
                yield _op(_EQUAL, number, 0, 1)
                yield _op(_RETURN, answer)
    for number, argument, mask, wanted in (
        (CLONE[column], 0, _CLONE_THREAD, _CLONE_THREAD),
        (SOCKETPAIR[column], 1, _TYPE, _STREAM),
    ):
        yield _op(_EQUAL, number, 0, 5)
        yield _op(_LOAD, 16 + 8 * argument)  # the lower half: both architectures are little-endian
        yield _op(_AND, mask)
        yield _op(_EQUAL, wanted, 0, 1)
        yield _op(_RETURN, _ALLOW)
        yield _op(_RETURN, refuse)
    yield _op(_RETURN, _ALLOW)


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """Return one struct sock_filter."""
    return struct.pack("<HBBI", code, if_true, if_false, value)
