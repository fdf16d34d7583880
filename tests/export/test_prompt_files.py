"""Tokenizers and chat templates are read out of a checkpoint's files as transformers reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Library

from edge.export.checkpoint.build_tokenizer import from_gguf
from edge.export.checkpoint.chat_templates import BUILT_IN, choose
from edge.export.checkpoint.safetensors import SafetensorsCheckpoint
from edge.export.checkpoint.tokenizer_files import usable_tokenizer
from edge.runtime.chat import ChatTemplate
from edge.runtime.errors import ConfigError, EdgeError, TokenizerError
from edge.runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
SPECIAL = ("<|endoftext|>", "<|user|>", "<|assistant|>")
DEFAULT = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
TOOLS = "TOOLS {{ tools | length }} " + DEFAULT
TEXT = "Hi <|user|> <new> there <|endoftext|>!"


def tokenizer_json(**changes: Any) -> dict[str, Any]:
    """Of a byte-level tokenizer with three special tokens."""
    library = Library(models.BPE({char: i for i, char in enumerate(ALPHABET)}, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    data: dict[str, Any] = json.loads(library.to_str())
    for path, value in changes.items():
        *parents, key = path.split("__")
        inside = data
        for parent in parents:
            inside = inside[parent]
        inside[key] = value
    return data


def make_folder(folder: Path, files: dict[str, Any], tokenizer: dict[str, Any] | None = None) -> SafetensorsCheckpoint:
    """A checkpoint without weights; contents that are no text are written as JSON."""
    contents = {"config.json": {"model_type": "glm"}, "tokenizer.json": tokenizer or tokenizer_json(), **files}
    for name, content in contents.items():
        (folder / name).parent.mkdir(exist_ok=True)
        raw = content if isinstance(content, bytes) else None
        text = content if isinstance(content, str) else None if raw else json.dumps(content)
        (folder / name).write_bytes(raw if raw is not None else str(text).encode())
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return SafetensorsCheckpoint(folder)


def theirs(folder: Path) -> PreTrainedTokenizerFast:
    from transformers import PreTrainedTokenizerFast

    found: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
    return found


def ours(checkpoint: SafetensorsCheckpoint, folder: Path) -> Tokenizer:
    checkpoint.write_tokenizer(folder / "written.json")
    return Tokenizer(folder / "written.json")


# --- Templates --------------------------------------------------------------------------------------------------------

PLACES: dict[str, dict[str, Any]] = {
    "a file": {"chat_template.jinja": DEFAULT},
    "a file with DOS line ends": {"chat_template.jinja": "a\r\n{% if 1 %}\r\nb{% endif %}\r\n" + DEFAULT},
    "in the configuration": {"tokenizer_config.json": {"chat_template": DEFAULT}},
    "a file and the configuration": {"chat_template.jinja": DEFAULT, "tokenizer_config.json": {"chat_template": "{x"}},
    "a list": {
        "tokenizer_config.json": {
            "chat_template": [{"name": "rag", "template": "{x"}, {"name": "default", "template": DEFAULT}]
        }
    },
    "a list with tools": {
        "tokenizer_config.json": {
            "chat_template": [{"name": "default", "template": DEFAULT}, {"name": "tool_use", "template": TOOLS}]
        }
    },
    "a mapping": {"tokenizer_config.json": {"chat_template": {"default": DEFAULT, "tool_use": TOOLS}}},
    "files": {"chat_template.jinja": DEFAULT, "additional_chat_templates/tool_use.jinja": TOOLS},
    "files and the configuration": {
        "chat_template.jinja": DEFAULT,
        "additional_chat_templates/rag.jinja": "{x",
        "tokenizer_config.json": {"chat_template": {"default": "{x", "tool_use": TOOLS}},
    },
    "two that begin and end with white space": {
        "tokenizer_config.json": {"chat_template": {"default": "\n  " + DEFAULT + "\n  \n", "tool_use": "\n\n" + TOOLS}}
    },
    "nowhere": {},
}
MESSAGES = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}


@pytest.mark.parametrize("place", PLACES)
def test_templates_are_found_as_transformers_finds_them(place: str, tmp_path: Path) -> None:
    checkpoint = make_folder(tmp_path, PLACES[place])
    template, reference = checkpoint.chat_template(), theirs(tmp_path)
    if place == "nowhere":
        assert template is None
        assert reference.chat_template is None
        return
    assert template is not None
    compiled = ChatTemplate(template, named_tokens=checkpoint.named_tokens())
    assert compiled.render(MESSAGES) == reference.apply_chat_template(MESSAGES, tokenize=False)
    if compiled.convention.tools == "variable":
        expected = reference.apply_chat_template(MESSAGES, tools=[TOOL], tokenize=False)
        assert compiled.render(MESSAGES, tools=[TOOL]) == expected
        assert "TOOLS 1" in str(expected)


@pytest.mark.parametrize(
    ("files", "template"),
    [
        ({"chat_template.json": {"chat_template": DEFAULT}}, DEFAULT),
        ({"tokenizer_config.json": {"chat_template": {"template": DEFAULT}}}, DEFAULT),
        ({"chat_template.jinja": "\ufeff" + DEFAULT}, DEFAULT),
        ({"tokenizer_config.json": b"\xef\xbb\xbf" + json.dumps({"chat_template": DEFAULT}).encode()}, DEFAULT),
        ({"chat_template.jinja": ""}, None),
        ({"chat_template.jinja": " \n"}, None),
        ({"tokenizer_config.json": {"chat_template": ""}}, None),
        ({"tokenizer_config.json": {"chat_template": "chatglm4"}}, BUILT_IN["chatglm4"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_transformers_does_not_take(files: dict[str, Any], template: str | None, tmp_path: Path) -> None:
    assert make_folder(tmp_path, files).chat_template() == template


@pytest.mark.parametrize(
    "given", ["llama2", "vicuna", 5, [], ["x"], {}, {"rag": DEFAULT}, [{"name": "rag"}], [{}]], ids=str
)
def test_what_is_no_template_is_refused_with_advice(given: object) -> None:
    with pytest.raises(TokenizerError, match=r"put a chat_template\.jinja"):
        choose(given, "it")


@pytest.mark.parametrize("raw", [b"\xff\xfe{", "{{ 'é' }}".encode("latin-1")], ids=repr)
def test_template_files_that_are_no_utf8(raw: bytes, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="is not UTF-8 at byte"):
        make_folder(tmp_path, {"chat_template.jinja": raw}).chat_template()


def test_the_built_in_glm4_renders_as_the_models_own(shared: Path) -> None:
    golden = json.loads((shared / "chat-templates" / "golden_renders.json").read_text(encoding="utf-8"))
    template = ChatTemplate(BUILT_IN["chatglm4"])
    own = ChatTemplate((shared / "chat-templates" / "glm-4-9b-chat.jinja").read_text(encoding="utf-8"))
    for name in ("single", "system", "multi"):
        assert template.render(golden[name]["messages"]) == golden[name]["prompt"]
    called = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "metadata": "f", "content": "{}"},
        {"role": "observation", "content": "x\n"},
        {"role": "observation", "content": ""},
    ]
    for prompt in (True, False):
        assert template.render(called, add_generation_prompt=prompt) == own.render(called, add_generation_prompt=prompt)


# --- Tokens -----------------------------------------------------------------------------------------------------------

TOKENIZERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "cut off": ({"truncation": {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}}, {}),
    "filled up": (
        {
            "padding": {
                "strategy": {"Fixed": 64},
                "direction": "Right",
                "pad_to_multiple_of": None,
                "pad_id": 0,
                "pad_type_id": 0,
                "pad_token": "!",
            }
        },
        {},
    ),
    "added_tokens_decoder": (
        {},
        {
            "tokenizer_config.json": {
                "added_tokens_decoder": {
                    "256": {"content": "<|endoftext|>", "special": True, "normalized": False},
                    "259": {"content": "<new>", "special": True, "normalized": False, "lstrip": True},
                }
            }
        },
    ),
    "other flags": (
        {},
        {
            "tokenizer_config.json": {
                "added_tokens_decoder": {"257": {"content": "<|user|>", "special": False, "rstrip": True}}
            }
        },
    ),
    "added_tokens.json": (
        {},
        {"added_tokens.json": {"<new>": 259, "<|endoftext|>": 256}, "special_tokens_map.json": {"eos_token": "<new>"}},
    ),
    "added_tokens.json that does not count": (
        {},
        {
            "added_tokens.json": {"<new>": 259},
            "tokenizer_config.json": {"added_tokens_decoder": {"256": {"content": "<|endoftext|>", "special": True}}},
        },
    ),
    "named tokens": ({}, {"tokenizer_config.json": {"pad_token": "<new>", "bos_token": "<|endoftext|>"}}),
    "named with properties": (
        {},
        {
            "tokenizer_config.json": {
                "pad_token": {"__type": "AddedToken", "content": "<new>", "normalized": False, "rstrip": True},
                "additional_special_tokens": ["there", "<|user|>"],
            }
        },
    ),
    "special_tokens_map.json": (
        {},
        {
            "tokenizer_config.json": {"eos_token": "<|user|>"},
            "special_tokens_map.json": {
                "eos_token": {"content": "<|endoftext|>", "normalized": False},
                "additional_special_tokens": ["<new>"],
            },
        },
    ),
    "a space first": ({"pre_tokenizer__add_prefix_space": True}, {}),
    "a space first, and wanted": (
        {"pre_tokenizer__add_prefix_space": True},
        {"tokenizer_config.json": {"add_prefix_space": True}},
    ),
    "ids that are not its own": (
        {"added_tokens": [{"id": 300, "content": "<new>", "special": True, **dict.fromkeys(
            ("single_word", "lstrip", "rstrip", "normalized"), False)}]},
        {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokens_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    changes, files = TOKENIZERS[name]
    checkpoint = make_folder(tmp_path, files, tokenizer_json(**changes))
    tokenizer, reference = ours(checkpoint, tmp_path), theirs(tmp_path)
    for text in (TEXT, "please help me with this, all of it", " <new>  <|user|> "):
        assert tokenizer.encode(text) == reference(text, add_special_tokens=False).input_ids
    assert tokenizer.num_tokens == len(reference)
    special = {i for i, token in reference.added_tokens_decoder.items() if token.special}
    assert {i for i in range(len(reference)) if tokenizer.is_special(i)} == special - {0}  # "!", which fills up
    if name != "filled up":  # with a token that is its pad_token there
        assert checkpoint.named_tokens() == reference.special_tokens_map


def test_tokens_with_other_ids_than_declared_are_doubted(tmp_path: Path) -> None:
    changes, files = TOKENIZERS["ids that are not its own"]
    checkpoint = make_folder(tmp_path, files, tokenizer_json(**changes))
    (doubt,) = checkpoint.write_tokenizer(tmp_path / "written.json")
    assert "'<new>': 256 instead of 300" in doubt
    config = {"added_tokens_decoder": {"400": {"content": "<new>", "special": True}}}
    (doubt,) = make_folder(tmp_path, {"tokenizer_config.json": config}).write_tokenizer(tmp_path / "written.json")
    assert "'<new>': 259 instead of 400" in doubt


def test_a_tokenizer_that_needs_no_change_keeps_its_bytes(tmp_path: Path) -> None:
    text = json.dumps(tokenizer_json(), indent=3)
    for mark in (b"", b"\xef\xbb\xbf"):
        checkpoint = make_folder(tmp_path, {"tokenizer.json": mark + text.encode()})
        assert checkpoint.write_tokenizer(tmp_path / "written.json") == ()
        assert (tmp_path / "written.json").read_text() == text


def test_merges_left_out_at_random_are_not(tmp_path: Path) -> None:
    vocab = {char: i for i, char in enumerate([*ALPHABET, "hi", "hihi"])}
    data = tokenizer_json(model__vocab=vocab, model__merges=[["h", "i"], ["hi", "hi"]], model__dropout=0.5)
    data["added_tokens"] = []
    for tokenizer in (Tokenizer.from_text(json.dumps(data)), ours(make_folder(tmp_path, {}, data), tmp_path)):
        assert {tuple(tokenizer.encode("hihi" * 10)) for _ in range(20)} == {(257,) * 10}
    assert json.loads((tmp_path / "written.json").read_text())["model"]["dropout"] is None


def test_no_token_is_there_twice(tmp_path: Path) -> None:
    """A post-processor adds a first token to raw text, and a template writes it: here the template alone does."""
    first = {"SpecialToken": {"id": SPECIAL[0], "type_id": 0}}
    sequence = {"Sequence": {"id": "A", "type_id": 0}}
    processor = {
        "type": "TemplateProcessing",
        "single": [first, sequence],
        "pair": [first, sequence, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {SPECIAL[0]: {"id": SPECIAL[0], "ids": [256], "tokens": [SPECIAL[0]]}},
    }
    config = {"bos_token": SPECIAL[0], "chat_template": "{{ bos_token }}" + DEFAULT}
    files = {"tokenizer_config.json": config}
    checkpoint = make_folder(tmp_path, files, tokenizer_json(post_processor=processor))
    tokenizer, reference = ours(checkpoint, tmp_path), theirs(tmp_path)
    template = ChatTemplate(str(checkpoint.chat_template()), tokenizer.markup, checkpoint.named_tokens())
    ids = tokenizer.encode_marked(template.render_marked(MESSAGES))
    assert ids == reference.apply_chat_template(MESSAGES)
    assert ids.count(256) == 1
    assert 256 not in tokenizer.encode("hi")
    assert reference("hi").input_ids[0] == 256


def test_tokens_too_long_to_look_for(tmp_path: Path) -> None:
    for config in ({"pad_token": "x" * 5000}, {"added_tokens_decoder": {"300": {"content": "x" * 5000}}}):
        with pytest.raises(TokenizerError, match="5,000 characters"):
            make_folder(tmp_path, {"tokenizer_config.json": config}).write_tokenizer(tmp_path / "written.json")


@pytest.mark.parametrize(
    ("tokens", "merges"),
    [([*ALPHABET, 5], []), ([*ALPHABET, ["a"]], []), (ALPHABET, [5]), (ALPHABET, [["a", "b"]]), (ALPHABET, [None])],
)
def test_gguf_metadata_that_are_no_texts(tokens: list[Any], merges: list[Any]) -> None:
    with pytest.raises(TokenizerError, match="expected texts"):
        from_gguf("gpt2", "gpt-2", tokens, [1] * len(tokens), merges)


def test_files_with_a_say_are_part_of_the_source(tmp_path: Path) -> None:
    files = {
        "tokenizer_config.json": {},
        "special_tokens_map.json": {},
        "added_tokens.json": {},
        "chat_template.jinja": "x{",
        "chat_template.json": {},
        "additional_chat_templates/tool_use.jinja": "x{",
    }
    names = {str(file.relative_to(tmp_path)) for file in make_folder(tmp_path, files).small_files()}
    assert names == {"config.json", "tokenizer.json", *files}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("added_tokens.json", {"<new>": "5"}),
        ("added_tokens.json", {"<new>": -1}),
        ("added_tokens.json", []),
        ("special_tokens_map.json", "["),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "y"}}}),
        ("tokenizer.json", "[]"),
        ("tokenizer.json", b"\xff"),
        ("tokenizer.json", "[" * 100_000),
        ("tokenizer.json", '{"a": 1, "a": 2}'),
    ],
    ids=str,
)
def test_files_that_are_damaged(name: str, content: Any, tmp_path: Path) -> None:
    with pytest.raises((TokenizerError, ConfigError)):
        make_folder(tmp_path, {name: content}).write_tokenizer(tmp_path / "written.json")


def test_what_is_refused_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(EdgeError, match=r"cannot be read as a tokenizer\.json"):
        usable_tokenizer(tmp_path / "tokenizer.json")
