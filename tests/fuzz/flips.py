"""Changes single bytes of every file of a bundle and asks the bundle all the same: python -m tests.fuzz.flips BUNDLE

In: a bundle, which is copied. Out: how many changes were caught (an EdgeError in a few words), changed nothing of the
answer, changed it, or ended in a traceback, a hang or a signal. The last four are findings.

Each worker is a process of its own with a cache folder of its own, in which the whole bundle was found right before:
what is remembered of weights must not hide a change. One that dies is replaced, and goes on behind what killed it.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from types import FrameType
from typing import NamedTuple

from edge.runtime.bundle import MANIFEST, open_bundle
from edge.runtime.engines.registry import ENGINES
from edge.runtime.errors import EdgeError
from edge.runtime.known_files import FILE, SETTLED_NS
from edge.runtime.llm import LLM
from edge.runtime.settings import EngineSettings
from tests.fuzz.driver import is_message

SMALL_BYTES = 20_000  # files up to this size are changed at every byte
LARGE_FLIPS = 2_000  # places in each of the others
TOKENS = 24
HANG_S = 60
FINE = ("caught", "same answer")


class Flip(NamedTuple):
    """One change."""

    name: str
    at: int
    mask: int  # 1 to 255


class Found(NamedTuple):
    """What an engine made of one change."""

    engine: str
    flip: Flip
    outcome: str
    said: str


class Hang(BaseException):
    """An answer took too long."""


def all_flips(bundle: Path, small: int = SMALL_BYTES, large: int = LARGE_FLIPS, every: int = 1) -> list[Flip]:
    """The changes of a bundle's files, the same each time; every so manieth of them."""
    random, flips = Random(0), []
    for name in sorted([*open_bundle(bundle).manifest.files, MANIFEST]):
        size = (bundle / name).stat().st_size
        places = range(size) if size <= small else sorted(random.sample(range(size), min(large, size)))
        flips += [Flip(name, at, random.randrange(1, 256)) for at in places]
    return flips[::every]


def run(bundle: Path, flips: Sequence[Flip], workers: int = 2) -> list[Found]:
    """What became of each change on each engine; what died of one is said as its signal."""
    shares = [flips[index::workers] for index in range(workers)]
    with ThreadPoolExecutor(workers) as threads:
        return list(itertools.chain(*threads.map(lambda share: _share(bundle, share), shares)))


def _share(bundle: Path, flips: Sequence[Flip]) -> list[Found]:
    found: list[Found] = []
    jobs = [(engine, flip) for flip in flips for engine in ENGINES]
    context = multiprocessing.get_context("spawn")
    while len(found) < len(jobs):
        receiver, sender = context.Pipe(duplex=False)
        with tempfile.TemporaryDirectory() as scratch:
            process = context.Process(target=_work, args=(bundle, Path(scratch), jobs[len(found) :], sender))
            process.start()
            sender.close()
            try:
                while True:
                    found.append(receiver.recv())
            except EOFError:
                process.join()
        if process.exitcode != 0:
            engine, flip = jobs[len(found)]
            found.append(Found(engine, flip, "signal", f"the process ended with {process.exitcode}"))
    return found


def _work(bundle: Path, scratch: Path, jobs: Sequence[tuple[str, Flip]], sender: Connection) -> None:
    os.environ["XDG_CACHE_HOME"] = str(scratch / "cache")
    signal.signal(signal.SIGALRM, _hangs)
    copy = Path(shutil.copytree(bundle, scratch / "bundle"))
    time.sleep(SETTLED_NS / 1e9 + 0.5)
    expected = {engine: _answer(copy, engine) for engine in ENGINES}
    assert (scratch / "cache" / "edgeglm" / FILE).stat().st_size > 0, "weights that were found right are remembered"
    for engine, flip in jobs:
        path = copy / flip.name
        _flip(path, flip)
        signal.setitimer(signal.ITIMER_REAL, HANG_S)
        outcome, said = "caught", ""
        try:
            outcome = "same answer" if _answer(copy, engine) == expected[engine] else "other answer"
        except EdgeError as error:
            said = str(error)
            outcome = outcome if is_message(said) else "no message"
        except Hang:
            outcome = "hang"
        except BaseException:
            outcome, said = "traceback", traceback.format_exc()[-2000:]
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        _flip(path, flip)
        sender.send(Found(engine, flip, outcome, said))


def _answer(bundle: Path, engine: str) -> tuple[tuple[int, ...], str]:
    with LLM(bundle, EngineSettings(engine)) as llm:
        answer = llm.chat([{"role": "user", "content": "Hello"}], max_new_tokens=TOKENS, ignore_stop_ids=True).answer()
        return answer.token_ids, answer.text


def _flip(path: Path, flip: Flip) -> None:
    """Twice: as it was."""
    with path.open("r+b") as file:
        file.seek(flip.at)
        (byte,) = file.read(1)
        file.seek(flip.at)
        file.write(bytes([byte ^ flip.mask]))


def _hangs(_signal: int, _frame: FrameType | None) -> None:
    raise Hang


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.flips", description="Change single bytes of a bundle.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--small", type=int, default=SMALL_BYTES, metavar="BYTES", help="files changed at every byte")
    parser.add_argument("--large", type=int, default=LARGE_FLIPS, metavar="N", help="changes of each other file")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="of these, every Nth alone")
    parser.add_argument("--workers", type=int, default=2, metavar="N")
    args = parser.parse_args()
    flips, started = all_flips(args.bundle, args.small, args.large, args.every), time.perf_counter()
    found = run(args.bundle, flips, args.workers)
    for engine in ENGINES:
        counts = Counter(one.outcome for one in found if one.engine == engine)
        print(f"{engine}: {len(flips):,} changes: {', '.join(f'{n:,} {what}' for what, n in counts.most_common())}")
    files = Counter((one.flip.name, one.outcome) for one in found if one.outcome != "caught")
    for (name, outcome), count in sorted(files.items()):
        print(f"  {name}: {count:,} {outcome}")
    for one in [one for one in found if one.outcome not in FINE][:20]:
        print(f"{one.engine} {one.flip}: {one.outcome}: {one.said[-300:]}", file=sys.stderr)
    print(f"{time.perf_counter() - started:.0f} s")
    return int(any(one.outcome not in FINE for one in found))


if __name__ == "__main__":
    sys.exit(main())
