"""A draft store in use: saved while the model runs, and no damage to its file keeps a model from starting."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edge.runtime.engines.scripted import STOP_IDS, ScriptedEngine, noise, tokenizer_json
from edge.runtime.errors import DraftStoreError, OutputError
from edge.runtime.llm import LLM
from edge.runtime.notices import LOGGER
from edge.runtime.settings import SpeculationSettings
from edge.runtime.speculation import DraftStore, open_store, saver
from edge.runtime.speculation.saver import ANSWERS
from edge.runtime.speculation.suffix_array import StoredIds, SuffixArray
from edge.runtime.tokenizer import Tokenizer

TOKENIZER = "0123456789abcdef" * 4
PATIENCE_S = 60.0


def model(path: Path) -> LLM:
    return LLM.from_engine(
        ScriptedEngine(noise(), max_context=256, num_blocks=200),
        Tokenizer.from_text(tokenizer_json()),
        stop_ids=STOP_IDS,
        speculation=SpeculationSettings(),
        draft_store=path,
    )


def answer(llm: LLM, number: int) -> list[int]:
    """What the store keeps of an answer: all of a short prompt, and the answer."""
    prompt = list(range(number, number + 6))
    return [*prompt, *llm.generate(prompt, max_new_tokens=12, ignore_stop_ids=True).answer().token_ids]


def held(path: Path) -> list[list[int]]:
    """The sequences in a file."""
    llm = model(path)
    found = llm._drafts._store
    assert found is not None
    return [(ids.astype(int) - 1).tolist() for ids in found._saved.sequences()]


def wait_for(done: Callable[[], bool]) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < give_up, "this took too long"
        time.sleep(0.01)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pause between two saves."""
    monkeypatch.setattr(saver, "_REST", 0.0)


def test_after_a_few_answers_they_are_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "drafts"
    llm = model(path)
    given = [answer(llm, i) for i in range(ANSWERS)]
    wait_for(lambda: held(path) == given)
    more = [answer(llm, 100 + i) for i in range(3)]
    assert held(path) == given, "three are not worth it yet"
    llm.close()
    assert held(path) == given + more
    assert sorted(file.name for file in tmp_path.iterdir()) == ["drafts", "drafts.lock"]


def test_after_a_while_fewer_are_saved_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saver, "SECONDS", 0.05)
    llm = model(tmp_path / "drafts")
    given = [answer(llm, 0)]
    wait_for(lambda: held(tmp_path / "drafts") == given)


@pytest.mark.usefixtures("quick")
def test_what_was_saved_moves_out_of_memory_and_is_still_drafted(tmp_path: Path) -> None:
    llm = model(tmp_path / "drafts")
    given = []
    for i in range(3 * ANSWERS):
        given.append(answer(llm, i))
        if i % ANSWERS == ANSWERS - 1:
            wait_for(lambda: held(tmp_path / "drafts") == given)
    given.append(answer(llm, 200))
    found = llm._drafts._store
    assert found is not None
    assert len(found.pending()) == 1
    assert found.num_tokens == sum(map(len, given))
    for ids in given:
        assert found.draft(ids[:8], 4)[1] == ids[8:12]
    llm.close()
    assert held(tmp_path / "drafts") == given


@pytest.mark.usefixtures("quick")
def test_what_comes_while_it_is_saved_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever a save ends, and whenever it is adopted."""
    merge = DraftStore.merge

    def slow(self: DraftStore, pending: list[StoredIds]) -> SuffixArray:
        found = merge(self, pending)
        time.sleep(0.02)
        return found

    monkeypatch.setattr(DraftStore, "merge", slow)
    llm = model(tmp_path / "drafts")
    given = [answer(llm, i) for i in range(10 * ANSWERS + 3)]
    llm.close()
    assert sorted(held(tmp_path / "drafts")) == sorted(given)


def test_a_save_that_fails_is_said_once_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(saver, "SECONDS", 0.01)
    fails = [True]
    merge = DraftStore.merge

    def full(self: DraftStore, pending: list[StoredIds]) -> SuffixArray:
        if fails[0]:
            raise OutputError("the disk is full; free some space")
        return merge(self, pending)

    monkeypatch.setattr(DraftStore, "merge", full)
    llm = model(tmp_path / "drafts")
    given = []
    for i in range(4):
        given.append(answer(llm, i))
        time.sleep(0.05)
    wait_for(lambda: bool(caplog.messages))
    assert caplog.messages == ["drafts are not saved for now: the disk is full; free some space"]
    fails[0] = False
    given.append(answer(llm, 9))
    wait_for(lambda: held(tmp_path / "drafts") == given)


def whole(path: Path) -> bytes:
    made = DraftStore.open(path, TOKENIZER)
    made.add(list(range(50)))
    made.save()
    return path.read_bytes()


def opened(path: Path) -> DraftStore:
    return open_store(path, TOKENIZER, num_ids=1000)


@pytest.mark.parametrize(
    "harm",
    [
        lambda raw: raw[:-1],
        lambda raw: raw[:100],
        lambda raw: raw[:20],
        lambda raw: raw[:3],
        lambda raw: raw + b"\0",
        lambda raw: raw[:-5] + bytes([raw[-5] ^ 1]) + raw[-4:],
        lambda raw: bytes(len(raw)),
    ],
)
def test_a_damaged_store_is_set_aside(
    harm: Callable[[bytes], bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "drafts"
    raw = harm(whole(path))
    for _ in range(2):  # the second takes the place of the first
        path.write_bytes(raw)
        caplog.clear()
        found = opened(path)
        (said,) = caplog.messages
        assert said.startswith(str(path))
        assert said.endswith(f"; moved to {path}.damaged, and begun anew")
        found.add([1, 2, 3, 4, 5])
        found.save()
        assert opened(path).draft([1, 2], 2) == (2, [3, 4])
        assert (tmp_path / "drafts.damaged").read_bytes() == raw
    assert sorted(file.name for file in tmp_path.iterdir()) == ["drafts", "drafts.damaged", "drafts.lock"]


def test_an_empty_file_is_begun_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, LOGGER)
    path = tmp_path / "drafts"
    path.touch()
    assert opened(path).num_tokens == 0
    assert caplog.messages == [f"{path} is empty; begun anew"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["drafts", "drafts.lock"]


def test_files_of_others_stay(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In the way of the store, and where a damaged one would be set aside."""
    path = tmp_path / "drafts"
    for content in (b"my notes", bytes(1024) + b"an image of a disk", whole(tmp_path / "other")[:8] + b"\x09" * 100):
        path.write_bytes(content)
        with pytest.raises(DraftStoreError):
            opened(path)
        assert path.read_bytes() == content
    with pytest.raises(DraftStoreError, match="belongs to the tokenizer"):
        open_store(tmp_path / "other", "f" * 64, num_ids=1000)
    path.write_bytes(whole(tmp_path / "other")[:-1])
    (tmp_path / "drafts.damaged").write_bytes(b"my notes")
    caplog.clear()
    opened(path)
    assert caplog.messages[0].endswith(f"; moved to {path}.2.damaged, and begun anew")
    assert (tmp_path / "drafts.damaged").read_bytes() == b"my notes"


def test_a_damaged_store_that_cannot_be_moved_leaves_drafts_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "drafts"
    model(path).close()
    os.truncate(path, path.stat().st_size - 1)
    raw = path.read_bytes()

    def read_only(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", read_only)
        llm = model(path)
    (said,) = caplog.messages
    assert said.endswith("; drafts of this session are not kept, since it cannot be moved away (Read-only file system)")
    ids = answer(llm, 1)
    found = llm._drafts._store
    assert found is not None
    assert found.draft(ids[:8], 4)[1] == ids[8:12]
    llm.close()
    assert path.read_bytes() == raw


@pytest.mark.skipif(sys.platform == "win32", reason="files that are cut short while they are open")
def test_a_file_that_is_cut_short_while_it_is_in_use_ends_nothing(tmp_path: Path) -> None:
    """As long as it was mapped, this was a bus error."""
    path = tmp_path / "drafts"
    llm = model(path)
    given = [answer(llm, i) for i in range(40)]
    llm.close()
    llm = model(path)
    os.truncate(path, 0)
    found = llm._drafts._store
    assert found is not None
    for ids in given:
        assert found.draft(ids[:8], 4)[1] == ids[8:12]
