"""Fixtures that several tests share: data that may be absent, and exports that are made once a session."""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from edge.export.checkpoint.default import find_checkpoint
from edge.export.interop import openvino_tokenizer
from edge.export.pipeline import export
from edge.models.folders import state_folder
from edge.runtime.engines import registry
from edge.runtime.errors import CheckpointError
from edge.runtime.llm import LLM
from edge.runtime.locks import hold
from edge.runtime.settings import EngineSettings
from tests import tokenizer_models
from tests.posix_only import posix_only

ROOT = Path(__file__).parent.parent
ENGINES: tuple[str, ...] = tuple(name for name, record in registry.ENGINES.items() if record.runs_on("CPU"))
collect_ignore = [] if os.name == "posix" else posix_only(ROOT / "tests")

# Every engine choice that trades accuracy for speed, switched off.
EXACT = {
    engine: EngineSettings(engine, inference_precision="f32", kv_precision="f32", dynamic_quantization_group=0)
    for engine in ENGINES
}

# A machine that does other work beside the tests is slow now and then; what must be fast is measured in benchmarks.
hypothesis.settings.register_profile("edgeglm", deadline=None)
hypothesis.settings.load_profile("edgeglm")


@pytest.fixture(scope="module", autouse=True)
def event_loops_are_closed() -> Iterator[None]:
    """One that a file leaves open would be found as garbage in the middle of a later test, which would fail for it."""
    yield
    loop = getattr(getattr(asyncio.get_event_loop_policy(), "_local", None), "_loop", None)
    assert loop is None or loop.is_closed(), f"an event loop was left open: {loop}"


OWN_STATE = state_folder()  # of whoever runs the tests


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder for us and for processes that tests start, so that none writes into the user's own.

    The same holds for models, defaults and state, which is looked at when all is done.
    """
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        # What matplotlib keeps there takes it many seconds to make.
        patch.setenv("MPLCONFIGDIR", os.environ.get("MPLCONFIGDIR") or str(Path.home() / ".cache" / "matplotlib"))
        patch.setenv("XDG_CACHE_HOME", str(folder))
        for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "WIN_PD_OVERRIDE_LOCAL_APPDATA"):
            patch.setenv(name, str(tmp_path_factory.mktemp(name.lower())))
        yield folder
    used = None if OWN_STATE is None else OWN_STATE / "last-used.json"
    if used is not None and used.is_file():  # whatever exports a bundle or asks it leaves its folder there
        assert str(tmp_path_factory.getbasetemp()) not in used.read_text(), "a test wrote into this user's own folders"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real GLM-4 tokenizer, template and configs; their licence keeps them out of the project."""
    path = Path(os.environ.get("EDGEGLM_SHARED", ROOT.parent / "shared")) / "data"
    if not path.is_dir():
        pytest.skip(f"{path} is not there; set EDGEGLM_SHARED to the folder that holds data/")
    return path


@pytest.fixture(scope="session")
def demo_gguf() -> Path:
    """The default checkpoint."""
    try:
        return find_checkpoint()
    except CheckpointError as error:
        pytest.skip(str(error))


def shared_folder(factory: pytest.TempPathFactory) -> Path:
    """Of all processes of a run."""
    base = factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    shared.mkdir(exist_ok=True)
    return shared


@pytest.fixture(scope="session", autouse=True)
def tokenizers_are_converted_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store = shared_folder(tmp_path_factory) / "tokenizers"
    store.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openvino_tokenizer, "start", tokenizer_models.kept_in(store))
        yield


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that is made by the first process of a run that wants it; `make` makes it whole or not at all."""
    shared = shared_folder(factory)
    with hold(shared / f"{name}.lock", wait_s=600):
        if not (shared / name).exists():
            make(shared / name)
    return shared / name


@pytest.fixture(scope="session")
def demo_bundle(demo_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default checkpoint, rounded to nearest. About 10 s."""
    return made_once(tmp_path_factory, "demo", lambda out: export(demo_gguf, out, "int4-asym-g64"))


@pytest.fixture(scope="session", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """Each engine; what needs it runs once on every one."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def demo_llm(demo_bundle: Path, engine: str) -> LLM:
    return LLM(demo_bundle, EngineSettings(engine))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests import tiny

    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    tiny.make(tiny.TINIES[0], folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "tiny", lambda out: export(tiny_checkpoint, out, "int8-asym"))


@pytest.fixture(scope="session")
def int4_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "int4", lambda out: export(tiny_checkpoint, out, "int4-asym-g64"))


@pytest.fixture(scope="session")
def npu_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made for NPUs, by a short text."""
    text = tmp_path_factory.mktemp("npu") / "words.txt"
    text.write_text(" ".join(f"word{i % 97} and {i}" for i in range(3000)))
    return made_once(
        tmp_path_factory,
        "npu",
        lambda out: export(tiny_checkpoint, out, "int4-sym-channel", device="NPU", calibration=text),
    )


@pytest.fixture(scope="session")
def tiny_llm(tiny_bundle: Path, engine: str) -> LLM:
    return LLM(tiny_bundle, EXACT[engine])


class _SignalStack(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@pytest.fixture(autouse=True)
def signal_stack() -> Iterator[None]:
    """Undo what peers do that load OpenVINO in the main thread (edge/runtime/engines/openvino_core.py)."""
    if sys.platform != "linux":
        yield
        return
    libc, before = ctypes.CDLL(None), _SignalStack()
    libc.sigaltstack(None, ctypes.byref(before))
    yield
    libc.sigaltstack(ctypes.byref(before), None)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any connection to another machine is a bug."""

    def refuse(connect: Callable[..., object]) -> Callable[..., object]:
        def guarded(self: socket.socket, address: object) -> object:
            loopback = isinstance(address, tuple) and address[0] in ("127.0.0.1", "::1")
            if self.family in (socket.AF_INET, socket.AF_INET6) and not loopback:
                raise AssertionError(f"a test tried to reach {address}")
            return connect(self, address)

        return guarded

    monkeypatch.setattr(socket.socket, "connect", refuse(socket.socket.connect))
