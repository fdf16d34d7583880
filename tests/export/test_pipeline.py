"""An export is whole, repeatable, or leaves nothing behind."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from edge.export.compress.precision import Precision
from edge.export.compress.recipes import recipes
from edge.export.interop import openvino_tokenizer
from edge.export.pipeline import export
from edge.export.stages import Progress
from edge.runtime import bundle
from edge.runtime.bundle import open_bundle
from edge.runtime.differences import FLOAT32_BOUND
from edge.runtime.errors import CheckpointError, OutputError, RecipeError, SettingsError, TokenizerError
from edge.runtime.kv.pool import CacheSequence
from edge.runtime.llm import LLM
from edge.runtime.verify import verify
from tests import tiny
from tests.conftest import EXACT


def test_bundle_is_complete_and_recorded(tiny_bundle: Path) -> None:
    opened = open_bundle(tiny_bundle)
    on_disk = {path.name for path in tiny_bundle.iterdir()} - {bundle.MANIFEST}
    assert on_disk == set(opened.manifest.files)
    assert {"openvino_model.xml", "openvino_model.bin", "tokenizer.json", "chat_template.jinja"} <= on_disk
    assert {"openvino_tokenizer.xml", "openvino_detokenizer.xml", "config.json", "graph.pbtxt"} <= on_disk
    assert [check.stage for check in opened.manifest.checks] == ["embedding", "block 0", "block 1", "block 2", "head"]
    opened.check_hashes()
    assert opened.manifest.stop_token_ids == (256, 257, 258)
    assert opened.manifest.recipe == "int8-asym"
    generation = json.loads((tiny_bundle / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [256, 257, 258]


def test_named_tokens_are_handed_on(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Templates ask for bos_token and eos_token by name; older configs write a token with its properties."""
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, checkpoint)
    config = {"bos_token": {"content": "<|system|>", "special": True}, "eos_token": "<|endoftext|>", "pad_token": None}
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(config))
    (checkpoint / "chat_template.jinja").write_text(
        "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}{{ eos_token }}"
    )
    for name in ("a", "b"):
        export(checkpoint, tmp_path / name, "int8-asym")
    written = (tmp_path / "a" / "tokenizer_config.json").read_bytes()
    assert written == (tmp_path / "b" / "tokenizer_config.json").read_bytes()
    found = {key: value for key, value in json.loads(written).items() if key.endswith("_token")}
    assert found == {"bos_token": "<|system|>", "eos_token": "<|endoftext|>"}
    llm = LLM(tmp_path / "a", EXACT["onnx"])
    assert llm.render([{"role": "user", "content": "hi"}]) == "<|system|>hi<|endoftext|>"
    ids = llm.encode_chat([{"role": "user", "content": "<|system|>"}])
    assert ids == [260, *llm.tokenizer.encode("<|system|>", parse_special=False), 256]


def test_manifest_records_every_fallback(tiny_checkpoint: Path, tmp_path: Path) -> None:
    manifest = export(tiny_checkpoint, tmp_path / "out", "int4-asym-g128")
    tensors = manifest.tensors
    assert tensors["layers.0.mlp.down.weight"].precision == "int4-asym-g128"
    narrow = tensors["layers.0.attn.qkv.weight"]
    assert (narrow.precision, narrow.note) == ("int4-asym-g64", "width 64 has no groups of 128")
    assert tensors["lm_head.weight"].precision == "int8-asym"
    assert sum(t.nbytes for t in tensors.values()) == manifest.weight_bytes
    assert manifest.weight_group_size == 64


def test_same_input_same_bytes(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_tokenizer, "start", openvino_tokenizer.Conversion)  # each converts
    first = export(tiny_checkpoint, tmp_path / "a", "int4-asym-g64")
    second = export(tiny_checkpoint, tmp_path / "b", "int4-asym-g64")
    assert first == second
    for name in [*first.files, bundle.MANIFEST]:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_golden_logits_of_a_float_bundle_are_the_checkpoints(tiny_checkpoint: Path, tmp_path: Path) -> None:
    manifest = export(tiny_checkpoint, tmp_path / "out", "fp32")
    with np.load(tmp_path / "out" / bundle.GOLDEN) as golden:
        off = np.abs(golden["float_logits"] - golden["logits"]).max()  # sums of as many rows, in another order
        assert off <= FLOAT32_BOUND * np.abs(golden["float_logits"]).max()
    assert abs(manifest.golden_kld) < 1e-9
    assert all(check.error < FLOAT32_BOUND and check.expected == 0 for check in manifest.checks)


def test_progress_reaches_the_end_in_order(tiny_checkpoint: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    export(tiny_checkpoint, tmp_path / "out", "int8-asym", progress=seen.append)
    assert [p.stage for p in seen] == ["embedding", "block 0", "block 1", "block 2", "head", "writing"]
    assert [p.done for p in seen] == sorted(p.done for p in seen)
    assert seen[-1].done == seen[-1].total == open_bundle(tmp_path / "out").manifest.spec.num_parameters


def test_existing_output_needs_force(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(tiny_checkpoint, out, "int8-asym")
    before = (out / bundle.MANIFEST).read_bytes()
    with pytest.raises(OutputError, match=r"exists already.*--force"):
        export(tiny_checkpoint, out, "int8-sym")
    assert (out / bundle.MANIFEST).read_bytes() == before
    export(tiny_checkpoint, out, "int8-sym", force=True)
    assert open_bundle(out).manifest.recipe == "int8-sym"
    assert list(tmp_path.iterdir()) == [out]


def test_force_does_not_delete_what_is_no_bundle(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="is not a bundle"):
        export(tiny_checkpoint, tmp_path / "precious", "int8-asym", force=True)
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "years of work"


def test_an_interrupt_keeps_the_old_bundle(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    export(tiny_checkpoint, out, "int8-asym")

    def fail(progress: Progress) -> None:
        if progress.stage == "block 1":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(tiny_checkpoint, out, "int4-asym-g64", force=True, progress=fail)
    assert list(tmp_path.iterdir()) == [out]
    assert open_bundle(out).manifest.recipe == "int8-asym"
    export(tiny_checkpoint, out, "int4-asym-g64", force=True)
    assert not (out / ".export.partial").exists()
    assert open_bundle(out).manifest.recipe == "int4-asym-g64"


def test_too_little_space_is_seen_before_starting(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(OutputError, match=r"1,000 bytes free, the bundle needs about"):
        export(tiny_checkpoint, tmp_path / "out", "int8-asym")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", [60_000, 300_000], ids=["while the model is written", "right before the end"])
def test_disk_that_fills_up_meanwhile(tiny_checkpoint: Path, tmp_path: Path, limit: int) -> None:
    """A file size limit makes the operating system refuse writes as a full disk does."""
    command = [sys.executable, "-m", "edge", "export", str(tiny_checkpoint), str(tmp_path / "out"), "--recipe", "fp32"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        check=False,
    )
    assert done.returncode == 1, done.stderr
    begun, ended = done.stderr.splitlines()
    assert " of disk (" in begun
    assert "disk is full" in ended
    kept = [path.name for path in tmp_path.iterdir()]
    assert kept == ([".out.partial"] if "is kept in" in done.stderr else [])
    assert bool(kept) == (limit > 60_000)  # which holds no stage


def test_interrupted_export(demo_gguf: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edge", "export", str(demo_gguf), str(tmp_path / "out")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    *told, last = stderr.strip().splitlines()
    assert last == "edge: interrupted"
    assert "Traceback" not in stderr
    kept = [path.name for path in tmp_path.iterdir()]
    assert kept == ([".out.partial"] if any("the same command resumes" in line for line in told) else [])


def test_checkpoint_without_tokenizer(tiny_checkpoint: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    (copy / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match=r"tokenizer\.json and tokenizer\.model are both missing"):
        export(copy, tmp_path / "out", "int8-asym")
    assert list(tmp_path.iterdir()) == [copy]


def test_rope_theta_override_changes_the_function(tiny_checkpoint: Path, tmp_path: Path) -> None:
    plain = export(tiny_checkpoint, tmp_path / "a", "fp32")
    other = export(tiny_checkpoint, tmp_path / "b", "fp32", rope_theta=5e6)
    assert (plain.spec.rope_theta, other.spec.rope_theta) == (1e4, 5e6)
    a, b = (np.load(tmp_path / name / bundle.GOLDEN)["logits"] for name in "ab")
    assert np.abs(a - b).max() > 1e-3


def test_rotary_dim_override(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The bundle computes what a checkpoint computes that says so itself, and records the decision."""
    copy = Path(shutil.copytree(tiny_checkpoint, tmp_path / "whole"))
    config = json.loads((copy / "config.json").read_text())
    config["rope_parameters"]["partial_rotary_factor"] = 1.0
    (copy / "config.json").write_text(json.dumps(config))
    half = export(copy, tmp_path / "a", "fp32", rotary_dim=8)
    assert half.spec.rotary_dim == 8
    assert half.decisions == ("rotary_dim 8; the checkpoint says 16",)
    export(tiny_checkpoint, tmp_path / "b", "fp32")
    export(copy, tmp_path / "c", "fp32")
    a, b, c = (np.load(tmp_path / name / bundle.GOLDEN)["logits"] for name in "abc")
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 1e-3
    for wrong in (7, 18, 10_000):
        with pytest.raises(SettingsError, match=f"rotary_dim is {wrong}, expected an even number of dims from 2 to 16"):
            export(copy, tmp_path / "d", "fp32", rotary_dim=wrong)
    for small in (0, -2, 1 << 20):
        with pytest.raises(SettingsError, match=f"rotary_dim is {small}, expected a whole number from 2 to"):
            export(copy, tmp_path / "d", "fp32", rotary_dim=small)
    assert not (tmp_path / "d").exists()


def test_ids_below_zero_are_none(tiny_checkpoint: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    for name in ("config.json", "generation_config.json"):
        config = json.loads((copy / name).read_text())
        (copy / name).write_text(json.dumps({**config, "pad_token_id": -1, "bos_token_id": -1}))
    manifest = export(copy, tmp_path / "out", "int8-asym", format="onnx")
    model = json.loads((tmp_path / "out" / bundle.GENAI_CONFIG).read_text())["model"]
    assert "bos_token_id" not in model
    assert model["pad_token_id"] == manifest.stop_token_ids[0]


def test_export_needs_neither_torch_nor_network(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """In a process of its own, where torch and transformers could be imported and no socket connects."""
    script = f"""
import socket, sys
def refuse(*args):
    print("tried to connect", args[1:])
    raise OSError("no network in this test")
socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = refuse
import edge
edge.export({str(tiny_checkpoint)!r}, {str(tmp_path / "out")!r}, recipe="int4-sym-g128")
assert not hasattr(sys.modules["nncf.telemetry.wrapper"], "Telemetry")
assert not {{"torch", "transformers"}} & set(sys.modules)
import torch
print("done")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "done"


def test_logging_of_the_program_stays_as_it_is(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """In a process of its own, where nncf is imported for the first time."""
    script = f"""
import logging, edge
handler, kind = logging.NullHandler(logging.DEBUG), logging.getLoggerClass()
logging.getLogger().addHandler(handler)
logging.getLogger("nncf").addHandler(handler)
edge.export({str(tiny_checkpoint)!r}, {str(tmp_path / "out")!r}, recipe="int4-sym-g128", format="onnx")
assert handler.level == logging.DEBUG
assert logging.getLoggerClass() is kind
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_openvino_format_needs_no_onnx(tiny_checkpoint: Path, tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['onnx'] = sys.modules['onnxruntime'] = None; import edge; "
        f"edge.export({str(tiny_checkpoint)!r}, {str(tmp_path / 'out')!r}, 'int8-asym', format='openvino')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_head_and_embedding_by_choice(tiny_checkpoint: Path, tmp_path: Path) -> None:
    manifest = export(
        tiny_checkpoint, tmp_path / "out", "int8-asym", embedding="int4-sym-channel", head="int4-asym-g64"
    )
    assert manifest.tensors["embed.weight"].precision == "int4-sym-channel"
    assert manifest.tensors["lm_head.weight"].precision == "int4-asym-g64"
    assert manifest.tensors["layers.0.mlp.down.weight"].precision == "int8-asym"
    verify(tmp_path / "out")


@pytest.mark.parametrize(
    ("precision", "message"),
    [
        ("int8-asym-g64", "one scale a row only"),
        ("int4-asym", "expected a group size"),
        ("int3-asym-g64", "is unknown"),
        ("int4-asym-g16", "32 weights or more"),
    ],
)
def test_precisions_that_there_are_not(precision: str, message: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        export(tiny_checkpoint, tmp_path / "out", head=precision)
    assert list(tmp_path.iterdir()) == []


def test_a_tied_head_has_one_precision(tmp_path: Path) -> None:
    tiny.make(tiny.TINIES[1], tmp_path / "checkpoint")
    with pytest.raises(RecipeError, match="one matrix for both"):
        export(tmp_path / "checkpoint", tmp_path / "out", embedding="int8-asym", head="int4-asym-g64")
    manifest = export(tmp_path / "checkpoint", tmp_path / "out", "int8-asym", head="int4-asym-g64")
    assert manifest.tensors["embed.weight"].precision == "int4-asym-g64"
    verify(tmp_path / "out")


def test_precision_names_read_back() -> None:
    for recipe in recipes().values():
        for precision in (recipe.linear, recipe.embedding, recipe.head):
            assert Precision.parse(str(precision)) == precision


@pytest.mark.parametrize("layout", ["glm", "chatglm"])
def test_adapter_is_merged_as_peft_merges_it(layout: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Logits of a bundle with the LoRA in it, against transformers with the model that peft merged."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import GlmForCausalLM

    torch.manual_seed(3)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"]
    base = GlmForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=12, target_modules=targets))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # which starts as zero
                parameter.normal_(0, 0.05)
    model.save_pretrained(tmp_path / "adapter")
    merged = model.merge_and_unload().eval()
    checkpoint = tiny_checkpoint
    if layout == "chatglm":  # an adapter of one layout on a checkpoint of the other
        checkpoint = tmp_path / "remote"
        tiny.to_remote_code(tiny_checkpoint, checkpoint)
    manifest = export(checkpoint, tmp_path / "out", "fp32", adapter=tmp_path / "adapter")
    plain = export(checkpoint, tmp_path / "plain", "fp32")
    assert (manifest.adapter, plain.adapter) == ("adapter", "")
    assert manifest.source_sha256 != plain.source_sha256
    ids = list(range(40))
    expected, float32_error = tiny.reference_logits(merged, ids)
    with np.load(tmp_path / "plain" / bundle.GOLDEN) as a, np.load(tmp_path / "out" / bundle.GOLDEN) as b:
        assert np.abs(a["logits"] - b["logits"]).max() > 1000 * float32_error
    llm = LLM(tmp_path / "out", EXACT["openvino"])
    sequence = CacheSequence(llm.engine.pool)
    ours = llm.engine.forward(np.array(ids), sequence, np.arange(len(ids)))
    assert np.abs(ours - expected).max() <= 8 * float32_error


def test_adapter_for_another_model(tiny_checkpoint: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    save_file(
        {f"{name}.lora_A.weight": np.ones((2, 48), np.float32), f"{name}.lora_B.weight": np.ones((128, 2), np.float32)},
        adapter / "adapter_model.safetensors",
    )
    with pytest.raises(CheckpointError, match=r"q_proj.*48"):
        export(tiny_checkpoint, tmp_path / "out", "int8-asym", adapter=adapter)
    assert list(tmp_path.iterdir()) == [adapter]
