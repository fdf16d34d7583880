"""A chat template of one's own, in place of a model's: checked once, the same way for every verb and for Python."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import edge
from edge.cli import main
from edge.runtime import bundle as bundles
from edge.runtime.manifest import Manifest
from edge.runtime.template_file import open_chosen
from edge.runtime.tokenizer import Tokenizer

LOUD = "{% for m in messages %}[{{ m.role }}] {{ m.content }}!\n{% endfor %}{{ bos_token or '' }}[assistant]"
QUESTION = [{"role": "user", "content": "hi"}]
REFUSED = {
    "{% for m in": "the chat template does not compile: unexpected 'end of template'",
    "hello": "it does not write the text of a message",
    "{{ raise_exception('not like this') }}": "the chat template refused the messages: not like this",
    "{% for i in range(10**9) %}{% endfor %}": "the chat template refused the messages: ",
    b"caf\xe9 {{ messages }}": "is not UTF-8 at byte 3",
}


@pytest.fixture
def loud(tmp_path: Path) -> Path:
    path = tmp_path / "loud.jinja"
    path.write_bytes(b"\xef\xbb\xbf" + LOUD.replace("\n", "\r\n").encode())  # as Notepad saves it
    return path


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line of a command that fails."""
    assert main([str(argument) for argument in arguments]) in (1, 2)
    shown = capsys.readouterr()
    assert (shown.out, shown.err.count("\n")) == ("", 1)
    return shown.err


@pytest.mark.parametrize(("text", "why"), REFUSED.items(), ids=str)
def test_what_is_wrong_is_said_before_a_model_is_loaded(
    text: str | bytes, why: str, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "t.jinja"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    tokenizer = Tokenizer.from_text((tiny_bundle / bundles.TOKENIZER).read_text(encoding="utf-8"))
    with pytest.raises(edge.SettingsError, match=r"give a Jinja template of messages") as raised:
        open_chosen(path, tokenizer, None)
    assert raised.value.param == "chat_template" or isinstance(text, bytes)
    assert why in str(raised.value)
    assert why in told(capsys, "run", tiny_bundle, "hi", "--chat-template", path)


def test_paths_that_are_none(tiny_bundle: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path, ""):
        with pytest.raises(edge.SettingsError):
            edge.load(tiny_bundle, chat_template=path)
    with pytest.raises(edge.SettingsError, match="chat_template is 5"):
        edge.load(tiny_bundle, chat_template=5)  # type: ignore[arg-type]


def test_it_makes_the_prompts_of_python(tiny_bundle: Path, loud: Path) -> None:
    with edge.load(tiny_bundle, chat_template=loud) as llm:
        assert llm.chat_template.source == LOUD
        assert llm.render(QUESTION).startswith("[user] hi!\n")
        ids = llm.encode_chat(QUESTION)
        *_, last = llm.chat(QUESTION, max_new_tokens=1)
        assert last.stats is not None
        assert last.stats.prompt_tokens == len(ids)
    with edge.load(tiny_bundle) as llm:
        assert llm.encode_chat(QUESTION) != ids


def test_verbs_take_it(tiny_bundle: Path, loud: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model without a template of its own can be asked; without one, the error names the option."""
    base = Path(shutil.copytree(tiny_bundle, tmp_path / "base"))
    manifest = Manifest.from_json((base / bundles.MANIFEST).read_bytes())
    files = {name: record for name, record in manifest.files.items() if name != bundles.CHAT_TEMPLATE}
    (base / bundles.CHAT_TEMPLATE).unlink()
    (base / bundles.MANIFEST).write_text(replace(manifest, files=files).to_json(), encoding="utf-8")
    for verb in ("run", "chat"):
        assert "--chat-template" in told(capsys, verb, base, *(["hi"] if verb == "run" else []))
    asked = ["--max-new-tokens", "1", "--chat-template", str(loud)]
    assert main(["run", str(base), "hi", "--json", *asked]) == 0
    tokens = json.loads(capsys.readouterr().out)["prompt_tokens"]
    with edge.load(base, chat_template=loud) as llm:
        assert tokens == len(llm.encode_chat(QUESTION))
        system = llm.system_prefix("Be brief.")
    prefix = tmp_path / "k.prefix"
    assert main(["prefix", "build", str(base), str(prefix), "--system", "Be brief.", "--chat-template", str(loud)]) == 0
    capsys.readouterr()
    assert main(["prefix", "show", str(prefix), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == len(system)
    assert "--raw leaves out" in told(capsys, "run", base, "hi", "--raw", "--chat-template", loud)


def test_a_batch_that_is_resumed_has_one_template(
    tiny_bundle: Path, loud: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = {"model": "m", "messages": QUESTION, "max_tokens": 1}
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    requests, out = tmp_path / "requests.jsonl", tmp_path / "answers.jsonl"
    requests.write_text(json.dumps(line) + "\n", encoding="utf-8")
    command = ["batch", str(tiny_bundle), str(requests), str(out)]
    assert main([*command, "--chat-template", str(loud)]) == 0
    assert main([*command, "--chat-template", str(loud)]) == 0, "it is complete"
    capsys.readouterr()
    assert "its answers are those of other settings" in told(capsys, *command)


def test_an_export_stores_it(tiny_checkpoint: Path, loud: Path, tmp_path: Path) -> None:
    manifest = edge.export(tiny_checkpoint, tmp_path / "out", "int8-sym", format="onnx", chat_template=loud)
    stored = (tmp_path / "out" / bundles.CHAT_TEMPLATE).read_bytes()
    assert stored == LOUD.encode()
    assert manifest.files[bundles.CHAT_TEMPLATE].size == len(stored)
    assert "chat template: loud.jinja, instead of the checkpoint's" in manifest.decisions
    with edge.load(tmp_path / "out") as llm:
        assert llm.render(QUESTION).startswith("[user] hi!\n")


def test_an_export_refuses_one_that_does_not_compile(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.jinja").write_text("{% for m in", encoding="utf-8")
    line = told(capsys, "export", tiny_checkpoint, tmp_path / "out", "--chat-template", tmp_path / "t.jinja")
    assert "t.jinja: the chat template does not compile" in line
    assert not (tmp_path / "out").exists()
