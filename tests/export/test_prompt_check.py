"""Before anything is compressed, export finds a prompt that would not reach the model, and records what is doubtful."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge.export.checkpoint.fields import Fields
from edge.export.interop.prompt_check import PromptCheck, check_prompts, find_stop_ids, possible_ids
from edge.export.interop.sidecars import write_sidecars
from edge.export.pipeline import export
from edge.runtime.bundle import open_bundle
from edge.runtime.constraint import Constraint
from edge.runtime.errors import ConfigError, PromptError, TokenizerError
from edge.runtime.llm import LLM
from edge.runtime.spec import ModelSpec
from edge.runtime.tokenizer import Tokenizer
from tests.conftest import EXACT
from tests.export.test_prompt_files import DEFAULT, make_folder, tokenizer_json

SPEC = ModelSpec("glm", 1, 8, 8, 2, 1, 4, 2, 1e4, 1e-5, 320, 64, False, False, False)
GLM = ("<|endoftext|>", "<|user|>", "<|observation|>", "<|assistant|>", "<|system|>")
BODY = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"


def with_tokens(*tokens: str, **changes: Any) -> dict[str, Any]:
    """A tokenizer.json with these special tokens after its 256 bytes."""
    flags = {"special": True, **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)}
    added = [{"id": 256 + i, "content": token, **flags} for i, token in enumerate(tokens)]
    return tokenizer_json(added_tokens=added, **changes)


def check(
    folder: Path, template: str | None, tokens: tuple[str, ...] = GLM, rows: int = 320, **config: Any
) -> PromptCheck:
    """What is found for a model with these tokens and configuration; the usual stop ids where none are given."""
    files = {"config.json": {"model_type": "glm", "eos_token_id": [256, 257, 258], **config}}
    checkpoint = make_folder(folder, files, with_tokens(*tokens))
    checkpoint.write_tokenizer(folder / "written.json")
    num_ids = Tokenizer(folder / "written.json").num_tokens
    tokenizer = Tokenizer(folder / "written.json", rows)
    return check_prompts(checkpoint, replace(SPEC, vocab_size=rows), tokenizer, num_ids, template)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% unknown %}", "does not compile"),
        ("{{ 1 | unknown }}", "does not compile"),
        ("{% for m in messages %}{% endfor %}x", "leaves the user's message out"),
        ("{{ '{' }}hello", "leaves the user's message out"),
        ("{{ messages[0].content[:10] }}", "leaves the user's message out"),
        ("{% for m in messages[:2] %}{{ m.content }}{% endfor %}", "leaves the user's message out"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "leaves the user's message out"),
        ("{% if tools %}no{% else %}" + BODY + "{% endif %}", "leaves the user's message out of a prompt with tools"),
        ("{{ raise_exception('not today') }}", "fails at a plain message: not today"),
        ("{{ messages[0].nothing.at_all }}", "fails at a plain message"),
        ("{% include 'x' %}", "fails at a plain message"),
        ("{{ 'a' * 10 ** 10 }}", "fails at a plain message"),
        ("<|beyond|>" + BODY, "needs token 266"),
    ],
)
def test_templates_that_no_bundle_gets(template: str, message: str, tmp_path: Path) -> None:
    tokens = (*GLM, *(f"<|{i}|>" for i in range(5)), "<|beyond|>")
    with pytest.raises(TokenizerError, match=message):
        check(tmp_path, template, tokens, rows=266)


@pytest.mark.parametrize(
    ("template", "warnings"),
    [
        (None, []),
        (BODY, []),
        ("{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + BODY, []),
        (
            "{% if messages[0].role != 'system' %}{{ raise_exception('no') }}{% endif %}" + BODY,
            ["refuses what has no"] * 2,
        ),
        ("{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}", ["leaves system messages out"]),
        (
            "{% if messages[1:] and messages[0].role == 'user' %}{{ 1 // 0 }}{% endif %}" + BODY,
            ["several turns: integer"],
        ),
        ("{% if tools %}{{ 1 // 0 }}{% endif %}" + BODY, ["refuses tools: integer"]),
        ("<|im_start|>" + BODY, ["writes <|im_start|>, for which the tokenizer has no token"]),
        (DEFAULT, []),
    ],
)
def test_templates_that_are_doubted(template: str | None, warnings: list[str], tmp_path: Path) -> None:
    found = check(tmp_path, template).warnings
    if len(warnings) == 2:
        warnings = [warnings[0], "several turns: no"]
    assert len(found) == len(warnings)
    for said, expected in zip(found, warnings, strict=True):
        assert expected in said


@pytest.mark.parametrize(
    ("tokens", "given", "stop_ids", "doubts"),
    [
        (GLM, [256, 257, 258], (256, 257, 258), 0),
        (GLM, 256, (256, 257, 258), 1),
        (GLM, None, (256, 257, 258), 1),
        (GLM, [258, 256], (258, 256, 257), 1),
        (GLM, [0xFFFFFFFF, 256, 257, 258], (256, 257, 258), 1),
        (GLM, [-1, 151336, 256, 257, 258], (256, 257, 258), 1),
        (GLM, [256, 257, 258, 300], (256, 257, 258), 1),  # a row of the embedding that no token has
        (("</s>", "<s>"), 256, (256,), 0),
        (("</s>", "<s>"), None, (), 1),
        (("</s>", "<s>"), 258, (), 2),
        (("<|user|>", "<|assistant|>"), 256, (256,), 0),  # no GLM
    ],
)
def test_stop_ids(
    tokens: tuple[str, ...], given: object, stop_ids: tuple[int, ...], doubts: int, tmp_path: Path
) -> None:
    found = check(tmp_path, None, tokens, eos_token_id=given)
    assert found.stop_ids == stop_ids
    assert len(found.warnings) == doubts
    assert stop_ids or "no token ends an answer" in found.warnings[-1]


def test_stop_ids_by_the_name_of_a_token(tmp_path: Path) -> None:
    config = {"tokenizer_config.json": {"eos_token": "</s>"}}
    checkpoint = make_folder(tmp_path, config, with_tokens("<s>", "</s>"))
    stop_ids, doubts = find_stop_ids(checkpoint, Tokenizer(tmp_path / "tokenizer.json", 320))
    assert stop_ids == (257,)
    assert "the tokenizer's eos_token" in doubts[0]


def test_stop_ids_that_are_no_numbers(tmp_path: Path) -> None:
    for value in ("256", [256, None], [True], 2.5):
        with pytest.raises(ConfigError, match="expected token ids"):
            check(tmp_path, None, eos_token_id=value)


def test_more_tokens_than_rows(tmp_path: Path) -> None:
    many = (*GLM, *(f"<{i}>" for i in range(80)))
    (doubt,) = check(tmp_path, DEFAULT, many).warnings
    assert "ids up to 340 and the embedding 320 rows" in doubt
    with pytest.raises(TokenizerError, match="and the embedding has 200 rows"):
        check(tmp_path, DEFAULT, rows=200)


def test_fewer_tokens_than_rows(tmp_path: Path) -> None:
    (doubt,) = check(tmp_path, DEFAULT, rows=2000).warnings
    assert "2000 rows and the tokenizer 261 tokens" in doubt


def test_a_tokenizer_that_loses_text(tmp_path: Path) -> None:
    data = with_tokens(*GLM, model__vocab={"a": 0, "Ġ": 1})
    checkpoint = make_folder(tmp_path, {}, data)
    with pytest.raises(TokenizerError, match="the tokenizer makes ' a"):
        write_sidecars(checkpoint, SPEC, tmp_path, None)


def test_nothing_is_left_of_an_export_that_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for file in tiny_checkpoint.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.jinja").write_text("llama2")
    with pytest.raises(TokenizerError, match="the name of one that is built into"):
        export(folder, tmp_path / "out", format="onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_doubts_are_recorded_and_others_requests_work(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A tokenizer of 330 tokens over an embedding of 320 rows; a template with a tag for trainers."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for file in tiny_checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "tokenizer.json").write_text(json.dumps(with_tokens(*GLM, *(f"<|{i}|>" for i in range(261, 330)))))
    template = "{% for m in messages %}<|{{ m.role }}|>{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    export(folder, tmp_path / "out", format="onnx")
    assert "ids up to 329" in open_bundle(tmp_path / "out").manifest.warnings[0]
    with LLM(tmp_path / "out", EXACT["onnx"]) as llm:
        assert llm.render([{"role": "user", "content": "hi"}]) == "<|user|>hi"
        for prompt in ([10, 320], "<|329|>"):
            with pytest.raises(PromptError, match="expected 0 to 319"):
                llm.generate(prompt, max_new_tokens=3)
        assert llm.generate("<|319|>", max_new_tokens=3, repetition_penalty=1.2).answer().token_ids
        answer = llm.generate("hi", max_new_tokens=3, constraint=Constraint.regex("[a-z]{3}")).answer()
        assert len(answer.text) == 3


def test_ids_that_there_are_not_are_none() -> None:
    """Zero is one; -1 and what has no row are not."""
    for given, found in ((-1, ()), (0, (0,)), ([5, 320, -1], (5,)), (None, ()), ("5", ()), (True, ())):
        assert possible_ids(Fields({"pad_token_id": given}, "config.json"), "pad_token_id", 320) == found
