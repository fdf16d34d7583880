"""The OpenVINO tokenizer gives our ids in openvino_genai, and is made beside the export, in a process of its own."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import processors

from edge.export.checkpoint.pre_tokenizers import PRE_TOKENIZERS
from edge.export.interop.openvino_tokenizer import FILES, start
from edge.runtime.bundle import CHAT_TEMPLATE, TOKENIZER
from edge.runtime.chat import ChatTemplate
from edge.runtime.files import sha256_of
from edge.runtime.tokenizer import Tokenizer
from tests.export.test_tokenizer import SPECIAL, TOKENS, WORDS, make_tiny

pytest.importorskip("openvino_tokenizers")
pytest.importorskip("transformers")
openvino_genai = pytest.importorskip("openvino_genai")

pytestmark = pytest.mark.slow  # other programs, each of which compiles or exports the same models again

MESSAGES = [
    {"role": "user", "content": "the 你 xyz"},
    {"role": "assistant", "content": "abc\n"},
    {"role": "user", "content": "123"},
]
TEMPLATE = (
    "<sop>{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}"  # as GLM-4's: it brings its own prefix
    "{% if add_generation_prompt %}a{% endif %}"
)


def add_prefix(tokenizer: tokenizers.Tokenizer, *tokens: str) -> None:
    """A post-processor as GLM-4's, which puts special tokens before any text."""
    ids = [(token, tokenizer.token_to_id(token)) for token in tokens]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{' '.join(tokens)} $A", special_tokens=ids)


def make_folder(folder: Path) -> Path:
    """What the converter finds in a bundle: a tiny tokenizer.json with a prefix, and a chat template."""
    folder.mkdir()
    tokenizer = make_tiny(TOKENS, folder / "tokenizer.model")
    (folder / "tokenizer.model").unlink()
    add_prefix(tokenizer, "<sop>")
    tokenizer.save(str(folder / TOKENIZER))
    (folder / CHAT_TEMPLATE).write_text(TEMPLATE)
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def digests(folder: Path) -> list[str]:
    return [sha256_of(folder / name) for name in FILES]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted tiny tokenizer. 1 s."""
    folder = make_folder(tmp_path_factory.mktemp("tiny") / "bundle")
    with start(folder, len(TOKENS)) as conversion:
        assert conversion.finish() is None
    return folder


@pytest.fixture(scope="module")
def glm4(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """GLM-4's own tokenizer.json, converted twice at the same time: 9 s on two cores, 7 s for one alone."""
    folders = [tmp_path_factory.mktemp("glm4") for _ in range(2)]
    conversions = []
    for folder in folders:
        shutil.copyfile(shared / "glm4-tokenizer" / TOKENIZER, folder / TOKENIZER)
        shutil.copyfile(shared / "chat-templates" / "glm-4-9b-chat.jinja", folder / CHAT_TEMPLATE)
        conversions.append(start(folder, 151_329))
    assert [conversion.finish() for conversion in conversions] == [None, None]
    return folders


def ids_of(tokenizer: Any, text: str) -> list[int]:
    """As openvino_genai encodes raw text; after a chat template it adds no special tokens."""
    raw, rendered = (
        tokenizer.encode(text, add_special_tokens=added).input_ids.data[0].tolist() for added in (True, False)
    )
    assert raw == rendered
    return list(raw)


def test_tiny_ids_and_text(tiny: Path) -> None:
    theirs, ours = openvino_genai.Tokenizer(str(tiny)), Tokenizer(tiny / TOKENIZER)
    whole = (" xyz", "你好", "🙂", "abc")
    texts = [*WORDS, *SPECIAL, *(a + b for a in whole for b in WORDS), "the  12\n\n<|user|>é\x00"]
    for text in texts:
        assert ids_of(theirs, text) == ours.encode(text), text
        assert theirs.decode(ours.encode(text)) == ours.decode(ours.encode(text)), text
    assert theirs.get_eos_token_id() == theirs.get_pad_token_id() == len(TOKENS)


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "glm4", "qwen2"])
def test_every_way_to_cut_text(pre: str, tmp_path: Path) -> None:
    """Without ignore_merges, where no text gives a token that no merge makes."""
    tokenizer = make_tiny(TOKENS, tmp_path / "tokenizer.model")
    tokenizer.model.ignore_merges = False
    record = PRE_TOKENIZERS[pre]
    tokenizer.pre_tokenizer = record.cut()
    if record.normalizer is not None:
        tokenizer.normalizer = record.normalizer()
    tokenizer.save(str(tmp_path / TOKENIZER))
    assert start(tmp_path, None).finish() is None
    theirs, ours = openvino_genai.Tokenizer(str(tmp_path)), Tokenizer(tmp_path / TOKENIZER)
    parts = ("the", " xyz", "'s", "1", "23", " ", "  ", "\n\n", "\t", "é", "?!", "<sop>", "４", "e\u0301")
    for text in map("".join, itertools.product(parts, repeat=3)):
        assert ids_of(theirs, text) == ours.encode(text), repr(text)


def test_tiny_chat(tiny: Path) -> None:
    theirs, ours = openvino_genai.Tokenizer(str(tiny)), Tokenizer(tiny / TOKENIZER)
    rendered = ChatTemplate(TEMPLATE).render(MESSAGES)
    assert theirs.apply_chat_template(MESSAGES, add_generation_prompt=True) == rendered
    assert ids_of(theirs, rendered) == ours.encode(rendered)


def test_pipeline_reads_as_many_tokens_as_we_do(tiny_bundle: Path, tmp_path: Path) -> None:
    """The whole of openvino_genai on a bundle: chat by default, and raw text, each without a second prefix."""
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / TOKENIZER))
    add_prefix(tokenizer, "<|system|>", "<|user|>")
    tokenizer.save(str(folder / TOKENIZER))
    with start(folder, 256) as conversion:
        assert conversion.finish() is None
    pipeline, ours = openvino_genai.LLMPipeline(str(folder), "CPU"), Tokenizer(folder / TOKENIZER)
    rendered = ChatTemplate((folder / CHAT_TEMPLATE).read_text()).render([{"role": "user", "content": "hello"}])
    for chat, text in ((True, rendered), (False, "hello")):
        settings = openvino_genai.GenerationConfig()
        settings.max_new_tokens, settings.apply_chat_template = 1, chat
        counted = pipeline.generate(["hello"], settings).perf_metrics.get_num_input_tokens()
        assert counted == len(ours.encode(text))


def test_glm4_ids_and_text(glm4: list[Path], shared: Path) -> None:
    theirs, ours = openvino_genai.Tokenizer(str(glm4[0])), Tokenizer(glm4[0] / TOKENIZER)
    golden = json.loads((shared / "glm4-tokenizer" / "golden_encodings.json").read_text(encoding="utf-8"))
    for name, case in golden.items():
        assert ids_of(theirs, case["text"]) == case["ids"] == ours.encode(case["text"]), name
        assert theirs.decode(case["ids"]) == case["text"], name


def test_glm4_words_that_no_merge_makes(glm4: list[Path]) -> None:
    """893 tokens stand for a whole word or for nothing; a converter that only merges takes several for each."""
    theirs, ours = openvino_genai.Tokenizer(str(glm4[0])), Tokenizer(glm4[0] / TOKENIZER)
    words = {" árbol": 148_057, " одежды": 139_114, " 做": 112_461, " 化学": 118_918, " değiş": 133_956}
    for word, token_id in words.items():
        assert ids_of(theirs, word) == ours.encode(word) == [token_id]
        for text in (f"un{word} y", word + word, word + "es", word.strip(), "x" + word.strip()):
            assert ids_of(theirs, text) == ours.encode(text), text
    for token_id in range(0, ours.num_tokens, 101):
        text = ours.token_bytes(token_id).decode(errors="replace")
        if text:
            assert ids_of(theirs, text) == ours.encode(text), text


def test_glm4_chat(glm4: list[Path], shared: Path) -> None:
    """The prefix [gMASK]<sop> stands there once, as the template has it."""
    theirs, ours = openvino_genai.Tokenizer(str(glm4[0])), Tokenizer(glm4[0] / TOKENIZER)
    renders = json.loads((shared / "chat-templates" / "golden_renders.json").read_text(encoding="utf-8"))
    for name, case in renders.items():
        rendered = theirs.apply_chat_template(case["messages"], add_generation_prompt=True)
        assert rendered == case["prompt"], name
        ids = ids_of(theirs, rendered)
        assert ids == ours.encode(rendered), name
        assert ids[:2] == [151_331, 151_333]
        assert ids.count(151_333) == 1


def test_same_bytes_each_time(tiny: Path, tmp_path: Path) -> None:
    again = make_folder(tmp_path / "again")
    assert start(again, len(TOKENS)).finish() is None
    assert digests(again) == digests(tiny)
    assert names(again) == {*FILES, TOKENIZER, CHAT_TEMPLATE}


def test_glm4_same_bytes_each_time(glm4: list[Path]) -> None:
    assert digests(glm4[0]) == digests(glm4[1])


def test_without_eos(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "bundle")
    assert start(folder, None).finish() is None
    assert openvino_genai.Tokenizer(str(folder)).get_eos_token_id() == -1


@pytest.mark.parametrize("package", ["transformers", "openvino_tokenizers"])
def test_missing_package(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of that name, found first, that says what Python says when there is none."""
    message = f"No module named '{package}'"
    (tmp_path / f"{package}.py").write_text(f"raise ModuleNotFoundError({message!r})")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    folder = make_folder(tmp_path / "bundle")
    before = names(folder)
    with start(folder, None) as conversion:
        assert conversion.finish() == f"{message}; pip install openvino-tokenizers transformers"
        assert conversion.finish() is not None
    assert names(folder) == before


def test_failure_is_one_line(tmp_path: Path) -> None:
    (tmp_path / TOKENIZER).write_text("{}")
    reason = start(tmp_path, None).finish()
    assert reason
    assert "\n" not in reason
    assert "Traceback" not in reason
    assert names(tmp_path) == {TOKENIZER}


def test_killed_process_is_a_reason(tmp_path: Path) -> None:
    conversion = start(make_folder(tmp_path / "bundle"), None)
    conversion._process.kill()
    assert conversion.finish() == "the conversion ended with exit code -9"


@pytest.mark.parametrize("seconds", [0.0, 0.4, 1.5])
def test_cancel_leaves_nothing(seconds: float, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "bundle")
    before = names(folder)
    conversion = start(folder, None)
    time.sleep(seconds)
    conversion.cancel()
    assert names(folder) == before
    assert conversion.finish() == "the conversion was cancelled"
    with pytest.raises(ProcessLookupError):
        os.kill(conversion._process.pid, 0)


def test_error_in_the_body_cancels(tmp_path: Path) -> None:
    """Also what was written already, when the error comes after finish()."""
    folder = make_folder(tmp_path / "bundle")
    before = names(folder)
    with pytest.raises(KeyboardInterrupt), start(folder, None):
        raise KeyboardInterrupt
    assert names(folder) == before
    with pytest.raises(EOFError, match="None"), start(folder, None) as conversion:
        raise EOFError(conversion.finish())
    assert names(folder) == before


def test_process_loads_no_torch_and_reaches_for_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child notes what it connects to, and on leaving what it has loaded."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "from pathlib import Path\n"
        f"folder, leave = Path({str(tmp_path)!r}), os._exit\n"
        "def hook(event, arguments):\n"
        "    if event in ('socket.connect', 'socket.getaddrinfo', 'socket.sendto'):\n"
        "        (folder / 'network').write_text(f'{event} {arguments}')\n"
        "def note(code):\n"
        "    loaded = [name for name, module in sys.modules.items() if module is not None]\n"
        "    (folder / 'loaded').write_text(' '.join(loaded))\n"
        "    leave(code)\n"
        "sys.addaudithook(hook)\n"
        "os._exit = note\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert start(make_folder(tmp_path / "bundle"), None).finish() is None
    loaded = {name.split(".")[0] for name in (tmp_path / "loaded").read_text().split()}
    assert {"edge", "openvino_tokenizers", "transformers"} <= loaded
    assert not {"torch", "tensorflow", "jax", "openvino_telemetry"} & loaded
    assert not (tmp_path / "network").exists()


def test_process_finds_the_package_where_the_exporting_one_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only where it is installed: the exporting process may have it from its current folder."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "sys.path[:] = [path for path in sys.path if not (Path(path) / 'edge' / '__init__.py').is_file()]\n"
        "sys.meta_path[:] = [finder for finder in sys.meta_path if 'editable' not in repr(finder)]\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert start(make_folder(tmp_path / "bundle"), None).finish() is None


def test_exporting_process_stays_light() -> None:
    script = (
        "import sys, edge.export.interop.openvino_tokenizer; "
        "print([name for name in ('torch', 'transformers', 'openvino_tokenizers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_same_bytes_whatever_else_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The converter notes versions of packages that have no part in it, where they are there."""
    made = []
    for package in ("tiktoken", "sentencepiece"):  # as the metadata of installed packages
        folder = tmp_path / "site" / f"{package}-9.9.9.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 9.9.9\n")
    for number in range(2):
        folder = make_folder(tmp_path / f"bundle{number}")
        assert start(folder, 3).finish() is None
        made.append({name: sha256_of(folder / name) for name in FILES})
        text = (folder / "openvino_tokenizer.xml").read_text()
        assert "tokenizers_version" in text
        assert "tiktoken" not in text
        assert "sentencepiece_version" not in text
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    assert made[0] == made[1]


def test_models_that_cannot_be_written_are_an_error(tmp_path: Path) -> None:
    """A file size limit makes the operating system refuse writes as a full disk does."""
    script = f"""
import resource
from pathlib import Path
from edge.export.interop.openvino_tokenizer import start
from edge.runtime.errors import OutputError

resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    start(Path({str(make_folder(tmp_path / "bundle"))!r}), 3).finish()
except OutputError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "the tokenizer's models could not be written" in done.stdout
    assert names(tmp_path / "bundle") == {TOKENIZER, CHAT_TEMPLATE}
