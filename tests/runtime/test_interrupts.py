"""Whatever ends a step or a reader, at whatever line or moment: what comes afterwards is right, and nothing is lost.

`tests/chaos.py` has what is done; here it is done for seconds, and for minutes with `make test-slow`.
"""

from __future__ import annotations

import gc
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import onnx
import pytest

from edge.api import load, scripted_llm
from edge.runtime.arrays import Ids, Logits
from edge.runtime.bundle import MODEL_BIN, MODEL_XML
from edge.runtime.engines.engine import StepInterrupted
from edge.runtime.engines.scripted import noise
from edge.runtime.errors import DeviceError, GenerationError, SelfTestError
from edge.runtime.llm import LLM
from edge.runtime.settings import EngineSettings
from tests import chaos
from tests.chaos import Found, Model
from tests.forging import forge_file

SHAPES: dict[str, dict[str, Any]] = {  # keywords of ScriptedEngine
    "blocks": {"num_blocks": 64, "max_context": 256},
    "slots": {"block_size": 256, "max_context": 256, "num_blocks": 16, "max_tokens": 2048, "max_sequences": 1},
}


def nothing_wrong(found: Found) -> None:
    assert not found.problems, str(found)


@pytest.fixture(scope="module", params=SHAPES)
def shape(request: pytest.FixtureRequest) -> tuple[dict[str, Any], list[chaos.Ids]]:
    """With what an engine of this shape answers that nobody disturbs."""
    keywords = SHAPES[request.param]
    with scripted_llm(noise(), **keywords) as llm:
        return keywords, Model(llm).expected


@pytest.fixture
def scripted(shape: tuple[dict[str, Any], list[chaos.Ids]]) -> Iterator[Model]:
    keywords, expected = shape
    with scripted_llm(noise(), **keywords) as llm:
        yield Model(llm, expected)


def real(bundle: Path, engine: str) -> Model:
    return Model(load(bundle, engine=engine, reproducible=True, max_context=256, kv_cache_bytes=1 << 28))


# --- At every line ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_lines_of_readers_and_steps(scripted: Model) -> None:
    found = chaos.every_line(scripted, 307)
    nothing_wrong(found)
    assert found.counts["interrupts"] > 2
    assert 0 < found.counts["failed answers"] < found.counts["step lines"] + found.counts["step lines, BaseException"]


@pytest.mark.slow
def test_lines_of_readers_and_steps_of_real_engines(int4_bundle: Path, engine: str) -> None:
    nothing_wrong(chaos.every_line(real(int4_bundle, engine), 599))


# --- By chance --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beside", [0, 3])
def test_interrupts_by_chance(scripted: Model, beside: int) -> None:
    nothing_wrong(chaos.interrupts(scripted, 60, beside=beside, longest_s=0.01))


def test_interrupts_by_chance_of_real_engines(int4_bundle: Path, engine: str) -> None:
    nothing_wrong(chaos.interrupts(real(int4_bundle, engine), 25, beside=1))


@pytest.mark.slow
@pytest.mark.parametrize("beside", [0, 3])
def test_hundreds_of_interrupts(int4_bundle: Path, engine: str, beside: int) -> None:
    nothing_wrong(chaos.interrupts(real(int4_bundle, engine), 200, seed=1, beside=beside))


@pytest.mark.slow
@pytest.mark.parametrize("beside", [0, 3])
def test_interrupts_of_the_demo_model(demo_bundle: Path, engine: str, beside: int) -> None:
    nothing_wrong(chaos.interrupts(real(demo_bundle, engine), 12, seed=2, beside=beside, longest_s=0.3))


def test_streams_closed_by_other_threads_have_no_hole(scripted: Model) -> None:
    found = chaos.closes(scripted, 60)
    nothing_wrong(found)
    assert found.counts["closes before the end"] > 0


def test_a_chunk_that_came_while_a_stream_was_closed_is_not_delivered() -> None:
    """The one before it had been thrown away by close()."""
    llm = scripted_llm(noise())
    one, other = (llm.generate([i, 2, 3], max_new_tokens=12, ignore_stop_ids=True) for i in (0, 1))
    whole = scripted_llm(noise()).generate([0, 2, 3], max_new_tokens=12, ignore_stop_ids=True).answer().token_ids
    read = list(next(one).token_ids)
    for _ in range(3):
        next(other)  # the first one's next tokens wait to be read
    inside, go_on = threading.Event(), threading.Event()
    decode = llm.engine.decode

    def slow(steps: list) -> list:  # type: ignore[type-arg]
        inside.set()
        assert go_on.wait(60)
        return decode(steps)

    llm.engine.decode = slow  # type: ignore[method-assign]
    reader = threading.Thread(target=lambda: [next(other) for _ in range(3)])
    reader.start()
    assert inside.wait(60)
    one.close()
    go_on.set()
    reader.join(60)
    rest = [i for chunk in one for i in chunk.token_ids]
    assert tuple(read + rest) == whole[: len(read + rest)]
    assert rest == []


@pytest.mark.slow
def test_hundreds_of_closes(int4_bundle: Path, engine: str) -> None:
    nothing_wrong(chaos.closes(real(int4_bundle, engine), 200))


def test_threads_that_answer_close_and_fail(scripted: Model) -> None:
    found = chaos.threads(scripted, 3, number=8)
    nothing_wrong(found)
    assert {"answered", "closed", "abandoned", "late", "failed", "batches with a bad prompt"} <= set(found.counts)


@pytest.mark.slow
def test_twenty_threads(int4_bundle: Path, engine: str) -> None:
    nothing_wrong(chaos.threads(real(int4_bundle, engine), 10))


# --- What ends a step -------------------------------------------------------------------------------------------------


def test_a_closed_stream_ends_the_step_that_only_it_waits_for_where_that_is_safe(
    demo_bundle: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others' next answer does not wait for thousands of tokens that nobody wants."""
    with load(demo_bundle, engine=engine, reproducible=True, max_context=8192) as llm:
        expected = llm.generate("hello", max_new_tokens=2).answer().token_ids
        llm.clear_cache()
        monkeypatch.setattr(llm.engine, "info", replace(llm.engine.info, prefill_chunk=3000))
        forward, began, interrupted = llm.engine.forward, threading.Event(), list[int]()

        def watched(ids: Ids, *more: Any) -> Logits:
            began.set()
            try:
                return forward(ids, *more)
            except StepInterrupted:
                interrupted.append(ids.size)
                raise

        monkeypatch.setattr(llm.engine, "forward", watched)
        stream = llm.generate([7, 9, 11] * 1000, max_new_tokens=1)
        reader = threading.Thread(target=stream.answer)
        reader.start()
        assert began.wait(60)
        time.sleep(0.3)  # into the engine; 3,000 tokens take seconds
        stream.close()
        assert llm.generate("hello", max_new_tokens=2).answer().token_ids == expected
        reader.join(60)
        # OpenVINO would fail in a later step, or worse; it computes the chunk to its end.
        assert interrupted == ([3000] if engine == "onnx" else [])


def test_an_interrupted_step_is_made_again_for_others(scripted: Model) -> None:
    """An interrupt that was meant for somebody else costs time and nothing else."""
    llm = scripted.llm
    decode, calls = llm.engine.decode, [0]

    def interrupted(steps: list) -> list:  # type: ignore[type-arg]
        calls[0] += 1
        if calls[0] % 3 == 0:
            raise StepInterrupted
        return decode(steps)

    llm.engine.decode = interrupted  # type: ignore[method-assign]
    for case in range(4):
        assert scripted.is_right(case, scripted.ask(case).answer().token_ids)
    assert calls[0] > 20


def test_openvino_is_compiled_anew_after_a_failed_run(int4_bundle: Path) -> None:
    """What its plugin remembers of a run that failed half-way makes later ones fail."""
    model = real(int4_bundle, "openvino")
    engine: Any = model.llm.engine
    compiled = engine._model
    stream = model.ask(0)
    next(stream)
    set_input = engine._set
    engine._set = lambda name, value: set_input(name, value[:0] if name == "past_lens" else value)
    with pytest.raises(DeviceError, match="the engine failed"):
        stream.answer()
    engine._set = set_input
    for case in range(3):
        assert model.is_right(case, model.ask(case).answer().token_ids)
    assert engine._model is not compiled


class _FailsBeforeItWaits:
    """A request whose run is under way while the step that began it ends."""

    def __init__(self, request: Any) -> None:
        self._real = request
        self._times = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def wait(self) -> None:
        self._times += 1
        if self._times == 1:
            raise MemoryError
        self._real.wait()


def test_openvino_does_not_ask_a_request_that_still_runs(demo_bundle: Path) -> None:
    with load(demo_bundle, engine="openvino", max_context=2048) as llm:
        engine: Any = llm.engine
        prompt = [7, 9, 11] * 300  # takes long enough to be running when the next step comes
        expected = llm.generate(prompt, max_new_tokens=4).answer().token_ids
        llm.clear_cache()
        engine._request = _FailsBeforeItWaits(engine._request)
        with pytest.raises(GenerationError, match="MemoryError"):
            llm.generate(prompt, max_new_tokens=4).answer()
        assert llm.generate(prompt, max_new_tokens=4).answer().token_ids == expected


def test_the_process_ends_under_a_running_step(demo_bundle: Path, engine: str) -> None:
    """Neither a crash nor a wait: the step is told to end."""
    script = (
        "import sys, threading, time, edge\n"
        "llm = edge.load(sys.argv[1], engine=sys.argv[2], max_context=8192)\n"
        "stream = llm.generate([7, 9, 11] * 1000, max_new_tokens=1)\n"
        "threading.Thread(target=stream.answer, daemon=True).start()\n"
        "time.sleep(0.3)\n"
        "print('done', flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(demo_bundle), engine],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_ctrl_c_while_waiting_is_raised_at_once() -> None:
    inside, go_on, in_time = threading.Event(), threading.Event(), list[bool]()

    def script(held: object) -> int:
        inside.set()
        in_time.append(go_on.wait(60))
        return 7

    llm = scripted_llm(script)

    def press() -> None:
        assert inside.wait(60)
        time.sleep(0.5)  # the reader has begun to wait: on its way there, Python would only look after the wait
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press).start()
    stream = llm.generate([1, 2], max_new_tokens=3)
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    assert not in_time, "the step still runs"
    go_on.set()
    assert list(stream) == []
    assert llm.generate([1, 2], max_new_tokens=3).answer().token_ids == (7, 7, 7)
    assert all(in_time), "it had to wait for nobody but us"


def test_a_second_interrupt_while_the_first_is_handled(scripted: Model) -> None:
    """As when somebody holds Ctrl-C down: four in a row, each wherever the one before has got to."""
    presses: list[None] = []

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        if presses:
            presses.pop()
            raise KeyboardInterrupt

    def ask_until_released() -> None:
        while presses:
            with scripted.ask(0) as stream:
                for _chunk in stream:
                    pass

    def hold_down(levels: int) -> None:
        """Each level survives one, whether it comes in the answer or in another one's handler."""
        try:
            if levels:
                hold_down(levels - 1)
            else:
                presses[:] = [None] * 4
                signal.setitimer(signal.ITIMER_REAL, 0.002, 0.0003)
                ask_until_released()
        except KeyboardInterrupt:
            ask_until_released()

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(40):
            hold_down(4)
            assert not presses
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert scripted.is_right(2, scripted.ask(2).answer().token_ids)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    found = Found()
    scripted.check(found)
    nothing_wrong(found)


# --- One request's error is its own -----------------------------------------------------------------------------------


class Strange(BaseException):
    """Like pyo3's PanicException, which is no Exception."""


@pytest.mark.parametrize("error", [ZeroDivisionError("none"), IndexError(), Strange("a panic"), MemoryError()])
@pytest.mark.parametrize("place", ["_choose", "_sampler", "_detokenizer", "_stops", "constraint", "drafter"])
def test_any_exception_ends_one_request(scripted: Model, place: str, error: BaseException) -> None:
    class Broken:
        stopped = finished = False

        def __getattr__(self, name: str) -> object:
            raise error

        def __call__(self, *_: object) -> int:
            raise error

    streams = [scripted.ask(case) for case in range(3)]
    setattr(streams[1]._request, place, Broken())
    ids = [list(next(streams[0]).token_ids), [], []]
    with pytest.raises(GenerationError, match="this answer failed") as caught:
        streams[1].answer()
    assert caught.value.__cause__ is error
    for case in (0, 2):
        ids[case] += [i for chunk in streams[case] for i in chunk.token_ids]
        assert scripted.is_right(case, ids[case])
    found = Found()
    scripted.check(found)
    nothing_wrong(found)


def test_a_batch_keeps_the_other_answers_and_what_was_written(scripted: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    from edge.runtime.request import Request

    llm = scripted.llm
    question, options = scripted.cases[0]
    choose = Request._choose
    broken = llm.tokenizer.encode("broken")

    def fails(self: Request, row: np.ndarray) -> int:
        if self.ids[: len(broken)] == broken and len(self.answer_ids) == 4:
            raise ZeroDivisionError("at the fifth token")
        return choose(self, row)

    monkeypatch.setattr(Request, "_choose", fails)
    encode = type(llm.tokenizer).encode

    def panics(self: object, text: str, **more: bool) -> list[int]:
        if text == "panics":
            raise OverflowError("in the tokenizer")
        return encode(self, text, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(type(llm.tokenizer), "encode", panics)
    answers = llm.generate_batch([question, "broken", "panics", question], **options)
    assert [answer.finish_reason for answer in answers] == ["length", "error", "error", "length"]
    assert scripted.is_right(0, answers[0].token_ids)
    assert scripted.is_right(0, answers[3].token_ids)
    assert len(answers[1].token_ids) == 4, "what was written before the error"
    assert "ZeroDivisionError: at the fifth token" in str(answers[1].error)
    assert "OverflowError: in the tokenizer" in str(answers[2].error)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 1, "top_k": 5}, {"logprobs": 3}])
def test_logits_that_are_no_numbers_are_an_error(value: float, options: dict) -> None:  # type: ignore[type-arg]
    """Greedy choice took token 0 for ever, and sampling died of an IndexError."""
    sound = noise()

    def script(held: list[int]) -> np.ndarray:
        row = np.array(sound(held))
        if held[0] == 99:
            row[:] = value if value < 0 else row
            row[17] = value
        return row

    llm = scripted_llm(script, vocab_size=256)  # type: ignore[arg-type]
    good = scripted_llm(noise(), vocab_size=256).generate([1, 2], max_new_tokens=6, ignore_stop_ids=True, **options)
    streams = [llm.generate([first, 2], max_new_tokens=6, ignore_stop_ids=True, **options) for first in (1, 99)]
    with pytest.raises(DeviceError, match=r"logits of (nan|inf|-inf).*inference_precision f32"):
        streams[1].answer()
    assert streams[0].answer().token_ids == good.answer().token_ids


def test_a_mask_is_no_error() -> None:
    def script(held: object) -> np.ndarray:
        row = np.full(256, -np.inf, np.float32)
        row[5] = 1.0
        return row

    llm = scripted_llm(script, vocab_size=256)
    assert llm.generate([1], max_new_tokens=2, ignore_stop_ids=True).answer().token_ids == (5, 5)


# --- What is left behind ----------------------------------------------------------------------------------------------


def test_a_model_that_nobody_has_any_more_ends_its_thread() -> None:
    llm = scripted_llm(noise())
    llm.generate([1, 2], max_new_tokens=2).answer()
    thread = llm._runner._worker.thread
    assert thread.is_alive()
    del llm
    gc.collect()
    thread.join(60)
    assert not thread.is_alive()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
@pytest.mark.parametrize("used", [False, True])
def test_a_forked_process_is_refused_with_a_sentence(int4_bundle: Path, engine: str, used: bool) -> None:
    """It hung for ever: the engine's threads are not there. In a process of its own: forks copy locks of pytest's."""
    script = (
        "import os, sys, edge\n"
        "llm = edge.load(sys.argv[1], engine=sys.argv[2], max_context=256)\n"
        "begun = llm.generate('hello', max_new_tokens=5, ignore_stop_ids=True)\n"
        "if sys.argv[3] == 'True':\n"
        "    next(begun)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    for use in (lambda: llm.generate('hello'), lambda: next(begun), llm.clear_cache):\n"
        "        try:\n"
        "            use()\n"
        "        except edge.EdgeError as error:\n"
        "            print(type(error).__name__, error, flush=True)\n"
        "    llm.close()\n"
        "    sys.exit(7)\n"
        "status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n"
        "print(status, len(begun.answer().token_ids), llm.generate('hello', max_new_tokens=2).answer().finish_reason)\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", script, str(int4_bundle), engine, str(used)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    lines = done.stdout.splitlines()
    assert len(lines) == 4, done.stdout + done.stderr
    for line in lines[:3]:
        assert line.startswith("DeviceError this model was loaded in another process, and a fork")
        assert line.endswith('load it in each process, or start processes with multiprocessing\'s "spawn"')
    assert lines[3].split()[0] == "7"
    assert done.returncode == 0


@pytest.mark.parametrize(
    "text",
    [
        "Once upon a time there was",
        pytest.param("My favourite food is", marks=pytest.mark.slow),
        pytest.param("def main():", marks=pytest.mark.slow),
    ],
)
def test_reproducible_answers_do_not_depend_on_what_others_were_answered(
    text: str, demo_bundle: Path, engine: str
) -> None:
    """What was decoded has other bits than what is read, on OpenVINO: 17 of 20 answers differed."""
    llm = LLM(demo_bundle, EngineSettings(engine, reproducible=True, max_context=512, kv_cache_bytes=1 << 29))
    said = llm.generate(text, max_new_tokens=24).answer().token_ids
    prompt = [*llm.tokenizer.encode(text), *said[:20], *llm.tokenizer.encode(" and so")]
    for options in ({"max_new_tokens": 24}, {"max_new_tokens": 24, "temperature": 0.8, "seed": 3}):
        llm.clear_cache()
        fresh = llm.generate(prompt, **options).answer()
        llm.clear_cache()
        llm.generate(text, max_new_tokens=24).answer()
        later = llm.generate(prompt, **options).answer()
        assert later.token_ids == fresh.token_ids
        assert later.stats is not None
        assert later.stats.cached_tokens > 0


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_weights_that_overflow_are_an_error_on_either_engine(
    int4_bundle: Path, engine: str, tmp_path: Path, wrong: float
) -> None:
    """Scales that are no numbers, in a bundle whose hashes say so too."""
    bundle = Path(shutil.copytree(int4_bundle, tmp_path / "bundle"))
    constant = r'type="Const"[^>]*>\s*<data element_type="(f16|f32)" shape="[^"]*" offset="(\d+)" size="(\d+)"'
    weights = bytearray((bundle / MODEL_BIN).read_bytes())
    for kind, offset, size in re.findall(constant, (bundle / MODEL_XML).read_text(encoding="utf-8")):
        if int(size) > 8:
            width = int(kind[1:]) // 8
            values = np.full(int(size) // width, wrong, f"<f{width}")
            weights[int(offset) : int(offset) + int(size)] = values.tobytes()
    forge_file(bundle, MODEL_BIN, bytes(weights))
    for path in bundle.glob("model*.onnx"):
        graph = onnx.load(path, load_external_data=False)
        for tensor in graph.graph.initializer:
            width = {onnx.TensorProto.FLOAT: 4, onnx.TensorProto.FLOAT16: 2}.get(tensor.data_type, 0)
            if width:
                tensor.raw_data = np.full(len(tensor.raw_data) // width, wrong, f"<f{width}").tobytes()
        forge_file(bundle, path.name, graph.SerializeToString())
    with pytest.raises(SelfTestError, match="NaN or infinity"):
        LLM(bundle, EngineSettings(engine, max_context=128))
    llm = LLM(bundle, EngineSettings(engine, max_context=128, self_test="off"))
    for options in ({}, {"temperature": 1.0, "seed": 1, "top_p": 0.9}, {"logprobs": 3}):
        with pytest.raises(DeviceError, match="logits of"):
            llm.generate("hello", max_new_tokens=4, **options).answer()
