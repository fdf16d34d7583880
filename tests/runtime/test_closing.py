"""A closed model holds nothing: its memory can be collected, its streams have ended, and any use of it is refused."""

from __future__ import annotations

import gc
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
import openvino as ov
import pytest

from edge.api import scripted_llm
from edge.runtime.engines.scripted import noise
from edge.runtime.errors import ClosedError, OutputError
from edge.runtime.llm import LLM
from edge.runtime.session import ChatSession
from edge.runtime.settings import EngineSettings, SpeculationSettings

PROMPT = list(b"Once upon a time")
MODELS = {"openvino": ov.CompiledModel, "onnx": ort.InferenceSession}
HELLO = [{"role": "user", "content": "Hello"}]


def heavy(llm: LLM) -> dict[str, list[weakref.ref[object]]]:
    """References, by type, to what takes memory: KV buffers, and the compiled model or its sessions."""
    found: dict[str, list[weakref.ref[object]]] = {}
    for value in [*parts_of(llm.engine.pool.memory, np.ndarray), *parts_of(llm.engine, MODELS[llm.engine.info.name])]:
        found.setdefault(type(value).__name__, []).append(weakref.ref(value))
    return found


def parts_of(value: object, kind: type) -> Iterator[object]:
    """Objects of a kind among the attributes of our own objects, in lists and in dictionaries."""
    if isinstance(value, kind):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from parts_of(part, kind)
    elif isinstance(value, dict):
        yield from parts_of(list(value.values()), kind)
    elif type(value).__module__.startswith("edge.runtime"):
        yield from parts_of(getattr(value, "__dict__", {}), kind)


def alive(known: dict[str, list[weakref.ref[object]]]) -> dict[str, int]:
    """How many of each type are still in memory."""
    gc.collect()
    return {name: count for name, refs in known.items() if (count := sum(ref() is not None for ref in refs))}


def test_memory_of_model_and_cache_can_be_collected(tiny_bundle: Path, engine: str) -> None:
    """While the closed model itself is still held, and a stream of it."""
    llm = LLM(tiny_bundle, EngineSettings(engine))
    stream = llm.generate(PROMPT, max_new_tokens=50, ignore_stop_ids=True)
    next(stream)
    llm.generate(PROMPT, max_new_tokens=5).answer()
    known = heavy(llm)
    assert set(known) == {"ndarray", MODELS[engine].__name__}
    assert len(known["ndarray"]) >= 6, "keys and values of three layers"
    llm.close()
    assert alive(known) == {}
    assert repr(llm).endswith("(closed)>")
    assert list(stream) == []


@pytest.fixture
def closed() -> LLM:
    llm = scripted_llm(noise())
    llm.generate(PROMPT, max_new_tokens=5).answer()
    llm.close()
    return llm


USES: dict[str, Callable[[LLM, Path], object]] = {
    "generate": lambda llm, _: llm.generate(PROMPT),
    "chat": lambda llm, _: llm.chat(HELLO),
    "generate_batch": lambda llm, _: llm.generate_batch([PROMPT]),
    "sample": lambda llm, _: llm.sample(PROMPT, 2),
    "sample_streams": lambda llm, _: llm.sample_streams(PROMPT, 2),
    "session": lambda llm, _: ChatSession(llm).send("Hello"),
    "pin_prefix": lambda llm, _: llm.prefixes.pin(PROMPT),
    "unpin_prefixes": lambda llm, _: llm.prefixes.unpin_all(),
    "save_prefix": lambda llm, folder: llm.prefixes.save(PROMPT, folder / "prefix"),
    "load_prefix": lambda llm, folder: llm.prefixes.load(folder / "prefix"),
    "add_document": lambda llm, _: llm.add_document("Some text."),
    "clear_cache": lambda llm, _: llm.clear_cache(),
}


@pytest.mark.parametrize("use", USES)
def test_a_closed_model_refuses(closed: LLM, use: str, tmp_path: Path) -> None:
    with pytest.raises(ClosedError, match="has been closed; load it again"):
        USES[use](closed, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_second_close_changes_nothing(closed: LLM) -> None:
    closed.close()
    with closed:
        pass
    assert closed.stats.running == closed.stats.waiting == 0


def test_open_streams_end() -> None:
    """Those that have begun, those that wait, and one with chunks that nobody has read yet."""
    llm = scripted_llm(noise(), num_blocks=4)
    streams = [llm.generate([i] * 40, ignore_stop_ids=True) for i in range(3)]
    begun = next(streams[0])
    next(streams[0])
    assert begun.token_ids
    llm.close()
    assert list(streams[0]) == []
    answers = [stream.answer() for stream in streams]
    assert [(answer.finish_reason, answer.token_ids) for answer in answers] == [("cancelled", ())] * 3
    assert [repr(stream).split()[1] for stream in streams] == ["cancelled:"] * 3


def test_a_reader_in_another_thread_sees_the_end() -> None:
    llm = scripted_llm(noise(), max_context=100_000, num_blocks=10_000)
    began, found = threading.Event(), list[int]()

    def read() -> None:
        for chunk in llm.generate(PROMPT, ignore_stop_ids=True):
            found.extend(chunk.token_ids)
            began.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert began.wait(60)
    llm.close()
    reader.join(60)
    assert not reader.is_alive()
    assert 0 < len(found) < 100_000 - len(PROMPT)


def test_memory_is_given_back_although_the_store_cannot_be_written(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    llm = LLM(tiny_bundle, EngineSettings("onnx"), SpeculationSettings(), folder / "answers")
    llm.generate(PROMPT, max_new_tokens=5, ignore_stop_ids=True).answer()
    known = heavy(llm)
    shutil.rmtree(folder)
    with pytest.raises(OutputError):
        llm.close()
    assert alive(known) == {}
    with pytest.raises(ClosedError):
        llm.generate(PROMPT)
