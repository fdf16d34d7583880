"""A batch as a whole: what comes out, that nothing but the requests decides it, and that it resumes from anything.

Answers are random by their seeds and follow from every token before them, so that a request that got another's place,
seed or cache would get another answer.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.batch import journal as journals
from edge.batch.answering import answer_lines
from edge.batch.batch import JOURNAL, LOCK, Batch, Progress
from edge.batch.journal import Done, Journal
from edge.batch.lines import Lines
from edge.batch.settings import BatchSettings
from edge.runtime.errors import ClosedError, OutputError, PromptError
from edge.runtime.locks import hold_now
from tests.edge.batch.jobs import CHAT, COMPLETIONS, Body, answers, line, many, message, model, run, write

ROOT = Path(__file__).parents[3]
RNG = random.Random(18)


class Stop(BaseException):
    """What ends a process, for tests within one."""


def after(count: int) -> Any:
    """What is called with the progress, and ends a batch after so many lines."""

    def show(progress: Progress) -> None:
        if progress.done >= count:
            raise Stop

    return show


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """Requests, and the output of one undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    requests = write(folder / "in.jsonl", many(200))
    run(requests, folder / "out.jsonl")
    return requests, (folder / "out.jsonl").read_bytes()


def test_every_line_has_its_answer_in_the_order_of_the_requests(tmp_path: Path) -> None:
    requests: list[Body | bytes] = [
        line("chat", message("Hello")),
        b"",
        b"not JSON",
        line("text", {"prompt": "a", "max_tokens": 2}, COMPLETIONS),
        line("wrong", {"messages": []}),
        line("again", message("Hello"), extra="ignored"),
    ]
    summary = run(write(tmp_path / "in.jsonl", requests), tmp_path / "out.jsonl")
    found = answers(tmp_path / "out.jsonl")
    assert [one["custom_id"] for one in found] == ["chat", None, "text", "wrong", "again"]
    assert [one["response"]["status_code"] for one in found] == [200, 400, 200, 400, 200]
    assert all(list(one) == ["id", "custom_id", "response", "error"] and one["error"] is None for one in found)
    assert [one["response"]["body"].get("object") for one in found] == [
        "chat.completion", None, "text_completion", None, "chat.completion"
    ]  # fmt: skip
    assert len({one["id"] for one in found}) == len({one["response"]["request_id"] for one in found}) == 5
    assert found[0]["response"]["body"]["choices"] != found[4]["response"]["body"]["choices"]  # seeds by name
    assert found[0]["response"]["body"]["created"] == 0
    assert (summary.totals.lines, summary.totals.failed, summary.resumed) == (5, 2, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


@pytest.mark.parametrize(
    ("changed", "param", "code"),
    [
        ({"method": "GET"}, "method", "invalid_value"),
        ({"url": None}, "url", "missing_required_parameter"),
        ({"url": "/v1/embeddings"}, "url", "invalid_value"),
        ({"url": ["/v1/completions"]}, "url", "invalid_value"),
        ({"body": None}, "body", "missing_required_parameter"),
        ({"body": "Hello"}, "body", "invalid_type"),
        ({"body": message("x", stream=True)}, "stream", "unsupported_parameter"),
        ({"body": message("x", temperature=9)}, "temperature", "invalid_value"),
        ({"body": message("x" * 5000)}, "messages", "context_length_exceeded"),
        ({"body": message("x", response_format={"type": "xml"})}, "response_format.type", "invalid_value"),
    ],
)
def test_a_wrong_line_is_an_answer_with_its_error(
    changed: dict[str, Any], param: str, code: str, tmp_path: Path
) -> None:
    good = [line("a"), line("c")]
    requests = write(tmp_path / "in.jsonl", [good[0], {**line("b"), **changed}, good[1]])
    run(requests, tmp_path / "out.jsonl")
    first, wrong, last = answers(tmp_path / "out.jsonl")
    assert wrong["response"]["status_code"] == 400
    error = wrong["response"]["body"]["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)
    run(write(tmp_path / "good.jsonl", list(good)), tmp_path / "alone.jsonl")
    alone = answers(tmp_path / "alone.jsonl")
    same = [one["response"]["body"]["choices"] for one in (first, last)]
    assert same == [one["response"]["body"]["choices"] for one in alone]


def test_calls_of_tools(tmp_path: Path) -> None:
    """Held to the schema by the grammar, as a name and an object come out of random logits."""
    tool = {"type": "function", "function": {"name": "go", "parameters": {"type": "object", "properties": {}}}}
    body = message("Go!", tools=[tool], tool_choice="required", max_tokens=40)
    for out in ("one.jsonl", "two.jsonl"):
        run(write(tmp_path / "in.jsonl", [line("a", body), line("b", {**body, "n": 2})]), tmp_path / out)
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
    ids = set()
    for one in answers(tmp_path / "one.jsonl"):
        for choice in one["response"]["body"]["choices"]:
            (call,) = choice["message"]["tool_calls"]
            ids.add(call["id"])
            assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
            assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("go", {})
    assert len(ids) == 3


@pytest.mark.parametrize("concurrency", [1, 3, 256])
@pytest.mark.parametrize("shape", [{}, {"num_blocks": 40, "max_context": 256}, {"max_sequences": 1}], ids=str)
def test_only_the_requests_decide_the_bytes(
    concurrency: int, shape: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many compute together, and also where the cache has room for a few only."""
    requests = write(tmp_path / "in.jsonl", many(60))
    out = {}
    for name, number in (("one", 8), ("two", concurrency)):
        run(requests, tmp_path / name, model(**{"max_context": 256, **shape}), concurrency=number)
        out[name] = (tmp_path / name).read_bytes()
    assert out["one"] == out["two"]


def test_an_answer_does_not_depend_on_those_before_it(tmp_path: Path) -> None:
    """A conversation that continues from another line's answer, by the letter, is encoded as its text."""
    first = line("a", message("Hello", max_tokens=20, seed=3))
    run(write(tmp_path / "in.jsonl", [first]), tmp_path / "first")
    (answer,) = answers(tmp_path / "first")
    text = answer["response"]["body"]["choices"][0]["message"]["content"]
    assert "\ufffd" in text  # which encodes to other ids than it came from
    talk = [*first["body"]["messages"], {"role": "assistant", "content": text}, {"role": "user", "content": "And?"}]
    second = line("b", {"messages": talk, "max_tokens": 8, "temperature": 1})
    run(write(tmp_path / "both.jsonl", [first, second]), tmp_path / "both", concurrency=1)
    run(write(tmp_path / "alone.jsonl", [second]), tmp_path / "alone")
    both, alone = answers(tmp_path / "both")[1], answers(tmp_path / "alone")[0]
    assert both["response"]["body"]["choices"] == alone["response"]["body"]["choices"]
    assert both["response"]["body"]["usage"] == alone["response"]["body"]["usage"]


def test_new_requests_start_as_old_ones_end(tmp_path: Path) -> None:
    """One long answer holds up no others: they are all done before it, and never more than asked are in work."""
    long = line("long", message("x", max_tokens=300, ignore_eos=True))
    short = [line(f"{i}", message("y", max_tokens=2, ignore_eos=True)) for i in range(60)]
    lines = Lines(write(tmp_path / "in.jsonl", [long, *short]))
    order, in_work = [], []
    with model() as llm:
        for outcome in answer_lines(llm, enumerate(lines), 4, "model", "run"):
            order.append(outcome.index)
            in_work.append(llm.stats.running + llm.stats.waiting)
    lines.close()
    assert order == [*range(1, 61), 0]
    assert max(in_work) < 4


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 300) | st.floats(-5, 5) | st.sampled_from(["", "POST", CHAT, "a"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["role", "content", "messages", "prompt", "n", "a"]), inner, max_size=3)
    ),
    max_leaves=6,
)
ANY_LINE = st.binary(max_size=20) | st.builds(
    lambda found, body: json.dumps({**found, "body": body}).encode(),
    st.dictionaries(st.sampled_from(["method", "url"]), ANY_JSON | st.sampled_from([CHAT, COMPLETIONS, "POST"])),
    ANY_JSON | st.builds(lambda prompt, more: {**more, "prompt": prompt, "max_tokens": 2}, ANY_JSON, st.just({})),
)


@settings(max_examples=60, deadline=None)
@given(found=st.lists(ANY_LINE, max_size=6))
def test_any_lines_have_their_answers(found: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever is in a line, it gets one, and the lines around it are not disturbed."""
    folder = tmp_path_factory.mktemp("any")
    named = [one.replace(b"{", b'{"custom_id": "%d", ' % i, 1) for i, one in enumerate(found)]
    requests = write(folder / "in.jsonl", [line("first"), *named, line("last")])
    try:
        run(requests, folder / "out.jsonl")
    except PromptError as error:
        assert "without a custom_id" in str(error) or "same custom_id" in str(error)  # noqa: PT017  # bytes by chance
        return
    got = answers(folder / "out.jsonl")
    assert len(got) == sum(bool(one.strip()) for one in requests.read_bytes().split(b"\n"))
    assert all(one["response"]["status_code"] in (200, 400) for one in got)
    run(write(folder / "two.jsonl", [line("first"), line("last")]), folder / "two")
    assert [one["response"]["body"]["choices"] for one in (got[0], got[-1])] == [
        one["response"]["body"]["choices"] for one in answers(folder / "two")
    ]


# --- Resuming ---------------------------------------------------------------------------------------------------------


def test_a_run_that_is_ended_at_any_line_resumes(whole: tuple[Path, bytes], tmp_path: Path) -> None:
    requests, expected = whole
    out = tmp_path / "out.jsonl"
    before = 0
    for count in (1, 2, 50, 120, 199):
        with pytest.raises(Stop):
            run(requests, out, show=after(count), concurrency=1 + count % 9)
        assert not out.exists()
        kept = Journal(out.with_name(out.name + JOURNAL), *_parts(out))
        assert kept.totals.lines >= max(count, before)
        before = kept.totals.lines
        kept.close()
    summary = run(requests, out)
    assert summary.resumed == before
    assert summary.totals.lines == 200
    assert out.read_bytes() == expected
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def _parts(out: Path) -> tuple[dict[str, str], int]:
    """What a journal says it belongs to."""
    head = out.with_name(out.name + JOURNAL).read_bytes().splitlines()[1]
    return json.loads(head), 200


def test_a_journal_that_is_cut_off_at_any_byte_is_whole_again(tmp_path: Path) -> None:
    """As a crash of the machine may leave it, which a killed process does not."""
    path, parts = tmp_path / "j", {"a": "b"}
    records = [Done(i, 200, i, i, b'{"id": %d}' % i) for i in (2, 0, 3, 1)]
    journal, ends = Journal(path, parts, 5), []
    for record in records:
        journal.add(record)
        ends.append(path.stat().st_size)
    journal.close()
    data = path.read_bytes()
    for size in range(len(data) + 1):
        path.write_bytes(data[:size])
        journal = Journal(path, parts, 5)
        done = sum(end <= size for end in ends)
        assert journal.totals.lines == done
        assert [record.index in journal for record in records] == [i < done for i in range(4)]
        for record in records[done:]:
            journal.add(record)
        assert path.read_bytes() == data
        assert len(list(journal.lines())) == 4
        journal.close()


def test_a_batch_whose_journal_was_cut_off_anywhere_comes_to_the_same(tmp_path: Path) -> None:
    requests, out = write(tmp_path / "in.jsonl", many(12)), tmp_path / "out.jsonl"
    run(requests, tmp_path / "expected")
    with pytest.raises(Stop):
        run(requests, out, show=after(5), concurrency=2)
    journal = tmp_path / f"out.jsonl{JOURNAL}"
    data = journal.read_bytes()
    llm, resumed = model(), set()
    for size in (*range(0, len(data), 41), len(data)):
        journal.write_bytes(data[:size])
        with Batch(requests, out, BatchSettings(4)) as batch:
            resumed.add(batch.run(llm, {}).resumed)
        assert out.read_bytes() == (tmp_path / "expected").read_bytes(), size
        out.unlink()
    llm.close()
    assert resumed >= set(range(6))


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 10**9), bit=st.integers(0, 7))
def test_a_journal_with_a_wrong_bit(place: int, bit: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing wrong gets into the output: the line is answered again, or the file is refused as another's."""
    folder = tmp_path_factory.mktemp("bit")
    requests, out = write(folder / "in.jsonl", many(6)), folder / "out.jsonl"
    run(requests, folder / "expected")
    with pytest.raises(Stop):
        run(requests, out, show=after(4))
    journal = folder / f"out.jsonl{JOURNAL}"
    data = bytearray(journal.read_bytes())
    data[place % len(data)] ^= 1 << bit
    journal.write_bytes(data)
    try:
        run(requests, out)
    except OutputError:
        assert not out.exists()
    else:
        assert out.read_bytes() == (folder / "expected").read_bytes()


def test_a_process_that_is_killed_at_random_moments(whole: tuple[Path, bytes], tmp_path: Path) -> None:
    requests, expected = whole
    out = tmp_path / "out.jsonl"
    journal = tmp_path / f"out.jsonl{JOURNAL}"
    command = [sys.executable, "-m", "tests.edge.batch.jobs", str(requests), str(out)]
    for _ in range(5):
        size = journal.stat().st_size if journal.exists() else 0
        with subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
            while process.poll() is None and not (journal.exists() and journal.stat().st_size > size):
                time.sleep(0.001)
            time.sleep(RNG.random() * 0.03)
            process.kill()
        assert process.returncode == -signal.SIGKILL
    assert run(requests, out).resumed >= 4  # at the first kill the journal may have had its beginning alone
    assert out.read_bytes() == expected
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_a_process_that_ends_between_the_output_and_its_journal(
    whole: tuple[Path, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests, expected = whole
    out = tmp_path / "out.jsonl"

    def stop(journal: Journal) -> None:
        journal.close()
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "remove", stop)
        with pytest.raises(Stop):
            run(requests, out)
    assert out.read_bytes() == expected
    summary = run(requests, out)
    assert summary.nothing_to_do
    assert (summary.totals.lines, summary.totals.failed) == (
        200,
        sum(b'"status_code": 400' in one for one in expected.splitlines()),
    )
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_the_journal_of_another_batch_is_not_touched(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    requests = write(tmp_path / "in.jsonl", many(20))
    with pytest.raises(Stop):
        run(requests, out, show=after(5))
    journal = tmp_path / f"out.jsonl{JOURNAL}"
    kept = journal.read_bytes()
    other = write(tmp_path / "other.jsonl", many(21))
    with pytest.raises(OutputError, match=r"another batch \(other: requests\).*--force"):
        run(other, out)
    with pytest.raises(OutputError, match=r"another batch \(other: engine settings\)"):
        run(requests, out, model(max_context=512))
    assert journal.read_bytes() == kept
    assert run(other, out, force=True).resumed == 0
    assert len(answers(out)) == 21
    assert not journal.exists()


# --- Files ------------------------------------------------------------------------------------------------------------


def test_files_of_others_stay(tmp_path: Path) -> None:
    requests, out = write(tmp_path / "in.jsonl", many(3)), tmp_path / "out.jsonl"
    journal = tmp_path / f"out.jsonl{JOURNAL}"
    for force in (False, True):
        journal.write_text("precious")
        with pytest.raises(OutputError, match="is not what is kept of a batch; move it away"):
            run(requests, out, force=force)
        assert journal.read_text() == "precious"
        journal.unlink()
        journal.mkdir()
        with pytest.raises(OutputError, match="is in the way"):
            run(requests, out, force=force)
        journal.rmdir()
    for name in ("out.jsonl.edgeglm-new", f".out.jsonl{LOCK}"):
        (tmp_path / name).write_text("precious")
    run(requests, out)
    assert (tmp_path / f".out.jsonl{LOCK}").read_text() == "precious"


def test_an_output_that_exists_is_replaced_only_by_force(tmp_path: Path) -> None:
    requests, out = write(tmp_path / "in.jsonl", many(12)), tmp_path / "out.jsonl"
    run(requests, tmp_path / "expected")
    expected = (tmp_path / "expected").read_bytes()
    for found in (b"", b"precious", b"{}\n" * 12, expected[:-1], expected + b"\n", expected[: len(expected) // 2]):
        out.write_bytes(found)
        with pytest.raises(OutputError, match=r"exists.*--force"):
            run(requests, out)
        assert out.read_bytes() == found
    out.write_bytes(expected)
    with pytest.raises(OutputError, match="those of other settings or another model"):
        run(requests, out, model(max_context=512))
    out.write_bytes(b"old")
    with pytest.raises(Stop):
        run(requests, out, force=True, show=after(4))
    assert out.read_bytes() == b"old"  # until the new one is whole
    assert run(requests, out, force=True).resumed >= 4
    assert out.read_bytes() == expected


def test_an_output_that_appears_meanwhile_stays(tmp_path: Path) -> None:
    requests, out = write(tmp_path / "in.jsonl", many(5)), tmp_path / "out.jsonl"

    def appear(_: Progress) -> None:
        out.write_text("precious")

    with pytest.raises(OutputError, match="has appeared meanwhile"):
        run(requests, out, show=appear)
    assert out.read_text() == "precious"
    out.unlink()
    assert run(requests, out).resumed == 5


def test_two_processes_do_not_work_on_one_output(tmp_path: Path) -> None:
    requests, out = write(tmp_path / "in.jsonl", many(5)), tmp_path / "out.jsonl"
    with hold_now(tmp_path / f".out.jsonl{LOCK}") as held:
        assert held
        with pytest.raises(OutputError, match="another process is working on"):
            run(requests, out)
    run(requests, out)


def test_places_that_cannot_be_written_are_told_before_a_model_is_loaded(tmp_path: Path) -> None:
    requests = write(tmp_path / "in.jsonl", many(5))
    (tmp_path / "link.jsonl").symlink_to("in.jsonl")
    (tmp_path / "loop").symlink_to("loop")
    for out in (
        tmp_path,
        Path("/dev/null"),
        tmp_path / "no" / "out",
        requests,
        tmp_path / "link.jsonl",
        tmp_path / "loop",
    ):
        with pytest.raises(OutputError):
            Batch(requests, out, BatchSettings(1))
    with pytest.raises(PromptError, match="cannot be read"):
        Batch(tmp_path / "nothing", tmp_path / "out", BatchSettings(1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "link.jsonl", "loop"]


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "out").symlink_to("far/out.jsonl")
    run(write(tmp_path / "in.jsonl", many(5)), tmp_path / "out")
    assert len(answers(tmp_path / "far" / "out.jsonl")) == 5
    assert (tmp_path / "out").is_symlink()


def test_the_output_has_the_rights_of_any_new_file(tmp_path: Path) -> None:
    requests = write(tmp_path / "in.jsonl", many(3))
    for mask in (0o022, 0o077):
        before = os.umask(mask)
        run(requests, tmp_path / f"{mask}")
        os.umask(before)
        assert (tmp_path / f"{mask}").stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("where", ["journal", "output"])
def test_a_full_disk_keeps_what_is_done(
    where: str, whole: tuple[Path, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests, expected = whole
    out = tmp_path / "out.jsonl"
    full = OSError(28, os.strerror(28))
    with monkeypatch.context() as patch:
        if where == "journal":
            written = journals.Journal._write

            def write_half(self: Journal, data: bytes) -> None:
                if self.totals.lines < 50:
                    written(self, data)
                else:
                    written(self, data[: len(data) // 2])
                    raise full

            patch.setattr(journals.Journal, "_write", write_half)
            message = "what is done is kept, and the same command resumes there"
        else:

            def no_room(_: int) -> None:
                raise full

            patch.setattr("os.fsync", no_room)
            message = "bytes are needed"
        with pytest.raises(OutputError, match=message):
            run(requests, out)
    assert not out.exists()
    summary = run(requests, out)
    assert summary.resumed == (50 if where == "journal" else 200)
    assert out.read_bytes() == expected


def test_a_model_that_is_closed_ends_the_batch_and_not_its_lines(tmp_path: Path) -> None:
    requests, out = write(tmp_path / "in.jsonl", many(20)), tmp_path / "out.jsonl"
    llm = model()

    def close(progress: Progress) -> None:
        if progress.done == 6:
            llm.close()

    with pytest.raises(ClosedError):
        run(requests, out, llm, show=close)
    assert 6 <= run(requests, out).resumed < 20
    assert all(one["response"]["status_code"] in (200, 400) for one in answers(out))


def test_an_engine_that_fails_for_one_line(tmp_path: Path) -> None:
    def script(held: Any) -> Any:
        if held[1:6] == [*b"break"]:
            raise RuntimeError("no")
        return np.zeros(256, np.float32)

    from edge.api import scripted_llm

    requests = [line("a"), line("b", message("break")), line("c")]
    run(write(tmp_path / "in.jsonl", list(requests)), tmp_path / "out", scripted_llm(script))
    found = answers(tmp_path / "out")
    assert [one["response"]["status_code"] for one in found] == [200, 500, 200]
    assert found[1]["response"]["body"]["error"]["type"] == "server_error"
    assert "RuntimeError" in found[1]["response"]["body"]["error"]["message"]


def test_a_journal_finds_its_lines_in_any_order(tmp_path: Path) -> None:
    parts = {"a": "b"}
    order = list(range(50))
    RNG.shuffle(order)
    journal = Journal(tmp_path / "j", parts, 60)
    for index in order:
        journal.add(Done(index, 200 if index % 2 else 400, index, 1, f"line {index} \u00fc".encode() * (index + 1)))
    journal.close()
    again = Journal(tmp_path / "j", parts, 60)
    assert (again.totals.lines, again.totals.failed, again.totals.read) == (50, 25, sum(range(50)))
    assert list(again.lines()) == [f"line {i} \u00fc".encode() * (i + 1) + b"\n" for i in range(50)]
    assert [index in again for index in (0, 49, 50, 59)] == [True, True, False, False]
    again.remove()
    assert not list(tmp_path.iterdir())


def test_signals_have_their_usual_effect(whole: tuple[Path, bytes], tmp_path: Path) -> None:
    """Ctrl-C ends the process with what is done kept."""
    requests, expected = whole
    out = tmp_path / "out.jsonl"
    journal = tmp_path / f"out.jsonl{JOURNAL}"
    command = [sys.executable, "-m", "tests.edge.batch.jobs", str(requests), str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE) as process:
        while process.poll() is None and not (journal.exists() and journal.stat().st_size > 2000):
            time.sleep(0.001)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert not out.exists() or process.returncode == 0
    run(requests, out)
    assert out.read_bytes() == expected
