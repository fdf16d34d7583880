"""The store of drafts: what it finds against plain search; files that are damaged, shared or do not fit are no loss."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.runtime.errors import DraftStoreError, OutputError, SettingsError
from edge.runtime.locks import hold
from edge.runtime.speculation import store as store_module
from edge.runtime.speculation.store import DraftStore
from edge.runtime.speculation.suffix_array import suffix_array

TOKENIZER = "0123456789abcdef" * 4
OTHER = "fedcba9876543210" * 4

sequences_strategy = st.integers(1, 3).flatmap(
    lambda top: st.lists(st.lists(st.integers(0, top), max_size=40), max_size=6)
)
tails = st.lists(st.integers(0, 3), max_size=40)


def following(sequences: list[list[int]], pattern: list[int]) -> list[tuple[int, int]]:
    """Where `pattern` ends with something behind it: (sequence, position)."""
    size = len(pattern)
    return [
        (number, end)
        for number, sequence in enumerate(sequences)
        for end in range(size, len(sequence))
        if sequence[end - size : end] == pattern
    ]


def longest(sequences: list[list[int]], tail: list[int]) -> int:
    """Length of the longest suffix of 2 to 32 ids that stands in a sequence with something behind it."""
    return next((n for n in range(min(len(tail), 32), 1, -1) if following(sequences, tail[-n:])), 0)


def voted(sequences: list[list[int]], pattern: list[int], count: int) -> list[int]:
    """What most occurrences have next, id by id; of equals the group with the latest occurrence."""
    at = following(sequences, pattern)
    ids: list[int] = []
    voters = len(at)
    while at and len(ids) < count and 8 * len(at) >= voters:
        votes = Counter(sequences[number][end] for number, end in at)
        latest = {sequences[number][end]: (number, end) for number, end in sorted(at)}
        best = max(votes, key=lambda token: (votes[token], latest[token]))
        agreed = [(number, end) for number, end in at if sequences[number][end] == best]
        if 8 * len(agreed) < voters:
            break
        ids.append(best)
        at = [(number, end + 1) for number, end in agreed if end + 1 < len(sequences[number])]
    return ids


def stored(sequences: list[list[int]]) -> list[list[int]]:
    """Those that are long enough, each once."""
    return [s for i, s in enumerate(sequences) if len(s) >= 4 and s not in sequences[:i]]


@settings(max_examples=150, deadline=None)
@given(sequences_strategy, tails)
def test_saved_sequences_are_searched_and_vote(sequences: list[list[int]], tail: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = DraftStore.open(Path(folder) / "drafts", TOKENIZER)
        for sequence in sequences:
            store.add(sequence)
        store.save()
        kept = stored(sequences)
        assert [(s.astype(int) - 1).tolist() for s in store._saved.sequences()] == kept
        length, ids = store.draft(tail, 6)
    assert length == longest(kept, tail)
    if len(following(kept, tail[len(tail) - length :])) <= 64:
        assert ids == (voted(kept, tail[len(tail) - length :], 6) if length else [])


@settings(max_examples=150, deadline=None)
@given(sequences_strategy, sequences_strategy, tails)
def test_what_is_saved_and_what_is_not_are_found_alike(
    saved: list[list[int]], added: list[list[int]], tail: list[int]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = DraftStore.open(Path(folder) / "drafts", TOKENIZER)
        for sequence in saved:
            store.add(sequence)
        store.save()
        for sequence in added:
            store.add(sequence)
            store.draft(tail, 1)  # so that what follows is added to an index that is there
        kept = stored(saved + added)
        length, ids = store.draft(tail, 6)
        assert length == longest(kept, tail)
        old, new = kept[: len(stored(saved))], kept[len(stored(saved)) :]
        pattern = tail[len(tail) - length :]
        if length and longest(new, tail) == length:
            assert ids in [new[number][end : end + 6] for number, end in following(new, pattern)]
        elif length:
            assert ids == voted(old, pattern, 6) or len(following(old, pattern)) > 64
        assert store.num_tokens == sum(map(len, kept))


def test_more_occurrences_than_vote_still_agree_on_the_majority(tmp_path: Path) -> None:
    store = DraftStore.open(tmp_path / "drafts", TOKENIZER)
    for i in range(300):
        store.add([1000 + i, 7, 8, 20 if i % 3 else 10, 30, 2000 + i])
    store.save()
    assert store.draft([7, 8], 2) == (2, [20, 30])
    assert store.draft([7, 8], 9) == (2, [20, 30])  # then each goes its own way
    assert store.draft([1005, 7, 8], 9) == (3, [20, 30, 2005])
    assert store.draft([7, 8, 20, 30, 2005], 9) == (0, [])  # the end, and nothing of 30, 2005 either


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 4).flatmap(lambda top: st.lists(st.integers(0, top), max_size=300)), st.integers(1, 200_000))
def test_suffixes_are_in_order(ids: list[int], scale: int) -> None:
    ids = [i * scale for i in ids]
    order = suffix_array(np.array(ids, np.uint32)).tolist()
    assert sorted(order) == [i for i, value in enumerate(ids) if value]
    prefixes = [ids[i : i + 64] for i in order]
    assert prefixes == sorted(prefixes)


@pytest.mark.parametrize("period", [1, 7, 50])
def test_suffixes_are_in_order_by_64_ids(period: int) -> None:
    block = np.random.default_rng(period).integers(1, 9, period)
    ids = np.concatenate([np.append(np.resize(block, 60 + i), [20 - i, 0]) for i in range(12)])
    prefixes = [ids[i : i + 64].tolist() for i in suffix_array(ids.astype(np.uint32))]
    assert prefixes == sorted(prefixes)


def test_the_longer_match_is_taken_wherever_it_is(tmp_path: Path) -> None:
    store = DraftStore.open(tmp_path / "drafts", TOKENIZER)
    store.add([1, 2, 3, 4, 50, 51])
    store.add([11, 12, 13, 60])
    store.save()
    store.add([2, 3, 4, 70])
    store.add([10, 11, 12, 13, 80, 81])
    assert store.draft([1, 2, 3, 4], 9) == (4, [50, 51])
    assert store.draft([10, 11, 12, 13], 9) == (4, [80, 81])
    assert store.draft([11, 12, 13], 9) == (3, [80, 81])  # of equals what is not saved yet


def test_ids_of_every_size_are_told_apart(tmp_path: Path) -> None:
    store = DraftStore.open(tmp_path / "drafts", TOKENIZER)
    wide = [0, 255, 256, 65535, 65536, 2**31 - 2, 1, 2]
    store.add(wide)
    store.save()
    for i in range(1, 7):
        assert store.draft(wide[: i + 1], 1) == (i + 1, wide[i + 1 : i + 2])
    assert store.draft([-1, 5], 1) == (0, [])
    assert store.draft([2**40, 5], 1) == (0, [])


@pytest.mark.parametrize("wrong", [-1, 2**31 - 1])
def test_ids_that_cannot_be_stored_are_refused(tmp_path: Path, wrong: int) -> None:
    store = DraftStore.open(tmp_path / "drafts", TOKENIZER)
    with pytest.raises(SettingsError, match=f"token id {wrong} cannot be stored"):
        store.add([1, 2, 3, wrong])
    assert store.num_tokens == 0


def test_a_text_is_stored_once(tmp_path: Path) -> None:
    path = tmp_path / "drafts"
    store = DraftStore.open(path, TOKENIZER)
    assert store.add([1, 2, 3, 4])
    assert not store.add([1, 2, 3, 4])
    assert not store.add([1, 2, 3])
    store.save()
    size = path.stat().st_size
    assert not store.add([1, 2, 3, 4])
    store = DraftStore.open(path, TOKENIZER)
    assert not store.add([1, 2, 3, 4])
    assert store.add([1, 2, 3, 4, 5])
    store.save()
    assert path.stat().st_size == size + 4 * (6 + 5)
    assert store.num_tokens == 9


def test_the_oldest_goes_first(tmp_path: Path) -> None:
    path = tmp_path / "drafts"
    store = DraftStore.open(path, TOKENIZER, max_tokens=25)
    for i in range(4):
        store.add(list(range(10 * i, 10 * i + 10)))
        store.save()
    for opened in (store, DraftStore.open(path, TOKENIZER)):
        assert opened.num_tokens == 20
        assert opened.draft([10, 11], 3) == (0, [])
        assert opened.draft([20, 21], 3) == (2, [22, 23, 24])
        assert opened.draft([30, 31], 3) == (2, [32, 33, 34])
    store.add(list(range(100, 200)))  # alone too long: its end stays
    store.save()
    assert store.num_tokens == 25
    assert store.draft([175, 176], 1) == (2, [177])
    assert store.draft([173, 174], 1) == (0, [])


def test_a_smaller_bound_takes_effect_with_the_next_save(tmp_path: Path) -> None:
    path = tmp_path / "drafts"
    store = DraftStore.open(path, TOKENIZER)
    store.add(list(range(10)))
    store.add(list(range(10, 20)))
    store.save()
    store = DraftStore.open(path, TOKENIZER, max_tokens=12)
    assert store.num_tokens == 20
    store.save()
    assert store.num_tokens == 10
    assert store.draft([10, 11], 1) == (2, [12])


def test_a_session_longer_than_its_index_finds_its_latest_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_WINDOW", 60)
    store = DraftStore.open(tmp_path / "drafts", TOKENIZER)
    for i in range(20):
        store.add(list(range(10 * i, 10 * i + 10)))
        assert store.draft([10 * i, 10 * i + 1], 1) == (2, [10 * i + 2])
        assert len(store._recent) <= 60
    assert store.draft([180, 181], 1) == (2, [182])
    assert store.draft([0, 1], 1) == (0, [])
    store.add(list(range(1000, 1100)))
    assert store.draft([1080, 1081], 1) == (2, [1082])
    store.save()
    assert store.num_tokens == 300
    assert store.draft([0, 1], 1) == (2, [2])


ADD = """
import sys
from pathlib import Path
from edge.runtime.speculation.store import DraftStore
store = DraftStore.open(Path(sys.argv[1]), sys.argv[2])
print("open", flush=True)
sys.stdin.readline()
base = int(sys.argv[3])
for i in range(5):
    store.add(list(range(base + 10 * i, base + 10 * i + 10)))
    store.save()
"""


def test_two_processes_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "drafts"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ADD, str(path), TOKENIZER, str(base)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for base in (0, 1000, 2000)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"  # all have opened it before any writes
    for process in processes:
        process.communicate("go\n", timeout=60)
        assert process.returncode == 0
    store = DraftStore.open(path, TOKENIZER)
    assert store.num_tokens == 150
    for base in (0, 1000, 2000):
        for i in range(5):
            begin = base + 10 * i
            assert store.draft([begin, begin + 1], 1) == (2, [begin + 2])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["drafts", "drafts.lock"]


def test_the_same_text_from_two_sessions_is_stored_once(tmp_path: Path) -> None:
    one, other = (DraftStore.open(tmp_path / "drafts", TOKENIZER) for _ in range(2))
    one.add([1, 2, 3, 4, 5])
    other.add([1, 2, 3, 4, 5])
    other.add([5, 6, 7, 8])
    one.save()
    other.save()
    assert other.num_tokens == 9
    assert one.num_tokens == 5  # as it was when this session saved


def test_a_lock_that_is_held_is_waited_for_and_then_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_LOCK_WAIT_S", 0.1)
    store = DraftStore.open(tmp_path / "drafts", TOKENIZER)
    store.add([1, 2, 3, 4])
    with hold(tmp_path / "drafts.lock", wait_s=0), pytest.raises(OutputError, match="another process has held"):
        store.save()
    store.save()
    assert store.num_tokens == 4


def make(path: Path) -> bytes:
    """A store with one sequence; its content."""
    store = DraftStore.open(path, TOKENIZER)
    store.add(list(range(50)))
    store.save()
    return path.read_bytes()


def refused(path: Path, content: bytes, match: str, tokenizer: str = TOKENIZER) -> None:
    """The content is refused when it is opened and when it is saved over, and stays."""
    path.unlink(missing_ok=True)
    make(path)
    store = DraftStore.open(path, TOKENIZER)
    path.unlink()
    path.write_bytes(content)
    with pytest.raises(DraftStoreError, match=match):
        DraftStore.open(path, tokenizer)
    if tokenizer == TOKENIZER:
        store.add([1, 2, 3, 4, 99])
        with pytest.raises(DraftStoreError, match=match):
            store.save()
        assert store.draft([3, 4], 1)[0] == 2  # it still has what it had
    assert path.read_bytes() == content


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    content = make(tmp_path / "drafts")
    for size in (len(content) - 4, len(content) // 2, 100):
        refused(tmp_path / "drafts", content[:size], "is damaged: it has|is not a draft store")
    refused(tmp_path / "drafts", content + b"\0", "is damaged: it has")
    refused(tmp_path / "drafts", content[:20], "is damaged: it has 20 bytes, expected at least 92")
    refused(tmp_path / "drafts", b"", "is not a draft store")


def test_an_altered_byte_is_found_wherever_it_is(tmp_path: Path) -> None:
    path = tmp_path / "drafts"
    content = make(path)
    for at in range(0, len(content), 7):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(DraftStoreError, match=r"is damaged|is not a draft store|of version"):
            DraftStore.open(path, TOKENIZER)
    refused(path, content[:-1] + bytes([content[-1] ^ 1]), "differs from its sha256")


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "drafts", b"a letter to someone, and a rather long one at that" * 20, "is not a draft store")
    content = make(tmp_path / "other")
    refused(tmp_path / "drafts", content[:8] + b"\x09" + content[9:], "of version 9, expected 1")
    with pytest.raises(DraftStoreError, match="is not an ordinary file"):
        DraftStore.open(tmp_path, TOKENIZER)


def test_another_tokenizers_store_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "drafts", make(tmp_path / "other"), "belongs to the tokenizer with sha256 0123", OTHER)


@pytest.mark.parametrize("digest", ["", "a" * 63, "A" * 64, "g" * 64])
def test_a_digest_is_64_digits(tmp_path: Path, digest: str) -> None:
    with pytest.raises(SettingsError, match="expected 64 digits"):
        DraftStore.open(tmp_path / "drafts", digest)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bound", [0, 3, 2**30])
def test_max_tokens_has_a_range(tmp_path: Path, bound: int) -> None:
    with pytest.raises(SettingsError, match=f"max_tokens is {bound}"):
        DraftStore.open(tmp_path / "drafts", TOKENIZER, bound)


@pytest.mark.parametrize("call", ["os.fsync", "pathlib.Path.replace"])
def test_a_save_that_fails_leaves_the_old_file_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "drafts"
    content = make(path)
    store = DraftStore.open(path, TOKENIZER)
    store.add([100, 101, 102, 103])

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(call, full)
        with pytest.raises(OutputError, match=r"cannot be written.*No space left"):
            store.save()
    assert path.read_bytes() == content
    assert sorted(file.name for file in tmp_path.iterdir()) == ["drafts", "drafts.lock"]
    assert store.draft([100, 101], 1) == (2, [102])
    store.save()
    assert DraftStore.open(path, TOKENIZER).draft([100, 101], 1) == (2, [102])


FILL = """
import resource, signal, sys
from pathlib import Path
from edge.runtime.errors import OutputError
from edge.runtime.speculation.store import DraftStore
store = DraftStore.open(Path(sys.argv[1]), sys.argv[2])
store.add(list(range(100_000)))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    store.save()
except OutputError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no RLIMIT_FSIZE")
def test_a_file_that_cannot_grow_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "drafts"
    content = make(path)
    done = subprocess.run(
        [sys.executable, "-c", FILL, str(path), TOKENIZER], capture_output=True, text=True, timeout=60, check=True
    )
    assert "cannot be written" in done.stdout
    assert path.read_bytes() == content
    assert sorted(file.name for file in tmp_path.iterdir()) == ["drafts", "drafts.lock"]


@pytest.mark.parametrize("content", [b"my notes", b"", b"\0" * 5000])
def test_files_of_others_stay(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(DraftStoreError):
        DraftStore.open(path, TOKENIZER)
    assert path.read_bytes() == content


def test_what_a_killed_save_left_is_no_hindrance(tmp_path: Path) -> None:
    path = tmp_path / "drafts"
    (tmp_path / "drafts.edgeglm-new").write_bytes(b"half a file")
    make(path)
    assert DraftStore.open(path, TOKENIZER).num_tokens == 50
    assert not (tmp_path / "drafts.edgeglm-new").exists()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"missing/drafts\.lock cannot be opened"):
        DraftStore.open(tmp_path / "missing" / "drafts", TOKENIZER)


def test_a_deleted_store_is_made_again_from_what_was_added(tmp_path: Path) -> None:
    path = tmp_path / "drafts"
    make(path)
    store = DraftStore.open(path, TOKENIZER)
    store.add([100, 101, 102, 103])
    path.unlink()
    store.save()
    assert store.num_tokens == 4


@pytest.mark.skipif(sys.platform == "win32", reason="no modes")
def test_only_the_owner_reads_it(tmp_path: Path) -> None:
    make(tmp_path / "drafts")
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}


def test_nothing_to_save_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "drafts"
    make(path)
    before = path.stat()
    store = DraftStore.open(path, TOKENIZER)
    store.save()
    assert path.stat().st_ino == before.st_ino
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def forge(path: Path, change: Callable[[bytearray], object]) -> None:
    """Alter what a store holds and compute its sha256 anew, as somebody would who means harm."""
    raw = bytearray(path.read_bytes())
    change(raw)
    head, body = bytes(raw[:60]), bytes(raw[92:])
    path.write_bytes(head + hashlib.sha256(head + body).digest() + body)


def put(raw: bytearray, at: int, layout: str, number: int) -> int:
    struct.pack_into(layout, raw, at, number)
    return at


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda raw: put(raw, len(raw) - 4, "<i", 10**6), "its order leads outside of its ids"),
        (lambda raw: put(raw, len(raw) - 4, "<i", -1), "its order leads outside of its ids"),
        (lambda raw: put(raw, len(raw) - 4, "<i", 9), "its order leads outside of its ids"),
        (lambda raw: put(raw, 92, ">I", 2**32 - 1), "it holds token id 4294967294, expected 0 to 99"),
        (lambda raw: put(raw, 92, ">I", 101), "it holds token id 100, expected 0 to 99"),
        (lambda raw: put(raw, 92 + 8 * 4, ">I", 5), "no separators after it"),
        (lambda raw: put(raw, 92 + 72 * 4, ">I", 5), "no separators after it"),
        (lambda raw: [put(raw, 44, "<Q", 40), put(raw, 52, "<Q", 41)], "it has 40 ids, expected at least the 64"),
        (lambda raw: put(raw, 44, "<Q", 2**62), "it has [0-9]* bytes, expected"),
    ],
)
def test_a_sha256_that_fits_does_not_make_it_a_store(
    tmp_path: Path, change: Callable[[bytearray], object], said: str
) -> None:
    path = tmp_path / "drafts"
    store = DraftStore.open(path, TOKENIZER)
    store.add([1, 2, 3, 4, 5, 1, 2, 3])
    store.save()
    assert DraftStore.open(path, TOKENIZER, num_ids=100).draft([1, 2], 3)[1] == [3, 4, 5]
    forge(path, change)
    with pytest.raises(DraftStoreError, match=said):
        DraftStore.open(path, TOKENIZER, num_ids=100)


def test_an_order_that_is_none_finds_less_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "drafts"
    store = DraftStore.open(path, TOKENIZER)
    store.add(list(range(50)) * 3)
    store.save()
    rng = np.random.default_rng(0)
    for _ in range(50):

        def shuffle(raw: bytearray) -> None:
            order = np.frombuffer(raw, "<i4", 150, len(raw) - 600)
            order[:] = rng.integers(0, 151, 150)

        forge(path, shuffle)
        opened = DraftStore.open(path, TOKENIZER, num_ids=50)
        for tail in ([1, 2], [48, 49, 0], [49, 0]):
            _, ids = opened.draft(tail, 32)
            assert all(0 <= token_id < 50 for token_id in ids)


def test_what_is_no_file_is_one_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "folder").mkdir()
    names = [*map(str, tmp_path.iterdir()), "/dev/zero", "/dev/full", "/", "a\0b", "x" * 300, "d/" * 3000 + "x"]
    for name in names:
        with pytest.raises((DraftStoreError, OutputError)) as caught:
            DraftStore.open(Path(name), TOKENIZER)
        assert len(str(caught.value)) < 1000
        assert str(caught.value).isprintable()
