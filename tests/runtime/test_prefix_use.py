"""`llm.prefixes.use`: whatever is at the path of a prefix file, the conversation starts, and a line says what was done.

Answers are those of a model without any prefix.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import edge
from edge.runtime.engines.scripted import noise
from edge.runtime.llm import LLM
from edge.runtime.notices import LOGGER

SYSTEM = "You are the guide of a museum. Speak of paintings only."
OTHER = "You are a pirate."
QUESTION = {"role": "user", "content": "Where is the exit?"}


def model(version: str = "1.0", **changes: str) -> LLM:
    """A model whose engine has this version."""
    llm = edge.scripted_llm(noise(), max_context=256, block_size=4, num_blocks=200)
    identity = llm.prefixes._identity
    llm.prefixes._identity = replace(identity, layout={**identity.layout, "engine version": version, **changes})
    return llm


def ask(llm: LLM, system: str = SYSTEM) -> edge.Answer:
    return llm.chat([{"role": "system", "content": system}, QUESTION], max_new_tokens=12, seed=1).answer()


def check(llm: LLM, prefix: edge.SavedPrefix, system: str = SYSTEM) -> None:
    """The next answer starts from the prefix and is the one without it."""
    tokens = len(llm.system_prefix(system))
    assert (prefix.num_tokens, prefix.system) == (tokens, system)
    answer = ask(llm, system)
    assert answer.token_ids == ask(model(), system).token_ids
    assert answer.stats is not None
    assert answer.stats.cached_tokens >= tokens
    assert answer.stats.prefix == (prefix.path, tokens, tokens)
    assert answer.stats.prefix.whole


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file that fits."""
    path = tmp_path / "kiosk.prefix"
    model().prefixes.use(path, system=SYSTEM)
    return path


def test_a_missing_file_is_built_and_then_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    path = tmp_path / "kiosk.prefix"
    llm = model()
    built = llm.prefixes.use(path, system=SYSTEM)
    assert built.note.startswith(f"{path} was missing; built in ")
    assert built.in_file
    check(llm, built)
    assert edge.read_prefix(path) == replace(built, note="")
    before = path.stat()
    later = model()
    used = later.prefixes.use(path, system=SYSTEM)
    assert used == replace(built, note="")
    check(later, used)
    assert path.stat() == before
    assert caplog.messages == [built.note], "one line, and none for a file that fits"
    assert [record.levelno for record in caplog.records] == [logging.INFO], "nothing to look into"


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def altered(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def lost(path: Path) -> None:
    """As a power cut leaves what was not on the disk yet, where a file system does not keep order."""
    path.write_bytes(bytes(path.stat().st_size))


def of_another_model(path: Path) -> None:
    llm = model()
    llm.prefixes._identity = replace(llm.prefixes._identity, model_sha256="f" * 64)
    llm.prefixes.use(path, system=SYSTEM)


def of_another_message(path: Path) -> None:
    model().prefixes.use(path, system=OTHER)


def of_another_version(path: Path) -> None:
    model("0.9").prefixes.use(path, system=SYSTEM)


def of_another_setting(path: Path) -> None:
    model(precision="u8").prefixes.use(path, system=SYSTEM)


def of_another_template(path: Path) -> None:
    llm = model()
    llm.prefixes.save([1, 2, 3, 4, 5], path, system=SYSTEM)


def of_a_later_format(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[8] = 9
    path.write_bytes(raw)


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("elsewhere.prefix"))


DAMAGE: list[tuple[Callable[[Path], None], str]] = [
    (truncated, r"is damaged: it has [\d,]+ bytes, expected [\d,]+"),
    (altered, "is damaged: its keys and values differ from their sha256"),
    (emptied, "is not a prefix file"),
    (lost, "is not a prefix file"),
    (of_another_model, r"was made for something else \(model has sha256 ffff.*, expected .*\)"),
    (of_another_message, "holds another system message"),
    (of_another_version, "was made by scripted 0.9, this is 1.0"),
    (of_another_setting, r"was made for something else \(precision is u8, expected not stated\)"),
    (of_another_template, "has its system message in other tokens"),
    (of_a_later_format, "is a prefix file of version 9, expected 1"),
    (dangling, "no such file"),
]


@pytest.mark.parametrize(("harm", "said"), DAMAGE)
def test_a_file_that_does_not_fit_is_built_anew(
    harm: Callable[[Path], None], said: str, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    harm(path)
    caplog.set_level(logging.INFO, LOGGER)
    caplog.clear()
    llm = model()
    built = llm.prefixes.use(path, system=SYSTEM)
    assert re.fullmatch(rf"{re.escape(str(path))} {said}; built anew in \d+\.\d s", built.note), built.note
    assert caplog.messages == [built.note]
    assert built.in_file
    check(llm, built)
    later = model()
    used = later.prefixes.use(path, system=SYSTEM)
    assert used.note == ""
    check(later, used)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("missing/kiosk.prefix", "was missing; computed in {}, for this process alone, since it cannot be written"),
        ("notes.txt", "is not a prefix file; computed in {}, for this process alone, since it exists and is not"),
        ("notes.txt/kiosk.prefix", "was missing; computed in {}, for this process alone, since it cannot be written"),
        ("folder", "is not a file; computed in {}, for this process alone, since it exists and is not a file"),
        ("pipe", "is not a file; computed in {}, for this process alone, since it exists and is not a file"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="pipes with names")
def test_where_no_file_can_be_written_the_prefix_is_in_memory(
    place: str, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    before = sorted(file.name for file in tmp_path.iterdir())
    llm = model()
    used = llm.prefixes.use(tmp_path / place, system=SYSTEM)
    assert not used.in_file
    assert re.match(re.escape(f"{tmp_path / place} {said}").replace(r"\{\}", r"\d+\.\d s"), used.note), used.note
    assert caplog.messages == [used.note]
    check(llm, used)
    llm.clear_cache()  # it is pinned
    check(llm, used)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert sorted(file.name for file in tmp_path.iterdir()) == before


def test_a_full_disk_keeps_the_prefix_in_memory_and_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_another_version(path)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    llm = model()
    used = llm.prefixes.use(path, system=SYSTEM)
    assert not used.in_file
    assert ", since it cannot be written (No space left on device: " in used.note
    check(llm, used)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_file_that_fits_needs_nothing_that_can_be_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("written to")

    monkeypatch.setattr("edge.runtime.kv.snapshot.write_atomically", forbidden)
    llm = model()
    check(llm, llm.prefixes.use(path, system=SYSTEM))


def test_many_at_once_build_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "kiosk.prefix"
    found: list[edge.SavedPrefix] = []
    models = [model() for _ in range(6)]
    threads = [
        threading.Thread(target=lambda llm=llm: found.append(llm.prefixes.use(path, system=SYSTEM))) for llm in models
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [prefix.in_file for prefix in found] == [True] * 6
    for llm in models:
        check(llm, found[0])
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_without_its_message_a_file_that_does_not_fit_is_an_error_that_names_the_way_out(path: Path) -> None:
    of_another_version(path)
    with pytest.raises(
        edge.SnapshotError,
        match=r"engine version is 0\.9, expected 1\.0; load .*, build it again with `edge prefix build`, or name its "
        r"system message, too \(--system-file\)",
    ):
        model().prefixes.load(path)


@pytest.mark.parametrize("system", ["", " \n", "\ud800", 7])
def test_a_message_that_is_none_is_refused(system: str, tmp_path: Path) -> None:
    with pytest.raises(edge.PromptError):
        model().prefixes.use(tmp_path / "kiosk.prefix", system=system)
    assert not list(tmp_path.iterdir())


def test_a_prompt_tells_how_much_of_a_prefix_it_has(path: Path) -> None:
    llm = model()
    tokens = llm.prefixes.load(path).num_tokens
    parts = llm.system_prefix(SYSTEM), llm.system_prefix(OTHER)
    shared = next(i for i, (a, b) in enumerate(zip(*parts, strict=False)) if a != b)
    stats = ask(llm, OTHER).stats
    assert stats is not None
    assert stats.prefix == (path, shared, tokens)
    assert not stats.prefix.whole
    assert stats.prefix.told.startswith(f"the prompt has {shared} of the {tokens} tokens of {path} in common")
    other = llm.prefixes.use(path.with_name("pirate.prefix"), system=OTHER)
    for system, name in ((SYSTEM, path), (OTHER, other.path)):
        stats = ask(llm, system).stats
        assert stats is not None
        assert stats.prefix is not None
        assert (stats.prefix.path, stats.prefix.whole) == (name, True), "of several, the one that is used whole"
    without = model()
    stats = ask(without).stats
    assert stats is not None
    assert stats.prefix is None, "none was loaded"


@pytest.mark.skipif(sys.platform == "win32", reason="modes of POSIX")
def test_who_may_read_a_prefix_file_is_for_the_umask_to_say(tmp_path: Path) -> None:
    for umask in (0o022, 0o077):
        before = os.umask(umask)
        try:
            model().prefixes.use(tmp_path / f"{umask}", system=SYSTEM)
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / f"{umask}").stat().st_mode) == 0o666 & ~umask
