"""lm-evaluation-harness over HTTP: `local-completions` against a live server scores what `edge.profiles.lm_eval` does.

About 60 s. Everything is local: tasks are files, and tokens come from the server's own endpoints.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from edge.runtime.llm import LLM
from edge.runtime.settings import EngineSettings
from tests.edge.server.live import Live, served

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed")

from lm_eval.tasks import TaskManager  # noqa: E402
from lm_eval.utils import RemoteTokenizer, check_remote_tokenizer_support  # noqa: E402

from edge.profiles.lm_eval import EdgeLM  # noqa: E402

pytestmark = pytest.mark.slow

Json = dict[str, Any]
WINDOW = 64  # tokens, so that a text takes several
CAPITALS = {"France": "Paris", "Italy": "Rome", "Norway": "Oslo", "Spain": "Madrid"}
DOCUMENTS: dict[str, list[Json]] = {
    "choice": [
        {"question": f"The capital of {land} is", "choices": list(CAPITALS.values()), "answer": index}
        for index, land in enumerate(CAPITALS)
    ],
    "rolling": [
        {"text": "The quick brown fox jumps over the lazy dog, which does not mind. " * 9},
        {"text": "Zwei Äpfel, 三个苹果 and 😀."},
    ],
    "until": [{"question": "One, two, three,", "answer": "four"}, {"question": "A, B, C,", "answer": "D"}],
}
TASKS: dict[str, Json] = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "num_fewshot": 1,
        "fewshot_split": "test",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "until": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    for name, task in TASKS.items():
        data = folder / f"{name}.jsonl"
        data.write_text("\n".join(map(json.dumps, DOCUMENTS[name])), encoding="utf-8")
        source = {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")}
        whole = {"task": f"edge_{name}", "dataset_path": "json", "dataset_kwargs": source, "test_split": "test", **task}
        (folder / f"edge_{name}.yaml").write_text(yaml.safe_dump(whole), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def llm(demo_bundle: Path) -> LLM:
    return LLM(demo_bundle, EngineSettings("openvino", max_context=512))


def evaluate(folder: Path, model: object, **arguments: Any) -> Json:
    found: Json = lm_eval.simple_evaluate(
        model=model,
        tasks=[f"edge_{name}" for name in TASKS],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
        **arguments,
    )
    return found


@pytest.fixture(scope="module")
def expected(tasks: Path, llm: LLM) -> Json:
    return evaluate(tasks, EdgeLM(llm, max_length=WINDOW))


@pytest.fixture(scope="module")
def live(expected: Json, llm: LLM) -> Any:  # Any: an iterator of it; after `expected`, which uses the engine itself
    assert expected
    with served(llm) as server:
        yield server


def by_document(done: Json, task: str) -> dict[int, list[Any]]:
    return {sample["doc_id"]: sample["resps"] for sample in done["samples"][task]}


def ties(llm: LLM, context: str, continuation: str) -> bool:
    """Whether the last token is one of two best ones: the harness calls both greedy, as it sees only their values."""
    last = llm.generate(context + continuation, max_new_tokens=0, prompt_logprobs=2).answer().prompt_logprobs[-1]
    assert last is not None
    return last.top[0][1] == last.top[1][1] == last.logprob


@pytest.mark.parametrize(
    "more",
    [{}, {"num_concurrent": 4, "batch_size": 3}, {"batch_size": 5}, {"tokenized_requests": False}],
    ids=["one by one", "batches side by side", "batches", "texts"],
)
def test_scores_are_those_of_the_profile(tasks: Path, expected: Json, live: Live, llm: LLM, more: Json) -> None:
    """With `auto`, the harness finds the server's tokenizer by itself; no other is asked for."""
    done = evaluate(
        tasks,
        "local-completions",
        model_args={
            "model": "model",
            "base_url": f"{live.url}/v1/completions",
            "tokenizer_backend": "remote" if more else "auto",
            "max_length": WINDOW + 2,  # the harness keeps one for the new token, and one for the context
            "custom_prefix_token_id": llm.bundle.manifest.stop_token_ids[0],  # what edge.profiles begins texts with
            "max_retries": 1,
            **more,
        },
    )
    for task in expected["results"]:
        for metric, value in expected["results"][task].items():
            if isinstance(value, float):
                assert done["results"][task][metric] == pytest.approx(value, abs=1e-3), (task, metric)
    choices = by_document(done, "edge_choice")
    assert len(choices) == len(CAPITALS)
    for sample in expected["samples"]["edge_choice"]:
        for pair, [(score, is_greedy)], [(right, was_greedy)] in zip(
            sample["arguments"], choices[sample["doc_id"]], sample["resps"], strict=True
        ):
            assert float(score) == pytest.approx(float(right), abs=1e-3)
            assert is_greedy == was_greedy or ties(llm, *pair)
    rolling, right_ones = by_document(done, "edge_rolling"), by_document(expected, "edge_rolling")
    for document, [[score]] in rolling.items():
        assert float(score) == pytest.approx(float(right_ones[document][0][0]), abs=1e-3)
    assert by_document(done, "edge_until") == by_document(expected, "edge_until")
    assert 0 < expected["results"]["edge_choice"]["acc,none"] <= 1


def test_the_remote_tokenizer(live: Live, llm: LLM) -> None:
    base = f"{live.url}/v1/completions"
    assert check_remote_tokenizer_support(base)
    remote = RemoteTokenizer(base)
    for text in ("Hello", "Zwei Äpfel, 三个苹果 😀", "<|im_start|>user\n", " "):
        ids = llm.tokenizer.encode(text)
        assert remote.encode(text) == ids
        assert remote.decode(ids) == text
    messages = [{"role": "user", "content": "Hello"}]
    assert remote.apply_chat_template(messages) == llm.render(messages)
    assert remote.eos_token_id in llm.stop_ids
    assert remote.bos_token == "<|im_start|>"
    assert remote.pad_token
