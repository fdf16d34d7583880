"""GLM from its published layout to its text: the real tokenizer and template, and weights that write a known answer.

The model's layers add nothing to the stream, so what comes after a token follows from that token alone: the row of the
output matrix for the next id of the answer is the embedding of the one before. A bundle that mixes up ids, rows, the
order of dims, the template or the stop ids writes something else.
"""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from edge import cli
from edge.export.pipeline import export
from edge.runtime.llm import LLM
from edge.runtime.settings import EngineSettings
from edge.runtime.tokenizer import Tokenizer
from tests import tiny

pytestmark = pytest.mark.slow

ANSWER = "你好👋！我是人工智能助手，很高兴见到你。café naïve"
GREETING = [{"role": "user", "content": "你好"}]
VOCABULARY, WIDTH = 151552, 64
ASSISTANT, USER, STOP_IDS = 151337, 151336, [151329, 151336, 151338]
SAMPLING = {"do_sample": True, "temperature": 0.8, "top_p": 0.8}  # as in glm-4-9b-chat's generation_config.json


@dataclass(frozen=True)
class Chained:
    """A bundle whose answer to everything is known."""

    bundle: Path
    ids: list[int]  # of the answer, without the stop id


@pytest.fixture(scope="module")
def chained(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Chained:
    """The layout of the remote code, as glm-4-9b-chat was published, in the default recipe."""
    folder = tmp_path_factory.mktemp("glm")
    tokenizer = Tokenizer.from_text((shared / "glm4-tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))
    ids = tokenizer.encode(f"\n{ANSWER}", parse_special=False)
    chain = [ASSISTANT, *ids, USER]
    assert len(set(chain)) == len(chain), "what comes next has to follow from one id"
    tiny.make(tiny.Tiny("chain", WIDTH, vocab_size=VOCABULARY, max_position_embeddings=512), folder / "hf")
    weights = load_file(folder / "hf" / "model.safetensors")
    signs = np.random.default_rng(4).choice(np.array([-1, 1], np.float32), (VOCABULARY, WIDTH))
    head = np.random.default_rng(5).normal(0, 0.05, (VOCABULARY, WIDTH)).astype(np.float32)
    head[chain[1:]] = signs[chain[:-1]]
    for name, tensor in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor.zero_()
        elif name == "model.norm.weight":
            tensor.fill_(1.0)
    weights |= {"model.embed_tokens.weight": torch.from_numpy(signs), "lm_head.weight": torch.from_numpy(head)}
    save_file(weights, folder / "hf" / "model.safetensors")
    checkpoint = folder / "checkpoint"
    tiny.to_remote_code(folder / "hf", checkpoint)
    (checkpoint / "tokenizer.json").unlink()
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(shared / "glm4-tokenizer" / name, checkpoint)
    shutil.copy(shared / "chat-templates" / "glm-4-9b-chat.jinja", checkpoint / "chat_template.jinja")
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "eos_token_id": STOP_IDS}))
    (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": STOP_IDS, **SAMPLING}))
    export(checkpoint, folder / "bundle")
    return Chained(folder / "bundle", ids)


def test_the_answer_is_the_known_one(
    chained: Chained, engine: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert cli.main(["run", str(chained.bundle), "你好", "--json", "--engine", engine]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["text"] == ANSWER
    assert answer["token_ids"][: len(chained.ids)] == chained.ids
    assert (answer["finish_reason"], answer["engine"]) == ("stop", engine)
    assert cli.main(["run", str(chained.bundle), "你好", "--engine", engine]) == 0
    assert capsys.readouterr().out == f"{ANSWER}\n"


def test_streams_tools_and_turns(chained: Chained, engine: str) -> None:
    """What stops it, characters whose bytes are several tokens, tools in a system message, results of calls."""
    with LLM(chained.bundle, EngineSettings(engine)) as llm:
        chunks = list(llm.chat(GREETING))
        assert "".join(chunk.text for chunk in chunks) == ANSWER
        assert not any("\ufffd" in chunk.text for chunk in chunks)
        assert max(map(len, (chunk.token_ids for chunk in chunks))) < len(chained.ids), "it came in pieces"
        last = chunks[-1].stopped_by
        assert last is not None
        assert last.token_id == USER
        assert [llm.recommended_sampling.temperature, llm.recommended_sampling.top_p] == [0.8, 0.8]
        assert llm.chat(GREETING, sampling="model", temperature=0.1, seed=1).text() == ANSWER
        tool = {"name": "get_weather", "description": "Weather of a city", "parameters": {}}
        calls: list[dict[str, Any]] = [
            {"role": "system", "content": "", "tools": [{"type": "function", "function": tool}]},
            *GREETING,
            {"role": "assistant", "metadata": "get_weather", "content": '{"city": "Ghent"}'},
            {"role": "observation", "content": "rain"},
        ]
        shown = llm.render(calls)
        assert shown.startswith("[gMASK]<sop><|system|>\n你是一个名为 ChatGLM 的人工智能助手。")
        assert "## get_weather" in shown
        assert shown.endswith('<|assistant|>get_weather\n{"city": "Ghent"}<|observation|>\nrain<|assistant|>')
        assert llm.chat(calls).text() == ANSWER


def test_a_conversation(
    chained: Chained, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The chat samples as the model's makers say; here one token has all the probability."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("你好\n再见\n/stats\n".encode())))
    assert cli.main(["chat", str(chained.bundle), "--verbose", "--seed", "1", "--temperature", "0.1"]) == 0
    shown = capsys.readouterr()
    assert shown.out.count(ANSWER) == 2
    assert shown.err.count("in the conversation") == 2
