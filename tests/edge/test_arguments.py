"""Whatever stands on a command line: a command starts, or ends at once with one line that says what is wrong.

Every option and argument of every verb is found in the parser and gets hostile values, one at a time. Models are not
loaded: what can be known before has to be said before. Building the parser takes ten times as long as all else, so all
lines share one; that they say the same with one of their own is tested with some of every verb.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import random
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from edge import cli
from edge.runtime import llm as llms
from edge.runtime import verify as verification
from edge.runtime.errors import DeviceError
from tests.edge.verbs import PARSERS

PARSER, BUILD = cli.build_parser(), cli.build_parser
STARTED = "this is where the model would be loaded"
LONG = "x" * 5000
NO_NUMBERS = ("", " ", "nan", "inf", "-inf", "1e309", "abc", "0x10", "½", "None", "9" * 5000, "1,x", "\udce9", LONG)
VALUES = (
    *NO_NUMBERS, "-1", "0", "-0", "1e20", "1e308", "9" * 30, "-" + "9" * 30, "1_000", "true", ",", "1," * 2000 + "1",
    "x" * 300, "x/" * 3000, "a\nb", "a\x1b[2Jb\x9b1m", "\u202eabc", "\ud800", "😀" * 100, "%s%n{0}", "(((", "{",
    "[" * 3000, ".", "/", "/dev/null", "/dev/zero", "/dev/full", "fifo", "loop", "dangling", "folder", "empty", "latin",
)  # fmt: skip
FEW = 3  # of them in a fast run
SECONDS = 60


def line(parser: argparse.ArgumentParser, changed: argparse.Action, value: str, given: dict[str, str]) -> list[str]:
    """Arguments of a verb: what it cannot do without, and one that is changed."""
    found: list[str] = []
    alone = any(changed in group._group_actions for group in parser._mutually_exclusive_groups if group.required)
    for action in parser._actions:
        if action is changed:
            found += [f"{action.option_strings[-1]}={value}"] if action.option_strings else [value]
        elif not action.option_strings:
            if action.nargs not in (None, "+"):
                continue
            found.append(given.get(action.dest, "nothing"))
        elif action.required:
            found += [action.option_strings[-1], given.get(action.dest, "nothing")]
        elif action.option_strings == ["--raw"] and action.nargs is None and not alone:
            found += ["--raw", "text"]
    return found


CASES = [
    (verb, action.dest)
    for verb, parser in PARSERS.items()
    for action in parser._actions
    if action.nargs != 0 and action.dest != "help"
]


def address_space() -> int:
    """Bytes that the process has, models of earlier tests included: below them, not even its stack could grow."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[0]) * resource.getpagesize() if statm.exists() else 0


def start(*_: Any, **__: Any) -> NoReturn:
    raise DeviceError(STARTED)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with what is no file to read, no model to load, and no memory to lose."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nothing/at/all")
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").touch()
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    monkeypatch.chdir(tmp_path)

    monkeypatch.setattr(cli, "build_parser", lambda: PARSER)
    sleep = asyncio.sleep  # uvicorn looks every 0.1 s whether it is to end
    monkeypatch.setattr(asyncio, "sleep", lambda seconds: sleep(min(seconds, 0.002)))
    monkeypatch.setattr(llms.LLM, "__init__", start)
    monkeypatch.setattr(verification, "verify", start)
    monkeypatch.setattr("edge.runtime.device_report.write_atomically", start)
    monkeypatch.setattr("edge.export.checkpoint.default.find_checkpoint", start)
    monkeypatch.setattr("edge.update.keys._create", start)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (address_space() + (8 << 30), hard))

    def too_slow(*_: Any) -> NoReturn:
        raise AssertionError(f"nothing was said for {SECONDS} s")

    before = signal.signal(signal.SIGALRM, too_slow)
    yield tmp_path
    signal.signal(signal.SIGALRM, before)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def say(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command, within seconds."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    signal.alarm(SECONDS)
    try:
        code: Any = cli.main(arguments)
    except SystemExit as stopped:
        code = stopped.code
    finally:
        signal.alarm(0)
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def words(verb: str, dest: str, value: str, bundle: Path) -> tuple[list[str], argparse.Action]:
    """A command line, and what is changed in it."""
    parser = PARSERS[verb]
    action = next(action for action in parser._actions if action.dest == dest)
    given = {"bundle": str(bundle), "prompt": "hi", "system_file": __file__}
    return [*verb.split(), *line(parser, action, value, given)], action


def check(
    verb: str, dest: str, value: str, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, action = words(verb, dest, value, bundle)
    code, _, error = say(arguments, monkeypatch, capsys)
    assert code in (0, 1, 2), arguments
    if code:
        assert error.startswith("edge"), arguments
        assert error.count("\n") == 1 < len(error) < 2200, (arguments, error)
        assert error.rstrip("\n").isprintable(), (arguments, error)
    if action.type in (int, float) and value in NO_NUMBERS:
        assert code, arguments
        assert STARTED not in error, arguments


@pytest.mark.parametrize(("verb", "dest"), CASES, ids=[f"{verb} {dest}" for verb, dest in CASES])
def test_hostile_values(
    verb: str,
    dest: str,
    tiny_bundle: Path,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for value in random.Random(f"{verb} {dest}").sample(VALUES, FEW):
        check(verb, dest, value, tiny_bundle, monkeypatch, capsys)
    assert sorted(p.name for p in place.iterdir()) == ["dangling", "empty", "fifo", "folder", "latin", "loop"]


@pytest.mark.usefixtures("place")
def test_a_parser_that_was_used_says_the_same_as_a_new_one(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chance = random.Random(1)
    codes = set()
    for verb in PARSERS:
        cases = [case for case in CASES if case[0] == verb]
        for _, dest in chance.sample(cases, min(2, len(cases))):
            arguments, _ = words(verb, dest, chance.choice(VALUES), tiny_bundle)
            used = say(arguments, monkeypatch, capsys)
            with monkeypatch.context() as patch:
                patch.setattr(cli, "build_parser", BUILD)
                assert say(arguments, monkeypatch, capsys) == used
            codes.add(used[0])
    assert codes >= {1, 2}


@pytest.mark.slow
@pytest.mark.parametrize(("verb", "dest"), CASES, ids=[f"{verb} {dest}" for verb, dest in CASES])
def test_all_hostile_values(
    verb: str,
    dest: str,
    tiny_bundle: Path,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for value in VALUES:
        check(verb, dest, value, tiny_bundle, monkeypatch, capsys)
    assert sorted(p.name for p in place.iterdir()) == ["dangling", "empty", "fifo", "folder", "latin", "loop"]
