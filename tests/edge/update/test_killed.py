"""`edge update install` killed at random moments of each of its stages, by real processes and a real web server: one
whole bundle is left each time, which `edge verify` accepts and which answers.

The stages are met by plan, the moment in each by chance: a kill that comes at any time meets a short stage only with
luck. The command is forked from a process that has imported it, so that each takes less than a second to get going.
"""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Literal

import psutil
import pytest

from edge.api import load
from edge.cli import VERBS
from edge.runtime.bundle import MANIFEST, open_bundle
from edge.runtime.verify import verify
from edge.update.keys import make_pair
from edge.update.release import sign_bundle
from edge.update.slots import Slots
from tests.edge.update.shop import CHANGED
from tests.edge.update.web import Handler, Web, serving
from tests.forging import forge_file

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such links")]

Stage = Literal["start", "fetching", "self-test", "switched"]
# A kill in the self-test may come when the new bundle is used already: what comes after switching is met by one more.
RELEASES: tuple[tuple[Stage, ...], ...] = (("start", "fetching", "fetching", "self-test"), ("switched",))
STAGES = tuple(stage for stages in RELEASES for stage in stages)
KILLS = 50
LARGE, MORE_BYTES = "tokenizer.json", 1_000_000
# What `edge update install` imports beyond the parser.
IMPORTED = ("edge.update.http_source", "edge.update.install", "edge.update.keys", "edge.update.processes", "filelock")
HANGS_S = 60.0


def release(bundle: Path, folder: Path, key: Path, sequence: int) -> Path:
    """With another small file, and a tokenizer that is written in another way, and longer."""
    shutil.copytree(bundle, folder)
    forge_file(folder, CHANGED, b'{"top_k": %d}' % sequence)
    forge_file(folder, LARGE, (folder / LARGE).read_bytes() + b" " * (MORE_BYTES + sequence))
    sign_bundle(folder, [key], sequence)
    return folder


def run_edge(words: list[str], said: str) -> None:
    """In a process of its own group, which its children belong to."""
    os.setsid()
    with Path(said).open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from edge.cli import main

    os._exit(main(words))


@dataclass
class Stop:
    """An answer that ends in mid-file, and waits there until its client is no more."""

    share: float  # of what is asked for
    reached: threading.Event = field(default_factory=threading.Event)
    killed: threading.Event = field(default_factory=threading.Event)

    def __call__(self, handler: Handler, content: bytes, start: int) -> None:
        rest = content[start:]
        told = {"Content_Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        handler.head(206 if start else 200, len(rest), **told)
        handler.wfile.write(rest[: int(self.share * len(rest))])
        self.reached.set()
        self.killed.wait(HANGS_S)
        handler.cut()


@dataclass
class Kiosk:
    """A folder, and the command that installs into it."""

    folder: Path
    public: Path
    said: Path
    context: ForkServerContext
    chance: random.Random
    start_s: float = 0.0  # that the command takes to ask for the manifest
    test_s: float = 0.0  # that its self-test takes, and the rest
    verified: set[bytes] = field(default_factory=set)  # manifests

    @property
    def slots(self) -> Slots:
        return Slots(self.folder)

    def fetched_bytes(self, web: Web) -> int:
        """Of the large file, as long as it is not whole."""
        digest = hashlib.sha256((web.folder / LARGE).read_bytes()).hexdigest()
        part = self.slots.incoming / f"{digest}.part"
        return part.stat().st_size if part.exists() else 0

    def start(self, web: Web, then: str = "true") -> ForkServerProcess:
        words = ["update", "install", "--no-config", str(self.folder), web.url, "--key", str(self.public), "--json"]
        process = self.context.Process(target=run_edge, args=([*words, "--then", then], str(self.said)))
        process.start()
        return process

    def finish(self, web: Web) -> None:
        process = self.start(web)
        if wait_for_child(process):
            tested = time.monotonic()
            process.join(HANGS_S)
            self.test_s = time.monotonic() - tested
        process.join(HANGS_S)
        assert process.exitcode == 0, self.said.read_text()

    def kill_in(self, stage: Stage, web: Web) -> bool:
        """Start the command, and kill it in this stage; return whether it was still running."""
        if stage == "switched":
            process = self.start(web, "sh -c 'kill -KILL 0'")  # the group: the command, and itself
            process.join(HANGS_S)
            assert process.exitcode == -signal.SIGKILL, self.said.read_text()
            return True
        with ExitStack() as stack:
            if stage != "self-test":
                stop = Stop(self.chance.uniform(0.1, 0.9))
                name = LARGE if stage == "fetching" else MANIFEST
                web.answers[name] = stop
                stack.callback(web.answers.pop, name)
                stack.callback(stop.killed.set)
            started, process = time.monotonic(), self.start(web)
            if stage == "self-test":
                assert wait_for_child(process), self.said.read_text()
                time.sleep(self.chance.uniform(0, self.test_s))
            elif stage == "fetching":
                before = self.fetched_bytes(web)
                wait_until(lambda: self.fetched_bytes(web) > before)
                time.sleep(self.chance.uniform(0, 0.02))
            elif not self.start_s:
                assert stop.reached.wait(HANGS_S), self.said.read_text()
                self.start_s = time.monotonic() - started
            else:
                time.sleep(self.chance.uniform(0, self.start_s))
            return kill(process)

    def check(self, expected: set[int]) -> int:
        """The number of the one bundle that is used: verified by every engine, and asked.

        Golden logits are those of the bytes, which each bundle's manifest tells: they are computed once for each.
        """
        current = self.slots.current()
        assert current is not None
        manifest = (current / MANIFEST).read_bytes()
        if manifest in self.verified:
            open_bundle(self.slots.link).check_hashes()
        else:
            verify(self.slots.link)
            self.verified.add(manifest)
        with load(self.slots.link, max_context=64) as llm:
            assert len(list(llm.generate("hi", max_new_tokens=2, ignore_stop_ids=True))) >= 2
        found = self.slots.release(current)
        assert found is not None
        assert found.sequence in expected
        return found.sequence


def kill(process: ForkServerProcess) -> bool:
    """Kill a command and its children; return whether it was still running."""
    ran = process.is_alive()
    assert process.pid is not None
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # it has ended, or has no group yet
        process.kill()
    process.join()
    return ran and process.exitcode == -signal.SIGKILL


def wait_until(holds: Callable[[], bool]) -> None:
    give_up = time.monotonic() + HANGS_S
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(0.002)


def wait_for_child(process: ForkServerProcess) -> bool:
    """Wait until the self-test's process is there; return False if the command ends without one."""
    command = psutil.Process(process.pid)
    while process.is_alive():
        try:
            if command.children():
                return True
        except psutil.NoSuchProcess:
            break
        time.sleep(0.002)
    return False


@pytest.fixture
def kiosk(tmp_path: Path) -> Kiosk:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*(f"edge.commands.{verb}" for verb in VERBS), *IMPORTED])
    return Kiosk(tmp_path / "kiosk", make_pair(tmp_path / "key"), tmp_path / "said", context, random.Random(20261130))


def test_killed_at_random_moments(tiny_bundle: Path, tmp_path: Path, kiosk: Kiosk) -> None:
    key, sequence, met, releases = tmp_path / "key", 1, Counter[str](), itertools.cycle(RELEASES)
    with serving(release(tiny_bundle, tmp_path / "r1", key, 1)) as web:
        kiosk.finish(web)
        assert kiosk.check({1}) == 1
    while met.total() < KILLS:
        sequence += 1
        fetched = 0  # bytes of the large file
        with serving(release(tiny_bundle, tmp_path / f"r{sequence}", key, sequence)) as web:
            for stage in next(releases):
                met[stage] += kiosk.kill_in(stage, web)
                used = kiosk.check({sequence - 1, sequence})
                if stage == "fetching":
                    assert used == sequence - 1
                    assert fetched < kiosk.fetched_bytes(web) < MORE_BYTES
                    fetched = kiosk.fetched_bytes(web)
                elif stage == "switched":
                    assert used == sequence
            kiosk.finish(web)  # the next kills are of this bundle
            assert kiosk.check({sequence}) == sequence
        shutil.rmtree(tmp_path / f"r{sequence}")
    assert min(met[stage] for stage in STAGES) >= KILLS // len(STAGES) // 2, met
