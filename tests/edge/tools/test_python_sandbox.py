"""Code in the sandbox tries to get out, and to use up the machine; what it may not do is tried here, one by one."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.tools.python import Limits, python_tool
from edge.tools.tool import Tool
from tests.edge.tools.sandboxed import ROOT, needs_sandbox

pytestmark = needs_sandbox
CTYPES = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
NOT_THERE, REFUSED, READ_ONLY = "FileNotFoundError", "PermissionError", "Read-only file system"


@pytest.fixture(scope="module")
def tool() -> Iterator[Tool]:
    made = python_tool()
    yield made
    made.close()


def run(tool: Tool, code: str) -> str:
    return str(tool.run({"code": code}))


@pytest.mark.parametrize(
    ("code", "said"),
    [
        # Files of the host
        ("open('/etc/passwd').read()", NOT_THERE),
        ("open('/etc/shadow').read()", NOT_THERE),
        ("open('../../etc/passwd').read()", NOT_THERE),
        ("import os\nos.listdir('/home')", NOT_THERE),
        ("import os\nos.listdir(os.path.expanduser('~root') + '/.ssh')", NOT_THERE),
        ("import os\nos.listdir('/proc')", NOT_THERE),
        ("open('/proc/1/environ').read()", NOT_THERE),
        ("import os\nos.listdir('/sys')", NOT_THERE),
        ("import os\nos.listdir('/var')", NOT_THERE),
        ("open('/dev/vda', 'rb')", NOT_THERE),
        ("open('/dev/tty', 'rb')", NOT_THERE),
        ("open('/dev/shm/x', 'w')", NOT_THERE),
        (f"open({str(ROOT / 'pyproject.toml')!r})", NOT_THERE),
        # Writing outside
        ("open('/usr/bin/x', 'w')", READ_ONLY),
        ("open('/x', 'w')", READ_ONLY),
        ("open('/mnt/x', 'w')", READ_ONLY),
        ("open('/dev/x', 'w')", READ_ONLY),
        ("open('/run/edgeglm/child.py', 'a')", READ_ONLY),
        (f"import os\nos.remove({sys.executable!r})", READ_ONLY),
        ("import os\nos.remove('/usr/bin/env')", READ_ONLY),
        ("import numpy, os\nos.remove(numpy.__file__)", READ_ONLY),
        # Other processes
        ("import os\nos.fork()", REFUSED),
        ("import subprocess\nsubprocess.run(['/bin/true'])", REFUSED),
        ("import os\nos.posix_spawn('/bin/true', ['true'], {})", REFUSED),
        ("import multiprocessing\nmultiprocessing.Process(target=print).start()", REFUSED),
        (CTYPES + "libc.syscall(435, 0, 0), ctypes.get_errno()", "(-1, 38)"),  # clone3
        (CTYPES + "libc.syscall(0x40000000 | 57), ctypes.get_errno()", "(-1, 1)"),  # fork by the x32 table
        # Sockets
        ("import socket\nsocket.socket()", REFUSED),
        ("import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM)", REFUSED),
        ("import socket\nsocket.socket(socket.AF_INET6)", REFUSED),
        ("import socket\nsocket.socket(socket.AF_UNIX)", REFUSED),
        ("import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW)", REFUSED),
        ("import socket\nsocket.socketpair(type=socket.SOCK_DGRAM)", REFUSED),
        ("import urllib.request\nurllib.request.urlopen('http://127.0.0.1/')", "urlopen error"),
        # Into other processes, and the kernel
        (CTYPES + "libc.ptrace(0, 0, 0, 0), ctypes.get_errno()", "(-1, 1)"),
        (CTYPES + "libc.ptrace(16, 1, 0, 0), ctypes.get_errno()", "(-1, 1)"),
        (CTYPES + "libc.process_vm_readv(1, 0, 0, 0, 0, 0), ctypes.get_errno()", "(-1, 1)"),
        (CTYPES + "libc.unshare(0x10000000), ctypes.get_errno()", "(-1, 1)"),  # CLONE_NEWUSER
        (CTYPES + "libc.mount(b'none', b'/tmp', b'tmpfs', 0, 0), ctypes.get_errno()", "(-1, 1)"),
        (CTYPES + "libc.umount2(b'/usr', 2), ctypes.get_errno()", "(-1, 1)"),
        (CTYPES + "libc.chroot(b'/tmp'), ctypes.get_errno()", "(-1, 1)"),
        (CTYPES + "libc.setuid(0), ctypes.get_errno()", "(-1, 1|-1, 22)"),
        (CTYPES + "libc.memfd_create(b'x', 0), ctypes.get_errno()", "(-1, 1)"),
        (CTYPES + "libc.shmget(0, 1 << 20, 0o1600), ctypes.get_errno()", "(-1, 1)"),
        (CTYPES + "libc.syscall(425, 1, 0), ctypes.get_errno()", "(-1, 38)"),  # io_uring_setup
        # Limits cannot be raised
        (
            "import resource as r\nr.setrlimit(r.RLIMIT_AS, (r.RLIM_INFINITY,) * 2)",
            "not allowed to raise maximum limit",
        ),
        (
            "import resource as r\nr.setrlimit(r.RLIMIT_CPU, (r.RLIM_INFINITY,) * 2)",
            "not allowed to raise maximum limit",
        ),
        # Memory and files
        ("bytearray(10**11)", "MemoryError"),
        ("import mmap\nmmap.mmap(-1, 10**11)", "Cannot allocate memory"),
        ("def f():\n    held = []\n    while True:\n        held.append(bytearray(10**8))\nf()", "MemoryError"),
        ("open('large', 'wb').write(bytes(10**8))", "File too large"),
        ("open('large', 'wb').truncate(10**12)", "File too large"),
        ("files = []\nwhile True:\n    files.append(open('/dev/null'))", "Too many open files"),
    ],
)
def test_what_is_tried_fails_and_the_interpreter_lives(tool: Tool, code: str, said: str) -> None:
    found = run(tool, code)
    assert any(word.strip("()") in found for word in said.split("|")), found
    run(tool, "files = []")
    assert run(tool, "1 + 1") == "2"


def test_the_environment_is_empty_but_for_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_API_KEY", "secret")
    monkeypatch.setenv("PYTHONSTARTUP", "/secret")
    tool = python_tool()
    names = run(tool, "import os\nsorted(os.environ)")
    tool.close()
    assert "secret" not in names
    assert names == repr(
        sorted(["HOME", "LANG", "MPLBACKEND", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PATH", "PWD"])
    )


def test_a_link_in_the_folder_leads_nowhere(tmp_path: Path) -> None:
    secret, folder = tmp_path / "secret", tmp_path / "folder"
    secret.write_text("secret")
    folder.mkdir()
    (folder / "link").symlink_to(secret)
    (folder / "up").symlink_to("..")
    tool = python_tool(folder)
    assert NOT_THERE in run(tool, "open('link').read()")
    assert NOT_THERE in run(tool, "open('up/secret').read()")
    assert READ_ONLY in run(tool, "open('up/new', 'w')")
    assert run(tool, "import os\nos.listdir('..')") == "['data']"
    tool.close()
    assert secret.read_text() == "secret"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "secret"]


def test_a_socket_of_the_host_in_the_folder_is_out_of_reach(tmp_path: Path) -> None:
    """By its path, which a namespace of networks does not hide."""
    folder = tmp_path / "d"
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as mailbox:
        server.bind(str(folder / "s"))
        server.listen()
        mailbox.bind(str(folder / "m"))
        mailbox.setblocking(False)
        tool = python_tool(folder)
        assert run(tool, "import os\nsorted(os.listdir())") == "['m', 's']"
        for kind in ("SOCK_STREAM", "SOCK_SEQPACKET", "SOCK_DGRAM"):
            pair = f"import socket\na, b = socket.socketpair(type=socket.{kind})\n"
            for line in ("a.connect('s')", "a.connect('m')", "a.sendto(b'x', 'm')", "a.sendmsg([b'x'], [], 0, 'm')"):
                assert "Error" in run(tool, pair + line), (kind, line)
        tool.close()
        with pytest.raises(BlockingIOError):
            mailbox.recv(1)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_event_loops_work_nevertheless(tool: Tool) -> None:
    """They need a connected pair of sockets, and asyncio.to_thread a thread."""
    code = "import asyncio\nasync def f():\n    return await asyncio.to_thread(sum, [1, 2])\nasyncio.run(f())"
    assert run(tool, code) == "3"


def test_nobody_else_can_be_killed(tool: Tool) -> None:
    run(tool, "import os, signal\nalive = os.getpid()")
    assert run(tool, "os.kill(os.getppid(), signal.SIGKILL)") == "(no output)"  # process 1 inside, which ignores it
    assert "ProcessLookupError" in run(tool, f"os.kill({os.getpid()}, signal.SIGKILL)")
    assert "ProcessLookupError" in run(tool, "os.kill(-1, signal.SIGKILL)")
    assert run(tool, "alive == os.getpid()") == "True"


def test_a_printed_answer_is_text(tool: Tool) -> None:
    """And one that is written to every descriptor ends the interpreter, which could send no other."""
    forged = b'\0\0\0\x1a{"call": 1, "error": null}'
    assert run(tool, f"import sys\n_n = sys.stdout.buffer.write({forged!r})") == forged.decode()
    mine = python_tool()
    found = run(
        mine, f"import os\nfor i in range(3, 30):\n    try:\n        os.write(i, {forged!r})\n    except OSError: pass"
    )
    assert found == "(no output)"  # which it can say in any way it likes
    assert "it sent what is not an answer" in run(mine, "'mine'")
    assert run(mine, "'mine'") == "'mine'"
    mine.close()


@pytest.mark.parametrize(
    ("code", "limits", "said"),
    [
        ("while True:\n    pass", Limits(seconds=1), "the call did not end within 1 s"),
        ("import time\ntime.sleep(100)", Limits(seconds=1), "the call did not end within 1 s"),
        ("while True:\n    print('x' * 1000)", Limits(seconds=1), "did not end within 1 s|printed more than 256 MiB"),
        ("while True:\n    pass", Limits(cpu_seconds=1), "it used more than 1 s of processor time"),
        (
            "import threading, time\nfor _ in range(100):\n    threading.Thread(target=time.sleep, args=(9,)).start()\n"
            "time.sleep(9)",
            Limits(),
            "it started more than 64 threads",
        ),
        ("for i in range(10**9):\n    open(f'/tmp/{i}', 'w').close()", Limits(), "/tmp got more than 10,000 files"),
        ("for i in range(10**9):\n    open(f'{i}', 'w').close()", Limits(), "/mnt/data got more than 10,000 files"),
        ("import os\nos._exit(7)", Limits(), "it exited with status 7"),
        ("import ctypes\nctypes.string_at(0)", Limits(), "it was ended by signal 11"),
        ("import os\nos.execv('/bin/true', ['true'])", Limits(), "it exited with status 0"),
        ("import os\nos.closerange(3, 100)", Limits(), "it exited with status 1"),
    ],
)
def test_what_ends_the_interpreter_is_told(code: str, limits: Limits, said: str) -> None:
    tool = python_tool(limits=limits)
    run(tool, "variable = 1")
    found = run(tool, code)
    assert any(words in found for words in said.split("|")), found[-500:]
    assert found.endswith("All variables and all files are gone; the next call starts a new one.]")
    assert "NameError" in run(tool, "variable")
    assert run(tool, "1 + 1") == "2"
    tool.close()


def test_what_was_printed_before_the_end_is_kept() -> None:
    tool = python_tool(limits=Limits(seconds=2))
    found = run(tool, "print('so far')\nwhile True:\n    pass")
    assert found.startswith("so far\n[The interpreter is gone: the call did not end within 2 s.")
    found = run(tool, "import os\nprint('so far')\nos._exit(0)")
    assert found.startswith("so far\n[The interpreter is gone: it exited with status 0.")
    tool.close()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            "while True:\n    open('large', 'ab').write(bytes(1 << 20))",
            "the disk of /mnt/data lost more than 16,777,216 bytes of free space",
        ),
        ("for i in range(10**9):\n    open(f'{i}', 'w').close()", "/mnt/data got more than 1,000 files"),
    ],
)
def test_a_folder_on_disk_cannot_be_filled(code: str, said: str, tmp_path: Path) -> None:
    tool = python_tool(tmp_path, Limits(disk_bytes=16 << 20, disk_files=1000, file_bytes=1 << 40, seconds=20))
    found = run(tool, code)
    tool.close()
    assert said in found
    assert found.endswith("All variables and files in /tmp are gone; the next call starts a new one.]")


def test_memory_for_files_is_limited(tool: Tool) -> None:
    for folder in ("/tmp", "/mnt/data"):
        code = f"i = 0\nwhile True:\n    i += 1\n    open(f'{folder}/{{i}}', 'wb').write(bytes(10**7))"
        assert "No space left on device" in run(tool, code)
        run(tool, f"import os\nfor name in os.listdir('{folder}'):\n    os.remove(f'{folder}/{{name}}')")
