"""The engine on ONNX Runtime: buffers that stay where they are, settings, and everything that can be wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Unpack

import numpy as np
import onnxruntime
import pytest

from edge.export.graph.onnx import models as graphs
from edge.export.pipeline import export
from edge.runtime import bundle as bundles
from edge.runtime import machine
from edge.runtime.bundle import OnnxKernels, open_bundle
from edge.runtime.differences import FLOAT32_BOUND
from edge.runtime.engines import onnx_session
from edge.runtime.engines.choice import open_engine
from edge.runtime.engines.engine import Step
from edge.runtime.engines.onnxruntime import OnnxRuntimeEngine
from edge.runtime.errors import BundleError, DeviceError, SettingsError, VerificationError
from edge.runtime.kv import pages
from edge.runtime.kv.pool import CacheSequence
from edge.runtime.llm import LLM
from edge.runtime.settings import CachePrecision, EngineOptions, EngineSettings, engine_settings
from edge.runtime.verify import verify
from tests.forging import forge_file
from tests.runtime.blocks import views

IDS = np.random.default_rng(4).integers(0, 256, 50)
# Anonymous memory of a process: its own and, which the buffers would be in if they were mapped otherwise, shared.
RESIDENT = """
def resident():
    lines = dict(line.split(':', 1) for line in open('/proc/self/status'))
    return sum(int(lines[name].split()[0]) for name in ('RssAnon', 'RssShmem')) * 1024
"""


@pytest.fixture(scope="module")
def int4_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("int4") / "bundle"
    export(tiny_checkpoint, out, "int4-sym-g128")  # whose integers ONNX has in a file of its own
    return out


def engine_of(bundle: Path, device: str | None = None, **options: Unpack[EngineOptions]) -> OnnxRuntimeEngine:
    options["engine"] = "onnx"
    engine = open_engine(open_bundle(bundle), engine_settings(device, **options))
    assert isinstance(engine, OnnxRuntimeEngine)
    return engine


def run(engine: OnnxRuntimeEngine, ids: np.ndarray) -> np.ndarray:
    """Logits of the last token."""
    sequence = CacheSequence(engine.pool)
    try:
        logits: np.ndarray = engine.forward(ids, sequence, np.array([ids.size - 1]))[0].copy()
        return logits
    finally:
        sequence.trim(0)


def test_keys_are_written_where_the_buffers_are(tiny_bundle: Path) -> None:
    """No copy: new tokens appear behind the old ones, and nothing else in the buffers of any slot changes."""
    engine = engine_of(tiny_bundle)
    sequence, row = CacheSequence(engine.pool), np.array([0])
    engine.forward(IDS[:20], sequence, row)
    slot, other = sequence.block_table[0], (sequence.block_table[0] + 1) % engine.pool.num_blocks
    before = [view.copy() for view in views(engine.pool.memory, slot, 256)]
    assert all(np.abs(b[:, :20]).min(axis=-1).max() > 0 and not b[:, 20:].any() for b in before)
    engine.forward(IDS[20:21], sequence, row)
    for old, new in zip(before, views(engine.pool.memory, slot, 256), strict=True):
        np.testing.assert_array_equal(old[:, :20], new[:, :20])
        assert new[:, 20].any()
        assert not new[:, 21:].any()
    assert not any(view.any() for view in views(engine.pool.memory, other, 256))


def test_buffers_take_memory_as_tokens_arrive(demo_bundle: Path) -> None:
    """377 MB of buffers at 8,192 tokens; a page of 64 rows a head and layer at first."""
    script = (
        "import sys, numpy as np; from edge.runtime import bundle; from edge.runtime.settings import EngineSettings; "
        "from edge.runtime.engines.choice import open_engine; from edge.runtime.kv.pool import CacheSequence\n"
        f"{RESIDENT}"
        "e = open_engine(bundle.open_bundle(sys.argv[1]), EngineSettings('onnx')); before = resident(); "
        "e.forward(np.arange(8), CacheSequence(e.pool), np.array([7])); print(resident() - before)"
    )
    if not Path("/proc/self/status").exists():
        pytest.skip("memory is told by /proc")
    done = subprocess.run([sys.executable, "-c", script, str(demo_bundle)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 40e6


def test_buffers_of_others_take_no_memory_in_a_batch(demo_bundle: Path) -> None:
    """Eight rows of 2,048 tokens, of which two in the middle are computed: 47 MB a row if it were all touched."""
    script = (
        "import sys, numpy as np; from edge.runtime import bundle; from edge.runtime.kv.pool import CacheSequence\n"
        "from edge.runtime.engines.engine import Step; from edge.runtime.engines.choice import open_engine\n"
        "from edge.runtime.settings import EngineSettings\n"
        f"{RESIDENT}"
        "settings = EngineSettings('onnx', max_context=2048, kv_cache_bytes=1 << 30)\n"
        "e = open_engine(bundle.open_bundle(sys.argv[1]), settings)\n"
        "kept = [CacheSequence(e.pool) for _ in range(8)]; [s.reserve(1) for s in kept]; before = resident()\n"
        "for s in (kept[2], kept[5]): e.forward(np.arange(8), s, np.array([7]))\n"
        "e.decode([Step(s, np.array([3])) for s in (kept[2], kept[5])]); print(resident() - before)"
    )
    if not Path("/proc/self/status").exists():
        pytest.skip("memory is told by /proc")
    done = subprocess.run([sys.executable, "-c", script, str(demo_bundle)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 40e6


def test_trimmed_equals_fresh(tiny_bundle: Path) -> None:
    engine = engine_of(tiny_bundle)
    expected = run(engine, IDS[:30])
    sequence = CacheSequence(engine.pool)
    engine.forward(IDS, sequence, np.array([0]))
    sequence.trim(20)
    found = engine.forward(IDS[20:30], sequence, np.array([9]))[0]
    np.testing.assert_allclose(found, expected, atol=1e-4)


PLACES = [(0, 1, 2), (1, 4, 6), (7, 3), (5, 0, 7, 2)]  # of running sequences among those that are held
# Of the largest logit. With float16 a last bit of float32 turns some keys' rounding, which costs less than all of it.
BOUNDS = {"f32": FLOAT32_BOUND, "f16": 0.02}


def held_slots(engine: OnnxRuntimeEngine) -> list[CacheSequence]:
    """Eight sequences of different lengths, the last one empty."""
    kept = [CacheSequence(engine.pool) for _ in range(8)]
    for index, sequence in enumerate(kept[:-1]):
        engine.forward(IDS[index : index + 5 + 5 * index], sequence, np.array([0]))
    kept[-1].reserve(1)
    return kept


def bytes_of(engine: OnnxRuntimeEngine, sequence: CacheSequence) -> list[bytes]:
    return [view.tobytes() for view in views(engine.pool.memory, sequence.block_table[0], sequence.num_tokens)]


@pytest.mark.parametrize("places", PLACES, ids=str)
@pytest.mark.parametrize("precision", ["f32", "f16"])
def test_a_batch_equals_its_sequences_one_by_one(
    tiny_bundle: Path, places: tuple[int, ...], precision: CachePrecision
) -> None:
    """Wherever they lie; the keys and values of all others stay as they are, byte by byte."""
    batched, single = (
        engine_of(tiny_bundle, max_context=64, kv_precision=precision, dynamic_quantization_group=0) for _ in range(2)
    )
    ours, theirs = held_slots(batched), held_slots(single)
    others = [sequence for index, sequence in enumerate(ours) if index not in places]
    before = [bytes_of(batched, sequence) for sequence in others]
    for token in IDS[:6]:
        found = batched.decode([Step(ours[index], np.array([token + index])) for index in places])
        for index, rows in zip(places, found, strict=True):
            expected = single.decode([Step(theirs[index], np.array([token + index]))])[0]
            assert rows.shape == expected.shape
            assert np.abs(rows - expected).max() <= BOUNDS[precision] * np.abs(expected).max()
    assert [bytes_of(batched, sequence) for sequence in others] == before
    for index in places:
        assert ours[index].num_tokens == theirs[index].num_tokens


def test_sequences_of_a_batch_share_one_run(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Single tokens do; drafts do not, nor does anything that is to be reproducible."""
    for reproducible, drafts, expected in ((False, 0, 1), (False, 1, 2), (False, 4, 4), (True, 0, 4)):
        engine = engine_of(tiny_bundle, max_context=64, reproducible=reproducible)
        kept, runs, run = held_slots(engine)[:4], [0], engine._run
        monkeypatch.setattr(engine, "_run", lambda runs=runs, run=run: (runs.append(0), run()))
        engine.decode([Step(sequence, IDS[: 1 + 2 * (index < drafts)]) for index, sequence in enumerate(kept)])
        assert len(runs) - 1 == expected


def test_a_step_of_drafts_and_single_tokens(tiny_bundle: Path) -> None:
    """Every sequence gets its own rows, in the order that was asked for."""
    engine = engine_of(tiny_bundle, max_context=64, dynamic_quantization_group=0)
    kept, counts = held_slots(engine), (1, 3, 1, 2, 1)
    expected = [
        engine.decode([Step(sequence.fork(), IDS[:count])])[0].copy()
        for sequence, count in zip(kept[:5], counts, strict=True)
    ]
    found = engine.decode([Step(sequence, IDS[:count]) for sequence, count in zip(kept, counts, strict=False)])
    for one, other, count in zip(found, expected, counts, strict=True):
        assert one.shape == other.shape == (count, other.shape[1])
        assert np.abs(one - other).max() <= FLOAT32_BOUND * np.abs(other).max()


def test_float16_cache_halves_the_bytes(tiny_bundle: Path) -> None:
    half, full = engine_of(tiny_bundle, kv_precision="f16"), engine_of(tiny_bundle)
    assert half.info.kv_bytes_per_token * 2 == full.info.kv_bytes_per_token
    a, b = run(half, IDS), run(full, IDS)
    assert 0 < np.abs(a - b).max() < 0.02 * np.abs(b).max()  # 11 bits of mantissa


def test_activations_follow_the_weights(int4_bundle: Path, tiny_bundle: Path) -> None:
    """Rounded to 8 bits where weights have 4, unless it is said otherwise; floats with 8-bit weights."""
    default, rounded, exact = (
        run(engine_of(int4_bundle, dynamic_quantization_group=group), IDS) for group in (None, 64, 0)
    )
    np.testing.assert_array_equal(default, rounded)
    assert np.abs(default - exact).max() > 1e-3 * np.abs(exact).max()
    default, exact = (run(engine_of(tiny_bundle, dynamic_quantization_group=group), IDS) for group in (None, 0))
    np.testing.assert_array_equal(default, exact)


def test_parts_equal_the_whole(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph of one part and one of three, with chunks, decoding and a trim."""
    engine_in = {}
    for name, part_bytes in (("one", 1e9), ("three", 1)):
        monkeypatch.setattr(graphs, "PART_BYTES", part_bytes)
        export(tiny_checkpoint, tmp_path / name, "int8-asym", format="onnx")
        engine_in[name] = engine_of(tmp_path / name)
    assert [len(engine._parts) for engine in engine_in.values()] == [1, 3]

    def rows(engine: OnnxRuntimeEngine) -> np.ndarray:
        sequence, found = CacheSequence(engine.pool), []
        for start, stop in ((0, 20), (20, 21), (21, 40), (40, 41)):
            wanted = np.arange(stop - start)[-2:]
            found.append(engine.forward(IDS[start:stop], sequence, wanted).copy())
        sequence.trim(10)
        found.append(engine.forward(IDS[:7], sequence, np.array([0, 6])).copy())
        return np.concatenate(found)

    one, three = (rows(engine) for engine in engine_in.values())
    np.testing.assert_allclose(three, one, atol=1e-5)


def test_threads_are_taken(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where cores are not known, onnxruntime chooses; no more threads than processors are started."""
    monkeypatch.setattr(machine, "logical_processors", lambda: 4)
    for chosen, cores, expected in ((1, 3, 1), (None, 3, 3), (None, None, 0), (64, 3, 4)):
        monkeypatch.setattr(machine, "physical_cores", lambda cores=cores: cores)
        session = engine_of(tiny_bundle, threads=chosen)._parts[0].session
        assert session.get_session_options().intra_op_num_threads == expected


def test_waiting_threads_soon_sleep_and_results_do_not_depend_on_pieces(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def logits(pieces: int) -> np.ndarray:
        monkeypatch.setattr(onnx_session, "_PIECES", pieces)
        engine = engine_of(tiny_bundle, threads=2)
        options = engine._parts[0].session.get_session_options()
        assert options.get_session_config_entry("session.dynamic_block_base") == str(pieces)
        assert int(options.get_session_config_entry("session.intra_op.spin_duration_us")) <= 1000
        return engine.forward(IDS[:40], CacheSequence(engine.pool), np.arange(40)).copy()

    found = logits(onnx_session._PIECES)
    assert np.array_equal(found, logits(0))  # 0: onnxruntime's default, pieces of equal size


def test_cores_are_those_of_the_affinity() -> None:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system has no affinity")
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert machine.physical_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    cores = machine.physical_cores()
    assert cores is not None
    assert 1 <= cores <= len(allowed)


def test_bundle_without_onnx(tiny_checkpoint: Path, tmp_path: Path) -> None:
    export(tiny_checkpoint, tmp_path / "bundle", "int8-asym", format="openvino")
    with pytest.raises(BundleError, match="holds no ONNX graph; use --engine openvino, or export it with"):
        LLM(tmp_path / "bundle", EngineSettings("onnx"))


def test_bundle_without_openvino(tiny_checkpoint: Path, tmp_path: Path) -> None:
    export(tiny_checkpoint, tmp_path / "bundle", "int8-asym", format="onnx")
    assert LLM(tmp_path / "bundle").generate("Hello", max_new_tokens=3).text() is not None
    with pytest.raises(BundleError, match="holds no OpenVINO graph; use --engine onnx, or export it with"):
        LLM(tmp_path / "bundle", EngineSettings("openvino"))
    with pytest.raises(BundleError, match="holds nothing that runs on GPU"):
        LLM(tmp_path / "bundle", EngineSettings(device="GPU"))


@pytest.fixture
def copy(int4_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(int4_bundle, tmp_path / "copy"))


@pytest.mark.parametrize("name", [bundles.MODEL_BIN, bundles.ONNX_DATA, "model_int8.0.onnx"])
def test_weights_missing_or_cut(int4_bundle: Path, copy: Path, name: str) -> None:
    with (copy / name).open("r+b") as file:
        file.truncate((copy / name).stat().st_size - 1)
    with pytest.raises(BundleError, match=f"{name} has .* bytes, the manifest says"):
        LLM(copy, EngineSettings("onnx"))
    (copy / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        LLM(copy, EngineSettings("onnx"))


def test_weights_altered(copy: Path) -> None:
    with (copy / bundles.ONNX_DATA).open("r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(bytes([first[0] ^ 0xFF]))
    with pytest.raises(BundleError, match=f"{bundles.ONNX_DATA} is altered"):
        verify(copy)
    with pytest.raises(BundleError, match=f"{bundles.ONNX_DATA} is altered"):
        LLM(copy, EngineSettings("onnx"))


def test_graph_that_is_none(copy: Path) -> None:
    """With a hash that fits, so that only onnxruntime can tell."""
    forge_file(copy, "model_int8.0.onnx", b"\xff" * 1000)
    with pytest.raises(DeviceError, match=r"onnxruntime .* cannot open .*model_int8\.0\.onnx: .*; run edge verify"):
        LLM(copy, EngineSettings("onnx"))


def test_verify_runs_what_the_bundle_holds(copy: Path) -> None:
    """A graph whose computation is wrong and whose hash is right."""
    exact = copy / OnnxKernels().part(0)
    content = exact.read_bytes()
    shifted = content.replace(b"epsilon", b"epsilon")  # the attribute's value follows its name
    place = shifted.index(b"epsilon") + len(b"epsilon") + 1
    shifted = shifted[:place] + np.float32(5.0).tobytes() + shifted[place + 4 :]
    assert len(shifted) == len(content)
    forge_file(copy, exact.name, shifted)
    with pytest.raises(VerificationError, match="engine onnx on CPU gives logits that differ"):
        verify(copy)


def test_onnxruntime_too_old(int4_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.20.1")
    with pytest.raises(DeviceError, match=r"onnxruntime 1\.20\.1 is too old.*expected 1\.\d+ or newer; pip install"):
        engine_of(int4_bundle)


def test_context_larger_than_memory(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.runtime.engines.limits.available_bytes", lambda: 50_000)
    with pytest.raises(SettingsError, match=r"a context of 200 tokens needs .*, 50,000 are allowed; lower"):
        engine_of(tiny_bundle, max_context=200)
    assert engine_of(tiny_bundle).info.max_context < 200


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"kv_precision": "u8"}, SettingsError, "kv_precision is u8, the onnx engine has f32 and f16"),
        ({"inference_precision": "bf16"}, SettingsError, "inference_precision is bf16, the onnx engine has f32"),
        ({"device": "GPU"}, DeviceError, "the onnx engine runs on the CPU"),
    ],
)
def test_settings_it_does_not_have(
    tiny_bundle: Path, settings: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        engine_of(tiny_bundle, **settings)  # type: ignore[arg-type]  # what it refuses


def test_runs_without_openvino(tiny_checkpoint: Path, tmp_path: Path) -> None:
    export(tiny_checkpoint, tmp_path / "bundle", "int4-asym-g64", format="onnx")
    script = (
        "import sys; sys.modules['openvino'] = None; import edge; from edge.cli import main; "
        f"bundle = {str(tmp_path / 'bundle')!r}; edge.load(bundle).generate('Hello', max_new_tokens=3).text(); "
        "assert main(['verify', bundle]) == main(['devices']) == main(['inspect', bundle]) == 0"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_nothing_is_queued_for_a_server(int4_bundle: Path, tmp_path: Path) -> None:
    """onnxruntime would make a database of events in the user's cache folder and start an uploader."""
    script = f"import edge; edge.load({str(int4_bundle)!r}, engine='onnx').generate('Hello', max_new_tokens=3).text()"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ORT_")}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert found <= {"edgeglm/checked-files", "edgeglm/first-results"}


def test_slots_are_as_many_as_the_system_promises(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen, whose memory is taken token by token; where no more may be mapped than is allowed, what that holds."""
    settings = EngineSettings("onnx", max_context=64, kv_cache_bytes=3 * 64 * 768)
    roomy = open_engine(open_bundle(tiny_bundle), settings)
    assert (roomy.pool.num_blocks, roomy.pool.max_tokens) == (16, 3 * 64)
    mapped = pages.MappedPages

    def strict(size: int) -> pages.MappedPages:
        if size > settings.kv_cache_bytes // len(views(roomy.pool.memory, 0, 1)):
            raise OSError(12, "Cannot allocate memory")
        return mapped(size)

    monkeypatch.setattr(pages, "MappedPages", strict)
    tight = open_engine(open_bundle(tiny_bundle), settings)
    assert (tight.pool.num_blocks, tight.pool.max_tokens) == (3, 3 * 64)


def test_memory_of_a_slot_is_given_back(tiny_bundle: Path) -> None:
    """What a sequence wrote reads as nothing when it is free, and others keep theirs."""
    engine = open_engine(open_bundle(tiny_bundle), EngineSettings("onnx"))
    kept, gone = CacheSequence(engine.pool), CacheSequence(engine.pool)
    for sequence in (kept, gone):
        engine.forward(np.resize(IDS, 200), sequence, np.array([0]))
    block, before = gone.block_table[0], [view.copy() for view in views(engine.pool.memory, kept.block_table[0], 200)]
    assert engine.pool.num_free_tokens == engine.pool.max_tokens - 400
    gone.free()
    assert engine.pool.num_free_tokens == engine.pool.max_tokens - 200
    whole_pages = 4096 // views(engine.pool.memory, block, 1)[0][0, 0].nbytes  # tokens of a head in one page
    assert not any(view[:, whole_pages : 2 * whole_pages].any() for view in views(engine.pool.memory, block, 200))
    after = views(engine.pool.memory, kept.block_table[0], 200)
    assert all(np.array_equal(old, new) for old, new in zip(before, after, strict=True))
