"""Answers that are interrupted, closed and failed at any moment; what comes afterwards has to be right.

    python -m tests.chaos interrupts BUNDLE --engine onnx --count 10000
    python -m tests.chaos closes BUNDLE --engine openvino --count 1000
    python -m tests.chaos threads BUNDLE --engine openvino --seconds 300

In: a model. Out: figures, and a list of what was wrong. The tests run the same for a few seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType, TracebackType
from typing import Any

from edge.api import load
from edge.runtime.errors import EdgeError, GenerationError
from edge.runtime.llm import LLM
from edge.runtime.settings import GenerationOptions
from edge.runtime.stream import Stream

QUESTIONS = ("The capital of France is", "Once upon a time there was", "hello", "2 + 2 =", "In the beginning")
OPTIONS: tuple[GenerationOptions, ...] = (
    {"max_new_tokens": 12, "ignore_stop_ids": True},
    {"max_new_tokens": 20, "ignore_stop_ids": True, "temperature": 1.0, "seed": 7},
    {"max_new_tokens": 9, "ignore_stop_ids": True, "repetition_penalty": 1.3, "logprobs": 2},
)
HANG_S = 30.0
Ids = tuple[int, ...]


@dataclass
class Found:
    """What came of it."""

    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def wrong(self, what: str) -> None:
        self.problems.append(what)

    def __str__(self) -> str:
        counts = ", ".join(f"{count:,} {name}" for name, count in sorted(self.counts.items()))
        return f"{counts}; {len(self.problems)} problems" + "".join(f"\n  {line}" for line in self.problems[:20])


class Model:
    """A model with the answers that it gives to each question, alone."""

    def __init__(self, llm: LLM, expected: list[Ids] | None = None) -> None:
        """expected: what another model that is the same has answered."""
        self.llm = llm
        self.cases = [(question, options) for question in QUESTIONS for options in OPTIONS]
        if expected is None:
            expected = [llm.generate(q, **options).answer().token_ids for q, options in self.cases]
            llm.clear_cache()
        self.expected = expected

    def ask(self, case: int) -> Stream:
        question, options = self.cases[case % len(self.cases)]
        return self.llm.generate(question, **options)

    def is_right(self, case: int, ids: Sequence[int], *, whole: bool = True) -> bool:
        expected = self.expected[case % len(self.cases)]
        return tuple(ids) == (expected if whole else expected[: len(ids)])

    def check(self, found: Found) -> None:
        """That nothing is left: no request, no block, no reservation."""
        llm = self.llm
        gc.collect()
        llm.clear_cache()
        scheduler, pool = llm._scheduler, llm.engine.pool
        if scheduler.num_requests or scheduler._live or scheduler.held.blocks:
            found.wrong(f"{scheduler.num_requests} requests are left")
        if pool.num_free != pool.num_blocks:
            found.wrong(f"{pool.num_blocks - pool.num_free} of {pool.num_blocks} blocks are lost")
        llm._runner.between_steps(lambda: pool.check_integrity(scheduler.held_blocks()))


class Hang(BaseException):
    """Something did not come."""


@contextlib.contextmanager
def watched(seconds: float = HANG_S) -> Iterator[None]:
    """Raise Hang in the main thread when the body takes longer."""

    def hung(_signal: int, _frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, hung)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --- Interrupts by chance ---------------------------------------------------------------------------------------------


def interrupts(model: Model, count: int, seed: int = 0, beside: int = 0, longest_s: float = 0.05) -> Found:
    """Interrupt an answer at random moments, `beside` others that go on; an answer after each interrupt."""
    random, found = Random(seed), Found()
    while found.counts["interrupts"] < count:
        found.counts["rounds"] += 1
        others = [(case, model.ask(case)) for case in random.sample(range(len(model.cases)), beside)]
        begun = {case: list(next(stream).token_ids) for case, stream in others}
        if random.random() < 0.3:
            model.llm.clear_cache()
        interrupted = _interrupted_answer(model, random, longest_s)
        found.counts["interrupts"] += interrupted
        try:
            with watched():
                case = random.randrange(len(model.cases))
                if not model.is_right(case, model.ask(case).answer().token_ids):
                    found.wrong(f"round {found.counts['rounds']}: the next answer is another")
                for case, stream in others:
                    ids = begun[case] + [i for chunk in stream for i in chunk.token_ids]
                    if not model.is_right(case, ids):
                        found.wrong(f"round {found.counts['rounds']}: the answer beside it is another")
                    found.counts["answers beside"] += 1
        except Hang:
            found.wrong(f"round {found.counts['rounds']}: hangs")
            return found
        except EdgeError as error:
            found.wrong(f"round {found.counts['rounds']}: {type(error).__name__}: {error}")
        del others
        if found.counts["rounds"] % 200 == 0:
            model.check(found)
    model.check(found)
    return found


def _interrupted_answer(model: Model, random: Random, longest_s: float) -> bool:
    """Read an answer until a signal comes; whether it came."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0002 + random.random() * longest_s)
        while True:
            case = random.randrange(len(model.cases))
            if random.random() < 0.5:
                with model.ask(case) as stream:
                    for _ in stream:
                        pass
            else:
                model.ask(case).answer()
    except KeyboardInterrupt:
        return True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --- Exceptions at every line -----------------------------------------------------------------------------------------

Tracer = Callable[[FrameType, str, Any], Any]


class Injector:
    """Raises an exception at the n-th line that is run of our own code, counted from 0; counts lines for n = -1."""

    def __init__(self, n: int, error: type[BaseException]) -> None:
        self.n, self.error = n, error
        self.lines = 0
        self.where = ""

    def trace(self, frame: FrameType, event: str, _arg: Any) -> Tracer | None:
        name = frame.f_code.co_filename
        if "/runtime/" not in name or "/tests/" in name:
            return None
        if event == "line":
            at, self.lines = self.lines, self.lines + 1
            if at == self.n:
                self.where = f"{Path(name).name}:{frame.f_lineno}"
                raise self.error
        return self.trace

    def __enter__(self) -> None:
        sys.settrace(self.trace)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.settrace(None)


def interrupt_reader_at(model: Model, n: int) -> tuple[Found, Injector]:
    """A KeyboardInterrupt at the n-th line that the reader of an answer runs, beside two other answers."""
    found, injector = Found(), Injector(n, KeyboardInterrupt)
    others = [(case, model.ask(case)) for case in (1, 5)]
    begun = {case: list(next(stream).token_ids) for case, stream in others}
    ids: list[int] = []
    stream: Stream | None = None
    try:
        with injector:
            stream = model.ask(0)
            for chunk in stream:
                ids += chunk.token_ids
    except KeyboardInterrupt:
        found.counts["interrupts"] += 1
    if stream is not None:
        for chunk in stream:  # what it still delivers has no hole
            ids += chunk.token_ids
    _check_after(model, found, injector, ids, [(case, begun[case], stream) for case, stream in others], failed=0)
    return found, injector


def fail_step_at(model: Model, n: int, error: type[BaseException]) -> tuple[Found, Injector]:
    """An exception at the n-th line of the steps of three answers: two that have begun, and a new one."""
    found, injector = Found(), Injector(n, error)
    scheduler = model.llm._scheduler
    step = scheduler.step

    def traced() -> None:
        with injector:
            step()

    others = [(case, model.ask(case)) for case in (1, 5)]
    begun = {case: list(next(stream).token_ids) for case, stream in others}
    first = model.ask(0)
    scheduler.step = traced  # type: ignore[method-assign]
    ids: list[int] = []
    failed = 0
    try:
        for chunk in first:
            ids += chunk.token_ids
    except EdgeError:
        failed = 1
    scheduler.step = step  # type: ignore[method-assign]
    found.counts["failed answers"] += failed
    _check_after(model, found, injector, ids, [(case, begun[case], stream) for case, stream in others], failed)
    return found, injector


def _check_after(
    model: Model,
    found: Found,
    injector: Injector,
    ids: list[int],
    others: list[tuple[int, list[int], Stream]],
    failed: int,
) -> None:
    at = f"line {injector.n} ({injector.where})"
    if not model.is_right(0, ids, whole=False):
        found.wrong(f"{at}: {ids} delivered, expected {model.expected[0]}")
    try:
        with watched():
            for case, begun, stream in others:
                try:
                    begun += [i for chunk in stream for i in chunk.token_ids]
                    whole = True
                except EdgeError:
                    whole, failed = False, failed + 1
                if not model.is_right(case, begun, whole=whole):
                    found.wrong(f"{at}: an answer beside it is another")
            if failed > 1:
                found.wrong(f"{at}: {failed} answers failed")
            for case in (0, 3):
                if not model.is_right(case, model.ask(case).answer().token_ids):
                    found.wrong(f"{at}: the next answer is another")
            model.check(found)
    except Hang:
        found.wrong(f"{at}: hangs")


# --- Threads ----------------------------------------------------------------------------------------------------------


def closes(model: Model, count: int, seed: int = 0) -> Found:
    """Close streams while other threads read them: what was read has no hole."""
    random, found = Random(seed), Found()
    for _ in range(count):
        case = random.randrange(len(model.cases))
        stream = model.ask(case)
        other = model.ask(random.randrange(len(model.cases)))  # drives the first one too
        read: list[int] = []

        def reading(stream: Stream = stream, read: list[int] = read) -> None:
            for chunk in stream:
                read += chunk.token_ids

        threads = [threading.Thread(target=reading), threading.Thread(target=other.answer)]
        for thread in threads:
            thread.start()
        time.sleep(random.random() ** 3 * 0.02)  # mostly before the end of an answer
        stream.close()
        for thread in threads:
            thread.join(HANG_S)
            if thread.is_alive():
                found.wrong("a reader hangs")
                return found
        rest = [i for chunk in stream for i in chunk.token_ids]
        found.counts["closes"] += 1
        found.counts["closes before the end"] += len(read) < len(model.expected[case])
        if not model.is_right(case, read + rest, whole=False):
            found.wrong(f"{read} and {rest} of {model.expected[case]}")
    model.check(found)
    return found


def threads(model: Model, seconds: float, number: int = 20, seed: int = 0) -> Found:
    """Threads that generate, cancel and fail at random."""
    found, lock = Found(), threading.Lock()
    end = time.monotonic() + seconds
    llm = model.llm

    def work(index: int) -> None:
        random = Random(seed * 1000 + index)
        while time.monotonic() < end:
            case, deed = random.randrange(len(model.cases)), random.choice([*DEEDS, "answered"])
            right = DEEDS[deed](model, case, random)
            with lock:
                found.counts[deed] += 1
                if not right:
                    found.wrong(f"{deed}, case {case}")

    workers = [threading.Thread(target=work, args=(index,)) for index in range(number)]
    before = _resources()
    for worker in workers:
        worker.start()
    middle: tuple[int, int, int] | None = None
    while any(worker.is_alive() for worker in workers):
        time.sleep(0.5)
        if middle is None and time.monotonic() > end - seconds * 0.7:
            middle = _resources()
        if time.monotonic() > end + HANG_S * 2:
            found.wrong("a thread hangs")
            return found
    after = _resources()
    found.counts["MB before"], found.counts["MB at 30 %"], found.counts["MB after"] = (
        before[0], (middle or before)[0], after[0],
    )  # fmt: skip
    if after[1] > before[1] or after[2] > before[2]:
        found.wrong(f"threads {before[1]} -> {after[1]}, open files {before[2]} -> {after[2]}")
    if middle is not None and after[0] > middle[0] * 1.1 + 20:
        found.wrong(f"memory {middle[0]} -> {after[0]} MB")
    model.check(found)
    llm.generate(QUESTIONS[0], max_new_tokens=1).answer()
    return found


def _answers(model: Model, case: int, _random: Random) -> bool:
    return model.is_right(case, model.ask(case).answer().token_ids)


def _closes(model: Model, case: int, random: Random) -> bool:
    stream = model.ask(case)
    read = [i for _ in range(random.randint(1, 5)) for i in next(stream).token_ids]
    stream.close()
    return model.is_right(case, read, whole=False)


def _abandons(model: Model, case: int, _random: Random) -> bool:
    return bool(next(model.ask(case)).token_ids)


def _is_late(model: Model, case: int, random: Random) -> bool:
    question, options = model.cases[case]
    hurried: GenerationOptions = {**options, "deadline_s": 0.001 + random.random() * 0.05}
    answer = model.llm.generate(question, **hurried).answer()
    return model.is_right(case, answer.token_ids, whole=answer.finish_reason == "length")


def _has_a_bad_neighbour(model: Model, case: int, random: Random) -> bool:
    question, options = model.cases[case]
    bad: Any = random.choice(([10**9], [], "\udcff", [0] * 100_000, None))
    first, error, last = model.llm.generate_batch([question, bad, question], **options)
    return error.error is not None and all(model.is_right(case, answer.token_ids) for answer in (first, last))


def _fails(model: Model, case: int, _random: Random) -> bool:
    def fail(*_: object) -> int:
        raise ZeroDivisionError

    stream = model.ask(case)
    setattr(stream._request, "_choose", fail)  # noqa: B010
    try:
        stream.answer()
    except GenerationError:
        return True
    return False


# What a thread does, by what is counted.
DEEDS: dict[str, Callable[[Model, int, Random], bool]] = {
    "answered": _answers,
    "closed": _closes,
    "abandoned": _abandons,
    "late": _is_late,
    "batches with a bad prompt": _has_a_bad_neighbour,
    "failed": _fails,
}


def _resources() -> tuple[int, int, int]:
    """Megabytes of memory, threads, open files."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * 4096 // 10**6, _entries("/proc/self/task"), _entries("/proc/self/fd")


def _entries(folder: str) -> int:
    return len(list(Path(folder).iterdir()))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("what", choices=["interrupts", "closes", "threads", "lines"])
    parser.add_argument("bundle")
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--beside", type=int, default=0, help="answers beside the one that is interrupted")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--longest", type=float, default=0.05, help="seconds until an interrupt")
    args = parser.parse_args()
    llm = load(args.bundle, engine=args.engine, reproducible=True, max_context=256, kv_cache_bytes=1 << 28)
    model = Model(llm)
    started = time.monotonic()
    if args.what == "interrupts":
        found = interrupts(model, args.count, beside=args.beside, longest_s=args.longest)
    elif args.what == "closes":
        found = closes(model, args.count)
    elif args.what == "threads":
        found = threads(model, args.seconds)
    else:
        found = every_line(model, 1)
    print(f"{args.what}, {args.engine}, {time.monotonic() - started:.0f} s: {found}")
    return int(bool(found.problems))


def every_line(model: Model, stride: int) -> Found:
    """All lines of a reader and of steps, one after another, or every `stride`-th of them."""
    total = Found()
    kinds: tuple[Callable[[int], tuple[Found, Injector]], ...] = (
        lambda n: interrupt_reader_at(model, n),
        lambda n: fail_step_at(model, n, MemoryError),
        lambda n: fail_step_at(model, n, KeyboardInterrupt),
    )
    for kind, name in zip(kinds, ("reader lines", "step lines", "step lines, BaseException"), strict=True):
        _, injector = kind(-1)
        for n in range(0, injector.lines, stride):
            found, _ = kind(n)
            total.counts[name] += 1
            total.counts += found.counts
            total.problems += found.problems
    return total


if __name__ == "__main__":
    sys.exit(main())
