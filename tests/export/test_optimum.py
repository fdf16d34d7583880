"""Bundles made through optimum-intel compute what transformers does; and our graphs what optimum-intel's do."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import openvino as ov
import openvino.opset13 as op
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import PreTrainedModel

from edge.cli import main
from edge.export.compress.recipes import DEFAULT, PLAIN, find_recipe, recipes
from edge.export.frontend_optimum.export import export_with_optimum
from edge.export.pipeline import export
from edge.export.stages import Progress
from edge.runtime.bundle import open_bundle
from edge.runtime.engines.openvino_rows import head_input, keep_wanted_rows
from edge.runtime.errors import CheckpointError, EdgeError, OutputError, RecipeError
from edge.runtime.extras import install_command
from edge.runtime.kv.pool import CacheSequence
from edge.runtime.llm import LLM
from edge.runtime.verify import verify
from tests.conftest import EXACT
from tests.export.test_reference import IDS, TIMES_FLOAT32, logits_in_chunks
from tests.tiny import SPECIAL, STOP_IDS, Tiny, make, reference_logits, write_tokenizer

pytestmark = pytest.mark.slow  # other programs, each of which compiles or exports the same models again

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("optimum.intel")

SHAPE: dict[str, object] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,  # has no groups of 64
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": list(STOP_IDS),
}
FOREIGN = ("Qwen2", "Llama", "Granite", "OPT")  # biases on q, k, v; none; scaled logits; learned positions, tied
NEW_TOKENS = 64


def make_foreign(name: str, folder: Path) -> PreTrainedModel:
    """A seeded tiny checkpoint, of architectures that we map and of others; returns its model."""
    import transformers

    torch.manual_seed(11)
    others: dict[str, dict[str, object]] = {
        "Granite": {"logits_scaling": 2.0, "tie_word_embeddings": False},
        "OPT": {"ffn_dim": 96, "word_embed_proj_dim": 64, "eos_token_id": 256, "pad_token_id": 256},
    }
    config = getattr(transformers, f"{name}Config")(**SHAPE | others.get(name, {}))
    model: PreTrainedModel = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            parameter.normal_(1.0 if parameter_name.endswith("norm.weight") else 0.0, 0.15)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return model


@pytest.fixture(autouse=True)
def no_conversion(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokenizer for openvino_genai takes 3 s of a core for each export; one test here has it made."""
    if request.function is not test_command:
        done = SimpleNamespace(finish=lambda: None)
        monkeypatch.setattr("edge.export.interop.openvino_tokenizer.start", lambda folder, eos: nullcontext(done))


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, PreTrainedModel]]:
    """Checkpoint folder and model of an architecture."""
    made = {}

    def get(name: str) -> tuple[Path, PreTrainedModel]:
        if name not in made:
            folder = tmp_path_factory.mktemp("foreign") / name
            made[name] = folder, make_foreign(name, folder)
        return made[name]

    return get


@pytest.mark.parametrize("name", FOREIGN)
def test_float_export_equals_transformers(
    name: str, foreign: Callable[[str], tuple[Path, PreTrainedModel]], tmp_path: Path
) -> None:
    folder, model = foreign(name)
    seen: list[Progress] = []
    manifest = export_with_optimum(folder, tmp_path / "bundle", "fp32", progress=seen.append)
    assert manifest.bits_per_weight == 32
    assert manifest.checks[0].error == 0
    assert seen[-1].done == seen[-1].total
    llm = LLM(tmp_path / "bundle", EXACT["openvino"])
    expected, float32_error = reference_logits(model, IDS)
    for chunks in ([70], [33, 1, 31, 5]):
        error = np.abs(logits_in_chunks(llm, IDS, chunks) - expected).max()
        assert error <= TIMES_FLOAT32 * float32_error, f"off by {error:.2e}, float32 itself by {float32_error:.2e}"


@pytest.mark.parametrize(("name", "recipe"), [("Qwen2", "int4-asym-g64"), ("Llama", "int8-sym")])
def test_compressed_bundle_verifies_and_generates(
    name: str, recipe: str, foreign: Callable[[str], tuple[Path, PreTrainedModel]], tmp_path: Path
) -> None:
    folder, _ = foreign(name)
    manifest = export_with_optimum(folder, tmp_path / "bundle", recipe)
    verify(tmp_path / "bundle")
    llm = LLM(tmp_path / "bundle", EXACT["openvino"])
    answer = llm.chat([{"role": "user", "content": "Hello"}], max_new_tokens=8, ignore_stop_ids=True)
    assert sum(len(chunk.token_ids) for chunk in answer) == 8

    # One row is that row of all, so the decompressed head takes the wanted rows and nothing else.
    rows = logits_in_chunks(llm, IDS, [70])
    sequence = CacheSequence(llm.engine.pool)
    some = llm.engine.forward(np.array(IDS, np.int64), sequence, np.array([69, 3], np.int64))
    np.testing.assert_allclose(some, rows[[69, 3]], atol=1e-5 * np.abs(rows).max())

    assert manifest.stop_token_ids == STOP_IDS
    assert manifest.warnings == ()
    records = {key.removeprefix("self.model.").removeprefix("self."): t for key, t in manifest.tensors.items()}
    assert len(records) == 2 * 7 + 2
    down, up = records["layers.1.mlp.down_proj.weight"], records["layers.1.mlp.up_proj.weight"]
    embedding = records["embed_tokens.weight"]
    assert down.shape == (64, 96)
    if recipe == "int8-sym":
        assert {t.precision for t in records.values()} == {"int8-sym"}
        assert up.nbytes == 96 * 64 + 2 * 96  # a float16 scale for each row
        assert manifest.weight_group_size == 0
    else:
        assert (up.precision, up.note) == ("int4-asym-g64", "")
        assert up.nbytes == 96 * 64 // 2 + 2 * 96 + 96 // 2  # and a zero point of 4 bits
        assert (down.precision, down.note) == ("int4-asym-g32", "width 96 has no groups of 64")
        assert embedding.precision == records["lm_head.weight"].precision == "int8-asym"
        assert manifest.weight_group_size == 32
    weights = sum(t.shape[0] * t.shape[1] for t in records.values())
    assert manifest.bits_per_weight == pytest.approx(8 * sum(t.nbytes for t in records.values()) / weights, abs=1e-4)


def test_bundle_says_what_the_checkpoint_is(
    foreign: Callable[[str], tuple[Path, PreTrainedModel]], tmp_path: Path
) -> None:
    folder, _ = foreign("Qwen2")
    loggers = [logging.getLogger(name) for name in ("optimum", "transformers")]
    before = [(x.level, x.propagate, list(x.handlers)) for x in loggers], list(warnings.filters)
    manifest = export_with_optimum(folder, tmp_path / "bundle", "fp16")
    assert ([(x.level, x.propagate, list(x.handlers)) for x in loggers], list(warnings.filters)) == before
    spec = manifest.spec
    assert (spec.architecture, spec.num_layers, spec.hidden_size, spec.head_dim) == ("qwen2", 2, 64, 16)
    assert (spec.num_heads, spec.num_kv_heads, spec.rotary_dim, spec.rope_theta) == (4, 2, 16, 10_000)
    assert (spec.qkv_bias, spec.tied_embeddings) == (True, False)
    assert manifest.bits_per_weight == 16
    assert {t.precision for t in manifest.tensors.values()} == {"fp16"}
    assert {"optimum-intel", "optimum", "transformers", "torch", "nncf"} <= manifest.versions.keys()
    config = json.loads((tmp_path / "bundle" / "config.json").read_text())
    assert config == json.loads((folder / "config.json").read_text())
    assert not any(path.is_dir() for path in (tmp_path / "bundle").iterdir())
    assert verify(tmp_path / "bundle")[0].kld_exact == pytest.approx(manifest.golden_kld, rel=1e-2)


def test_what_config_does_not_say_is_zero(
    foreign: Callable[[str], tuple[Path, PreTrainedModel]], tmp_path: Path
) -> None:
    spec = export_with_optimum(foreign("OPT")[0], tmp_path / "bundle", "int8-asym").spec
    assert (spec.rotary_dim, spec.rope_theta, spec.rms_norm_eps) == (0, 0, 0)
    assert spec.tied_embeddings  # the graph says so
    note = "look-up tables other than the embedding stay float"
    positions = open_bundle(tmp_path / "bundle").manifest.tensors["self.model.decoder.embed_positions.weight"]
    assert (positions.precision, positions.note) == ("fp32", note)


@pytest.mark.parametrize("architecture", ["glm", "glm4"])
def test_our_graph_equals_that_of_optimum(architecture: str, tmp_path: Path) -> None:
    """The same checkpoint through both frontends, and our bundle in optimum-intel's own runtime."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from optimum.intel import OVModelForCausalLM

    # Only our runtime keeps from choosing rows that no token uses; without such rows the answers can be compared.
    model = make(Tiny("both", architecture=architecture, vocab_size=256 + len(SPECIAL)), tmp_path / "checkpoint")
    export(tmp_path / "checkpoint", tmp_path / "ours", "fp32")
    export_with_optimum(tmp_path / "checkpoint", tmp_path / "theirs", "fp32")
    _, float32_error = reference_logits(model, IDS)
    ours, theirs = (LLM(tmp_path / name, EXACT["openvino"]) for name in ("ours", "theirs"))
    error = np.abs(logits_in_chunks(ours, IDS, [70]) - logits_in_chunks(theirs, IDS, [70])).max()
    assert error <= TIMES_FLOAT32 * float32_error

    exact = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = OVModelForCausalLM.from_pretrained(tmp_path / "ours", device="CPU", ov_config=exact)
        assert peer.config.model_type == architecture
        tokens = torch.tensor([IDS])
        expected = peer.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS,
            do_sample=False, eos_token_id=None, pad_token_id=0,
        )[0, len(IDS) :].tolist()  # fmt: skip
    chunks = ours.generate(IDS, max_new_tokens=NEW_TOKENS, ignore_stop_ids=True)
    assert [i for chunk in chunks for i in chunk.token_ids] == expected


def graph(kind: str) -> ov.Model:
    """Hidden states of tokens (T, 1, 8), from ids, and a vocabulary projection to (T, 1, 6) that ends in some way."""
    rng = np.random.default_rng(0)
    ids = op.parameter(ov.PartialShape([-1]), ov.Type.i64, name="input_ids")
    ids.output(0).set_names({"input_ids"})
    table = op.constant(rng.normal(size=(10, 8)).astype(np.float32))
    hidden = op.gather(table, op.unsqueeze(ids, op.constant(1)), op.constant(0))
    weight = rng.integers(-8, 8, (6, 8))
    head = op.constant(weight.astype(np.float32))
    if kind == "decompressed":
        stored = op.convert(op.constant((weight + 8).astype(np.uint8)), ov.Type.f16)
        centred = op.subtract(stored, op.convert(op.constant(np.full((6, 1), 8, np.uint8)), ov.Type.f16))
        head = op.convert(op.multiply(centred, op.constant(np.ones((6, 1), np.float16))), ov.Type.f32)
    logits = op.matmul(hidden, head, False, True)
    logits.set_friendly_name("head")
    if kind == "bias first":
        logits = op.add(op.constant(np.ones((1, 1, 6), np.float32)), logits)
    if kind == "soft cap":
        logits = op.multiply(op.tanh(op.convert(logits, ov.Type.f32)), op.constant(np.float32(30)))
    if kind == "computed shape":
        shape = op.concat([op.shape_of(ids), op.constant(np.array([1, 6]))], 0)
        logits = op.reshape(logits, shape, False)
    if kind == "tokens second":
        logits = op.reshape(logits, op.constant(np.array([1, -1, 6])), False)
        logits = op.add(logits, op.convert(op.reshape(ids, op.constant(np.array([1, -1, 1])), False), ov.Type.f32))
    logits.output(0).set_names({"logits"})
    return ov.Model([op.result(logits)], [ids], kind)


@pytest.mark.parametrize(
    ("kind", "reader"),
    {
        "plain": "head",
        "decompressed": "head",
        "bias first": "head",
        "soft cap": "head",
        "computed shape": "Result",
        "tokens second": "Result",
    }.items(),
)
def test_only_wanted_rows_reach_the_head(kind: str, reader: str) -> None:
    """Where the head can be told, it computes the wanted rows alone; where it cannot, they are picked from its rows."""
    model = graph(kind)
    node = head_input(model).get_node()
    assert reader in (node.get_friendly_name(), node.get_type_name())
    ids, rows = np.array([3, 1, 4, 1, 5]), np.array([4, 0, 2])
    core = ov.Core()
    everything = core.compile_model(graph(kind), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(ids)[0]
    model = graph(kind)
    keep_wanted_rows(model)
    some = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([ids, rows])[0]
    np.testing.assert_allclose(some.reshape(3, 6), everything.reshape(5, 6)[rows], rtol=1e-6)


def change_config(folder: Path, out: Path, **values: object) -> Path:
    """The same checkpoint with another config."""
    out.mkdir()
    for path in folder.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text()) | values
    (out / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value != "gone"}))
    return out


REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "unknown to transformers": ({"model_type": "frobnicate"}, "model type `frobnicate` but Transformers does not"),
    "unknown to optimum-intel": ({"model_type": "rwkv"}, "rwkv model, that is a custom or unsupported architecture"),
    "remote code": ({"model_type": "x", "auto_map": {"AutoConfig": "c.C"}}, "optimum-intel cannot export it"),
    "no heads": ({"num_attention_heads": "gone"}, "num_attention_heads or n_head or n_heads is missing"),
    "no context": ({"max_position_embeddings": "gone"}, "max_position_embeddings or n_positions"),
}


@pytest.mark.parametrize("what", REFUSED, ids=str)
def test_refused_configs_leave_nothing(
    what: str, foreign: Callable[[str], tuple[Path, PreTrainedModel]], tmp_path: Path
) -> None:
    values, message = REFUSED[what]
    folder = change_config(foreign("Qwen2")[0], tmp_path / "checkpoint", **values)
    with pytest.raises(CheckpointError, match=message) as refused:
        export_with_optimum(folder, tmp_path / "bundle", "fp32")
    assert "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_pickles_are_refused(foreign: Callable[[str], tuple[Path, PreTrainedModel]], tmp_path: Path) -> None:
    """Alone, and where transformers would take them because the safetensors file has another name."""
    folder = change_config(foreign("Qwen2")[0], tmp_path / "checkpoint")
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"optimum-intel cannot export it.*model\.safetensors"):
        export_with_optimum(folder, tmp_path / "bundle", "fp32")
    (folder / "weights.safetensors").unlink()
    with pytest.raises(CheckpointError, match="pickled"):
        export_with_optimum(folder, tmp_path / "bundle", "fp32")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_sources_and_outputs_that_are_refused(
    foreign: Callable[[str], tuple[Path, PreTrainedModel]], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="no such path"):
        export_with_optimum(tmp_path / "missing", tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "thesis.md").touch()
    with pytest.raises(OutputError, match=r"holds 'thesis.md' and is not a bundle"):
        export_with_optimum(foreign("Qwen2")[0], tmp_path / "bundle")
    with pytest.raises(EdgeError, match="recipe 'int3'"):
        export_with_optimum(foreign("Qwen2")[0], tmp_path / "other", "int3")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_weights_that_do_not_compute_leave_nothing(
    foreign: Callable[[str], tuple[Path, PreTrainedModel]], tmp_path: Path
) -> None:
    folder = change_config(foreign("Llama")[0], tmp_path / "checkpoint")
    tensors = load_file(folder / "model.safetensors")
    large = tensors | {"model.layers.0.mlp.up_proj.weight": tensors["model.layers.0.mlp.up_proj.weight"] * 1e6}
    save_file(large, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(EdgeError, match="beyond float16"):
        export_with_optimum(folder, tmp_path / "bundle", "fp16")
    tensors["model.norm.weight"][3] = np.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(EdgeError, match="the float model gives NaN"):
        export_with_optimum(folder, tmp_path / "bundle", "fp32")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_command(
    foreign: Callable[[str], tuple[Path, PreTrainedModel]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = str(foreign("Llama")[0]), str(tmp_path / "bundle")
    for option in (["--adapter", "x"], ["--rope-theta", "1e6"], ["--embedding", "int8-sym"], ["--head", "int8-sym"]):
        assert main(["export", folder, out, "--frontend", "optimum", *option]) == 2
        said = capsys.readouterr().err
        assert option[0] in said
        assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    assert main(["export", folder, out, "--frontend", "optimum", "--recipe", "int8-asym"]) == 0
    done = capsys.readouterr()
    assert done.err == ""
    assert "rounding explains" not in done.out
    assert (tmp_path / "bundle" / "openvino_tokenizer.xml").is_file()


@pytest.mark.parametrize("module", ["optimum", "transformers", "torch"])
def test_missing_extra_gives_the_install_line(
    module: str, foreign: Callable[[str], tuple[Path, PreTrainedModel]], tmp_path: Path
) -> None:
    arguments = ["export", str(foreign("Llama")[0]), str(tmp_path / "out"), "--frontend", "optimum"]
    script = f"import sys; sys.modules[{module!r}] = None; from edge.cli import main; sys.exit(main({arguments!r}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"edge: {module} is not installed; {install_command('optimum')}\n"
    assert list(tmp_path.iterdir()) == []


def test_rounding_is_all_that_a_traced_graph_can_get(tmp_path: Path) -> None:
    """Said before anything is read, or optimum-intel asked for."""
    more = [r for r in recipes().values() if r.awq != "off" or r.rotate or r.calibrated]
    assert find_recipe(DEFAULT) in more
    assert find_recipe(PLAIN) not in more
    for recipe in more:
        with pytest.raises(RecipeError, match=rf"recipe {recipe.name} does more than rounding.*int4-asym-g128, "):
            export_with_optimum(tmp_path / "missing", tmp_path / "bundle", recipe.name)
