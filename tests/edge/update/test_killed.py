"""`edge update` killed at random moments, by real processes and a real web server: one whole bundle is left each time,
which `edge verify` accepts and which answers.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from edge.api import load
from edge.runtime.verify import verify
from edge.update.keys import make_pair
from edge.update.release import sign_bundle
from edge.update.slots import Slots
from tests.edge.update.shop import CHANGED
from tests.edge.update.web import Handler, Web, serving
from tests.forging import forge_file

KILLS = 50
SLICE_S = 0.01  # that a part of a large file takes, so that kills meet downloads, too


def release(bundle: Path, folder: Path, key: Path, sequence: int) -> Path:
    """With another small file, and a tokenizer that is written in another way."""
    shutil.copytree(bundle, folder)
    forge_file(folder, CHANGED, b'{"top_k": %d}' % sequence)
    forge_file(folder, "tokenizer.json", (folder / "tokenizer.json").read_bytes() + b" " * sequence)
    sign_bundle(folder, [key], sequence)
    return folder


def slowly(handler: Handler, content: bytes, start: int) -> None:
    rest = content[start:]
    told = {"Content_Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
    handler.head(206 if start else 200, len(rest), **told)
    for at in range(0, len(rest), 1 + len(content) // 40):
        time.sleep(SLICE_S)
        try:
            handler.wfile.write(rest[at : at + 1 + len(content) // 40])
        except OSError:  # it was killed
            handler.cut()
            return


def check(slots: Slots, expected: set[int]) -> int:
    """The number of the one bundle that is used: verified by every engine, and asked."""
    current = slots.current()
    assert current is not None
    verify(slots.link)
    with load(slots.link, max_context=64) as llm:
        assert len(list(llm.generate("hi", max_new_tokens=2, ignore_stop_ids=True))) >= 2
    found = slots.release(current)
    assert found is not None
    assert found.sequence in expected
    return found.sequence


@pytest.mark.slow
def test_killed_at_random_moments(tiny_bundle: Path, tmp_path: Path) -> None:
    key, folder = tmp_path / "key", tmp_path / "machine"
    public, chance = make_pair(key), random.Random(20261130)
    slots = Slots(folder)

    def command(web: Web) -> subprocess.Popen[bytes]:
        words = ("update", "install", "--no-config", str(folder), web.url, "--key", str(public), "--json")
        with (tmp_path / "said").open("wb") as said:
            edge = [sys.executable, "-m", "edge", *words]
            return subprocess.Popen(edge, stdout=subprocess.DEVNULL, stderr=said, start_new_session=True)

    def finish(web: Web) -> float:
        started = time.monotonic()
        process = command(web)
        assert process.wait(timeout=120) == 0, (tmp_path / "said").read_text()
        return time.monotonic() - started

    sequence, met = 1, Counter[str]()
    with serving(release(tiny_bundle, tmp_path / "r1", key, 1)) as web:
        whole_s = finish(web)
    while met.total() - met["done"] < KILLS:
        sequence += 1
        with serving(release(tiny_bundle, tmp_path / f"r{sequence}", key, sequence)) as web:
            web.answers["tokenizer.json"] = slowly
            for _ in range(5):  # of one release, so that each attempt finds what the ones before left
                process = command(web)
                time.sleep(chance.uniform(0.15, 1.0) * whole_s)
                ended = process.poll() is not None
                if not ended:
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                used = check(slots, {sequence - 1, sequence})
                part = any(slots.incoming.glob("*.part")) if slots.incoming.is_dir() else False
                met["done" if ended else "after" if used == sequence else "fetching" if part else "between"] += 1
                if used == sequence:
                    break
            whole_s = min(whole_s, finish(web))
            assert check(slots, {sequence}) == sequence
        shutil.rmtree(tmp_path / f"r{sequence}")
    assert met["fetching"], met
    assert met["between"], met
    print(met)  # noqa: T201
