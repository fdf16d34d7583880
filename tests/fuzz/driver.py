"""Fuzz readers for as long as one likes; see the package.

Every target runs in a process of its own, which writes down the input it is at: a hang, a crash and a process out of
memory are found as well as an exception that is no EdgeError. What is found is written to --found, a file each.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import signal
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType

from edge.runtime.errors import EdgeError
from tests.fuzz.mutate import mutate
from tests.fuzz.target import Target
from tests.fuzz.targets import all_targets

HANG_S = 20  # for one input; a machine that is busy with other things is slow
DEAF_S = 2 * HANG_S  # until the process is ended from outside
MORE_BYTES = 2_000_000_000  # of address space than at the start
LONGEST_MESSAGE = 2000  # characters; a path of theirs may have 1,000
MOST_FINDINGS = 20  # of one target, then it stops


class Hang(BaseException):
    """An input took too long."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz the readers of others' files.")
    names = [target.name for target in all_targets()]
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(names)}; default: all")
    parser.add_argument("--inputs", type=int, default=10_000, metavar="N", help="for each target; default: 10000")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the first input; default: 0")
    parser.add_argument("--at-once", type=int, default=1, metavar="N", help="targets; default: 1")
    parser.add_argument("--found", type=Path, default=Path("build/fuzz"), metavar="FOLDER")
    args = parser.parse_args()
    if unknown := set(args.targets) - set(names):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    chosen = [target for target in all_targets() if not args.targets or target.name in args.targets]
    with ThreadPoolExecutor(args.at_once) as pool:
        counts = list(pool.map(lambda target: fuzz(target, args.inputs, args.seed, args.found), chosen))
    return int(sum(counts) > 0)


def fuzz(target: Target, inputs: int, first: int, found: Path) -> int:
    """How many inputs a target failed at; prints one line."""
    findings, at, started = 0, first, time.perf_counter()
    context = multiprocessing.get_context("forkserver")  # one of them imports for all: seconds for each otherwise
    context.set_forkserver_preload(["tests.fuzz.__main__"])  # which finds what targets import
    last = first + inputs
    while at < last and findings < MOST_FINDINGS:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(target.name, at, last, sender))
        process.start()
        sender.close()
        failure: tuple[int, str] | None = None
        try:
            while True:
                if not receiver.poll(DEAF_S):  # a library without Python hears no signal
                    failure = at, f"more than {DEAF_S} s, and deaf to signals"
                    process.kill()
                    process.join()
                    break
                message = receiver.recv()
                at = message[0]
                if len(message) == 2:
                    failure = message
        except EOFError:
            process.join()
        if failure is None and process.exitcode == 0:
            break
        number, said = failure or (at, f"the process ended with {process.exitcode}")
        findings += 1
        folder = found / target.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.txt").write_text(said, "utf-8", "backslashreplace")
        with tempfile.TemporaryDirectory() as scratch:
            seeds = target.seeds(Path(scratch))
            (folder / f"{number}.input").write_bytes(_input(target, seeds, number))
        print(f"{target.name} {number}: {said.strip().splitlines()[-1][:200]}", file=sys.stderr, flush=True)
        at = number + 1
    seconds = time.perf_counter() - started
    tried = at - first if findings == MOST_FINDINGS else inputs
    print(f"{target.name}: {tried:,} inputs in {seconds:.0f} s, {findings} outside the error tree", flush=True)
    return findings


def is_message(text: str) -> bool:
    """Whether a terminal can show an error's text: short, and without control characters."""
    return len(text) <= LONGEST_MESSAGE and not any(ord(c) < 32 and c != "\n" for c in text)


def _input(target: Target, seeds: object, number: int) -> bytes:
    assert isinstance(seeds, list | tuple)
    return mutate(number, seeds[number % len(seeds)], target.kind, target.words)


def _work(name: str, first: int, last: int, sender: multiprocessing.connection.Connection) -> None:
    """Inputs one after another in a process of their own; sends the number of what it is at, and a failure."""
    target = next(target for target in all_targets() if target.name == name)
    signal.signal(signal.SIGALRM, _hangs)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        seeds = list(target.seeds(folder))
        for seed in seeds:
            target.read(seed, folder)  # what is valid passes, or nothing is tried
        used = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MORE_BYTES, used + MORE_BYTES))
        for number in range(first, last):
            sender.send((number,))
            signal.setitimer(signal.ITIMER_REAL, HANG_S)
            try:
                target.read(_input(target, seeds, number), folder)
            except EdgeError as error:
                if not is_message(str(error)):
                    sender.send((number, f"a message that is no message: {str(error)[:300]!r}"))
                    return
            except BaseException:
                sender.send((number, traceback.format_exc()[-4000:]))
                return
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)


def _hangs(_signal: int, _frame: FrameType | None) -> None:
    raise Hang(f"more than {HANG_S} s")
