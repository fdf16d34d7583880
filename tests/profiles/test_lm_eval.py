"""A bundle in lm-evaluation-harness: against torch's log-softmax of single runs, and in tasks from local files."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from edge.runtime.errors import ContextLengthError, PromptError, SettingsError
from edge.runtime.kv.pool import CacheSequence
from edge.runtime.llm import LLM
from tests.conftest import EXACT

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed")

from lm_eval.api.instance import Instance  # noqa: E402

from edge.profiles import lm_eval as lm_eval_module  # noqa: E402
from edge.profiles.likelihood import Query  # noqa: E402
from edge.profiles.lm_eval import EdgeLM  # noqa: E402

FRANCE = "Question: What is the capital of France?\nAnswer:"
PAIRS = [
    *((FRANCE, f" {city}") for city in ("Paris", "London", "Rome", "a village in the Alps", "P")),
    ("", "Once upon a time"),
    ("Once ", "upon a time"),  # the blank goes to the continuation
    ("zwei Äpfel, 三个", "苹果"),
]
TEXT = "The quick brown fox jumps over the lazy dog. " * 12
EOT = 256  # of the tiny tokenizer


def asked(kind: str, *arguments: Any) -> Instance:
    return Instance(kind, {}, arguments, 0)


@pytest.fixture(scope="module")
def lm(tiny_bundle: Path, engine: str) -> EdgeLM:
    return EdgeLM(LLM(tiny_bundle, replace(EXACT[engine], reproducible=engine == "onnx")))


def logprobs(lm: EdgeLM, ids: list[int]) -> torch.Tensor:
    """(T, vocab) of one run over all ids."""
    engine = lm.llm.engine
    sequence = CacheSequence(engine.pool)
    rows = engine.forward(np.array(ids), sequence, np.arange(len(ids))).copy()
    sequence.free()
    return torch.log_softmax(torch.tensor(rows[:, : lm.llm.tokenizer.num_tokens]).double(), -1)


def plain(lm: EdgeLM, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """The sum of a log-softmax, and whether all of them are the best."""
    found = logprobs(lm, context + continuation)[len(context) - 1 : -1]
    wanted = torch.tensor(continuation)
    total: float = found.gather(1, wanted[:, None]).sum().item()
    return total, bool((found.argmax(-1) == wanted).all())


def near(answer: tuple[float, bool]) -> tuple[object, bool]:
    """A value that a sum in another order equals."""
    return pytest.approx(answer[0], rel=1e-12), answer[1]


def test_loglikelihood_is_the_sum_of_a_log_softmax(lm: EdgeLM) -> None:
    found = lm.loglikelihood([asked("loglikelihood", *pair) for pair in PAIRS], disable_tqdm=True)
    for (context, continuation), answer in zip(PAIRS, found, strict=True):
        whole = lm.tok_encode(context + continuation)
        known = lm.tok_encode(context.rstrip()) or [EOT]
        rest = whole[len(lm.tok_encode(context.rstrip())) :]
        assert answer == near(plain(lm, known, rest))


def test_order_company_and_batch_size_do_not_matter(lm: EdgeLM) -> None:
    requests = [asked("loglikelihood", *pair) for pair in PAIRS]
    whole = lm.loglikelihood(requests, disable_tqdm=True)
    assert lm.loglikelihood(requests[::-1], disable_tqdm=True) == whole[::-1]
    alone = EdgeLM(lm.llm, batch_size=1)
    assert alone.loglikelihood(requests, disable_tqdm=True) == whole
    assert [alone.loglikelihood([request], disable_tqdm=True)[0] for request in requests] == whole


def test_greedy_flag_is_that_of_greedy_text(lm: EdgeLM) -> None:
    best = lm.llm.generate(FRANCE, max_new_tokens=5, ignore_stop_ids=True).answer().token_ids
    worse = (*best[:4], best[4] ^ 1)
    known = lm.tok_encode(FRANCE)
    found = lm._loglikelihood_tokens([(None, known, list(best)), (None, known, list(worse))], disable_tqdm=True)
    assert [flag for _, flag in found] == [True, False]


@pytest.mark.parametrize("max_length", [8, 37, 256])
def test_rolling_windows(lm: EdgeLM, max_length: int) -> None:
    """Windows as the harness describes them: full, the last one with all the context that fits, each token once."""
    short = EdgeLM(lm.llm, max_length=max_length)
    texts = [TEXT[:200], TEXT[:1], "", TEXT[5:90]]
    found = short.loglikelihood_rolling([asked("loglikelihood_rolling", text) for text in texts], disable_tqdm=True)
    for text, total in zip(texts, found, strict=True):
        ids = lm.tok_encode(text)
        expected = 0.0
        for start, end in pairwise([*range(0, len(ids), max_length), len(ids)]):
            seen = [EOT, *ids][max(end - max_length, 0) : end]
            rows = logprobs(lm, [*seen, 0])[-(end - start) - 1 : -1]  # the row of a token does not know the next one
            expected += rows.gather(1, torch.tensor(ids[start:end])[:, None]).sum().item()
        assert total == pytest.approx(expected, rel=1e-12)


def test_long_contexts_are_cut_from_the_left(lm: EdgeLM, caplog: pytest.LogCaptureFixture) -> None:
    short = EdgeLM(lm.llm, max_length=30)
    with caplog.at_level(logging.WARNING):
        found = short.loglikelihood(
            [asked("loglikelihood", TEXT, " end"), asked("loglikelihood", "a", "b")], disable_tqdm=True
        )
        ids = lm.tok_encode(TEXT.rstrip() + "  end")  # both blanks belong to the continuation
        assert found[0] == near(plain(lm, ids[-31:-5], ids[-5:]))
        text = short.generate_until([asked("generate_until", TEXT, {"max_gen_toks": 10})], disable_tqdm=True)
        assert text == [lm.llm.generate(lm.tok_encode(TEXT)[-20:], max_new_tokens=10).text()]
    assert [record.message.split(" are")[0] for record in caplog.records] == [
        "1 of 2 requests",
        "1 of 1 requests",
    ]


def test_generate_until(lm: EdgeLM) -> None:
    whole = {text: lm.llm.generate(text, max_new_tokens=24).text() for text in (FRANCE, TEXT[:50], "abc")}
    stop = whole[FRANCE][3:5]
    requests = [asked("generate_until", text, {"until": [stop, ""], "max_gen_toks": 24}) for text in whole]
    requests.append(asked("generate_until", FRANCE, {"until": "", "max_new_tokens": 2, "do_sample": False}))
    found = lm.generate_until(requests, disable_tqdm=True)
    assert found[:3] == [text.split(stop)[0] for text in whole.values()]
    assert whole[FRANCE].startswith(found[3])
    assert EdgeLM(lm.llm, batch_size=1).generate_until(requests, disable_tqdm=True) == found


def test_sampling_and_what_the_sampler_lacks(lm: EdgeLM) -> None:
    sampled = {"do_sample": True, "seed": 3, "top_k": 40, "max_gen_toks": 12, "until": []}
    found = lm.generate_until([asked("generate_until", FRANCE, sampled)] * 2, disable_tqdm=True)
    assert found == [lm.llm.generate(FRANCE, temperature=1.0, seed=3, top_k=40, max_new_tokens=12).text()] * 2
    with pytest.raises(SettingsError, match="unknown setting 'num_beams'"):
        lm.generate_until([asked("generate_until", FRANCE, {"num_beams": 4, "max_gen_toks": 4})], disable_tqdm=True)
    with pytest.raises(SettingsError, match="max_gen_toks is 256 and the context holds 256"):
        lm.generate_until([asked("generate_until", FRANCE, {})], disable_tqdm=True)


def test_chat_template(lm: EdgeLM) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    assert lm.apply_chat_template(messages) == lm.llm.render(messages)
    begun = [*messages, {"role": "assistant", "content": "The answer is"}]
    assert lm.apply_chat_template(begun, add_generation_prompt=False).endswith("The answer is")
    assert lm.chat_template(True) == lm.llm.bundle.text("chat_template.jinja")
    assert lm.chat_template(False) is None
    assert lm.tokenizer_name == EdgeLM(lm.llm).tokenizer_name


def test_what_the_tokenizer_adds(shared: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GLM-4's puts [gMASK]<sop> before every text; ours never does, so the harness's model has to."""
    from edge.runtime.tokenizer import Tokenizer

    path = shared / "glm4-tokenizer" / "tokenizer.json"
    glm, start = Tokenizer(path), [151331, 151333]

    class Named:
        def file(self, _name: str) -> Path:
            return path

    assert lm_eval_module._added_ids(Named()) == start  # type: ignore[arg-type]  # all of a bundle that is asked for
    model = EdgeLM(tiny_bundle, engine="onnx")
    monkeypatch.setattr(model, "_added", start)
    monkeypatch.setattr(model, "_prefix", start)
    monkeypatch.setattr(model, "llm", type("Loaded", (), {"tokenizer": glm})())
    assert model.tok_encode("Hello") == [*start, *glm.encode("Hello")]
    assert model.tok_encode("[gMASK]<sop>Hello") == [*start, *glm.encode("Hello")]
    assert model._encode_pair("Hello", " world") == ([*start, *glm.encode("Hello")], glm.encode(" world"))
    seen: list[Query] = []

    def note(queries: list[Query], *_: object) -> list[tuple[float, bool]]:
        seen.extend(queries)
        return [(0.0, False)] * len(queries)

    monkeypatch.setattr(model, "_score", note)
    model.loglikelihood([asked("loglikelihood", "", "Hello")], disable_tqdm=True)
    model.loglikelihood_rolling([asked("loglikelihood_rolling", "Hello world")], disable_tqdm=True)
    assert [list(query.context) for query in seen] == [start, start]


def test_settings(tiny_bundle: Path) -> None:
    lm = EdgeLM.create_from_arg_string(
        f"bundle={tiny_bundle},engine=onnx,max_context=64,kv_precision=f16",
        {"batch_size": "auto:4", "device": "cuda:0"},
    )
    assert (lm.llm.engine.info.name, lm.max_length, lm.batch_size) == ("onnx", 64, 16)
    assert lm.get_model_info()["engine: kv precision"] == "f16"
    assert lm.get_model_info()["recipe"] == "int8-asym"
    with pytest.raises(SettingsError, match="unknown setting 'engin'"):
        EdgeLM(tiny_bundle, engin="onnx")
    with pytest.raises(SettingsError, match="batch_size is 'many'"):
        EdgeLM(lm.llm, batch_size="many")
    with pytest.raises(SettingsError, match="max_batch_size is 'none', expected a number above 0"):
        EdgeLM(lm.llm, batch_size="auto", max_batch_size="none")
    with pytest.raises(SettingsError) as long:
        EdgeLM(lm.llm, batch_size="many" * 1000)
    assert len(str(long.value)) < 200
    with pytest.raises(PromptError) as quoted:
        lm.loglikelihood([asked("loglikelihood", "a" * 1000, "")], disable_tqdm=True)
    assert len(str(quoted.value)) < 200
    with pytest.raises(SettingsError, match="max_length is 65, expected 2 to 64"):
        EdgeLM(lm.llm, max_length=65)
    with pytest.raises(SettingsError, match="engine is set when a model is loaded"):
        EdgeLM(lm.llm, engine="onnx")
    with pytest.raises(PromptError, match="no tokens of its own"):
        lm.loglikelihood([asked("loglikelihood", "a", "")], disable_tqdm=True)
    with pytest.raises(ContextLengthError, match="has 65 tokens and the context holds 64"):
        lm.loglikelihood([asked("loglikelihood", "a", "b" * 65)], disable_tqdm=True)


DOCUMENTS: dict[str, list[dict[str, Any]]] = {
    "choice": [
        {"question": f"What is the capital of {country}?", "choices": ["Paris", "Rome", "Oslo"], "answer": index}
        for index, country in enumerate(("France", "Italy", "Norway"))
    ],
    "rolling": [{"text": TEXT[:150]}, {"text": "Zwei Äpfel, 三个苹果"}],
    "until": [{"question": "Say A", "answer": "A"}, {"question": "Say B", "answer": "B"}],
}
TASKS: dict[str, dict[str, Any]] = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "num_fewshot": 1,
        "fewshot_split": "test",
        "metric_list": [{"metric": "acc"}],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
    "until": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6},
        "metric_list": [{"metric": "exact_match"}],
    },
}


def write_tasks(folder: Path) -> None:
    for name, task in TASKS.items():
        data = folder / f"{name}.jsonl"
        data.write_text("\n".join(map(json.dumps, DOCUMENTS[name])))
        source = {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")}
        whole = {"task": f"edge_{name}", "dataset_path": "json", "dataset_kwargs": source, "test_split": "test", **task}
        (folder / f"edge_{name}.yaml").write_text(yaml.safe_dump(whole))


def test_real_tasks(lm: EdgeLM, tmp_path: Path, engine: str) -> None:
    """Tasks from local files, run by the harness itself, without a network."""
    from lm_eval.tasks import TaskManager

    write_tasks(tmp_path)
    done = lm_eval.simple_evaluate(
        model=lm,
        tasks=[f"edge_{name}" for name in TASKS],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        apply_chat_template=engine == "onnx",
        bootstrap_iters=0,
        log_samples=True,
    )
    assert done["config"]["recipe"] == "int8-asym"
    correct = 0
    for sample in done["samples"]["edge_choice"]:
        found = [plain(lm, *lm._encode_pair(*pair))[0] for pair in sample["arguments"]]
        assert [float(answer[0][0]) for answer in sample["resps"]] == pytest.approx(found, rel=1e-12)
        correct += int(np.argmax(found)) == sample["doc"]["answer"]
    assert done["results"]["edge_choice"]["acc,none"] == pytest.approx(correct / 3)
    bits = size = 0.0
    for document in DOCUMENTS["rolling"]:
        bits -= plain(lm, [EOT], lm.tok_encode(document["text"]))[0] / np.log(2)
        size += len(document["text"].encode())
    assert done["results"]["edge_rolling"]["bits_per_byte,none"] == pytest.approx(bits / size, rel=1e-12)
    for sample in done["samples"]["edge_until"]:
        [[prompt, _]] = sample["arguments"]
        assert ("<|assistant|>" in prompt) == (engine == "onnx")
        assert sample["resps"] == [[lm.llm.generate(prompt, max_new_tokens=6, stop=["\n"]).text()]]


def test_command_line(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tasks(tmp_path)
    command = ["--model", "edge", "--model_args", f"bundle={tiny_bundle},engine=onnx", "--tasks", "edge_choice"]
    command += ["--include_path", str(tmp_path), "--output_path", str(tmp_path / "out")]
    script = (  # python -m edge.profiles.lm_eval, without reading the 14,000 tasks that come with the harness
        "import functools, runpy, lm_eval.tasks as tasks\n"
        "tasks.TaskManager = functools.partial(tasks.TaskManager, include_defaults=False)\n"
        "runpy.run_module('edge.profiles.lm_eval', run_name='__main__', alter_sys=True)"
    )
    done = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "|edge_choice|" in done.stdout
    [report] = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(report.read_text())["config"]["model"] == "edge"

    def fail() -> None:
        LLM(tmp_path / "nowhere")

    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", fail)
    assert lm_eval_module.main() == 1
    assert capsys.readouterr().err.startswith(f"edge: {tmp_path}/nowhere: no such path")
