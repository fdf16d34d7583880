"""The filter of system calls, run here as the kernel runs it: which calls it lets pass on either architecture."""

from __future__ import annotations

import errno
import re
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.tools.python.syscalls import CLONE, MISSING, REFUSED, SOCKETPAIR, filter_program, supported

MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_* of linux/audit.h
ALLOWED, KILLED = 0x7FFF0000, 0x80000000
EPERM, ENOSYS = 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
machines = pytest.mark.parametrize("machine", MACHINES)


def answer(program: bytes, architecture: int, number: int, arguments: tuple[int, ...] = ()) -> int:
    """What classic BPF makes of a call: linux/filter.h and struct seccomp_data."""
    data = struct.pack("<IIQ6Q", number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    instructions = list(struct.iter_unpack("<HBBI", program))
    accumulator = at = 0
    while True:
        code, if_true, if_false, value = instructions[at]
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif code == 0x54:
            accumulator &= value
        elif code in (0x15, 0x35):
            at += if_true if (accumulator == value if code == 0x15 else accumulator >= value) else if_false
        else:
            assert code == 0x06
            return int(value)


def expected(machine: str, number: int, first: int, second: int) -> int:
    column = list(MACHINES).index(machine)
    if number >= 0x40000000 or number in {numbers[column] for numbers in REFUSED.values()}:
        return EPERM
    if number in {numbers[column] for numbers in MISSING.values()}:
        return ENOSYS
    if number == CLONE[column]:
        return ALLOWED if first & 0x10000 else EPERM  # CLONE_THREAD
    if number == SOCKETPAIR[column]:
        return ALLOWED if second & 0xF == 1 else EPERM  # SOCK_STREAM
    return ALLOWED


@machines
@given(
    number=st.integers(0, 500) | st.integers(0, 2**32 - 1),
    first=st.integers(0, 2**64 - 1),
    second=st.integers(0, 2**16),
)
def test_every_call_gets_its_answer(machine: str, number: int, first: int, second: int) -> None:
    found = answer(filter_program(machine), MACHINES[machine], number, (first, second))
    assert found == expected(machine, number, first, second)


@machines
def test_every_named_call_gets_its_answer(machine: str) -> None:
    program = filter_program(machine)
    for number in range(500):
        for first, second in ((0, 0), (0x10000, 1), (0x11, 0x80001), (0x3D0F00, 2), (0x10000000, 5)):
            found = answer(program, MACHINES[machine], number, (first, second))
            assert found == expected(machine, number, first, second)


@machines
@given(architecture=st.integers(0, 2**32 - 1))
def test_another_architecture_is_killed(machine: str, architecture: int) -> None:
    if architecture != MACHINES[machine]:
        assert answer(filter_program(machine), architecture, 0) == KILLED


@machines
def test_a_pipe_holds_the_program(machine: str) -> None:
    assert len(filter_program(machine)) <= 4096
    assert supported(machine)
    assert not supported("riscv64")


@machines
def test_the_numbers_are_those_of_the_kernel(machine: str) -> None:
    if not HEADERS[machine].is_file():
        pytest.skip(f"{HEADERS[machine]} is not installed")
    text, column = HEADERS[machine].read_text(encoding="utf-8"), list(MACHINES).index(machine)
    known = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text)}
    calls = {**REFUSED, **MISSING, "clone": CLONE, "socketpair": SOCKETPAIR}
    assert {name: numbers[column] for name, numbers in calls.items()} == {name: known.get(name) for name in calls}
