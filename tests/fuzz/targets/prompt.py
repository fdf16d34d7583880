# ruff: noqa: E501  # lines of templates are as long as they are
"""Readers of what makes a prompt: tokenizer.json, tokenizer_config.json, chat templates, and messages of clients."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Library

from edge.export.checkpoint.chat_templates import folder_template, read_template
from edge.export.checkpoint.tokenizer_files import read_beside, read_config, usable_tokenizer
from edge.runtime.chat import ChatTemplate, open_template
from edge.runtime.detokenizer import Detokenizer
from edge.runtime.errors import PromptError
from edge.runtime.json_reader import parse_json
from edge.runtime.tokenizer import Tokenizer
from tests.fuzz.target import Target

_TEXTS = ("", "hello  aaa 123\n\n", "<|user|> [x] <|user|>", "é你好🙂\0\u2028")
_ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
_TEMPLATE = (
    "{{ bos_token }}{% if tools %}{% for t in tools %}{{ t | tojson(indent=2) }}{% endfor %}{% endif %}"
    "{% set ns = namespace(x=0) %}{% macro m(a) %}[{{ a }}]{% endmacro %}"
    "{% for m in messages if m.role != 'x' %}{% if loop.first and m['role'] == 'system' %}{{ m.content | trim }}"
    "{% elif 'a' in m.content %}{{ m.content.split('a')[-1] ~ '<|' + m.role + '|>' }}{% else %}{{ m.content[1:] }}{% endif %}"
    "{% set ns.x = ns.x + 1 %}{% endfor %}{{ '%s' % ns.x }}{{ messages | map(attribute='role') | join(', ') }}"
)
_MESSAGES = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": [{"type": "text", "text": "<|user|>"}]},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}],
    },
    {"role": "tool", "tool_call_id": "1", "content": "r"},
]


def _tokenizer(changed: bool) -> str:
    vocab = {char: i for i, char in enumerate([*_ALPHABET, "ll", "he"])}
    library = Library(models.BPE(vocab, [("l", "l"), ("h", "e")], ignore_merges=changed))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}{1,3}| ?[^\s\p{L}]+|\s+(?!\S)|\s+"), "isolated")
    library.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level]) if changed else byte_level
    library.decoder = decoders.ByteLevel()
    if changed:
        replaced = normalizers.Replace(Regex("x+"), "y")
        library.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace("ab", "c"), replaced])
        library.enable_truncation(8)
        library.enable_padding(length=16)
        library.post_processor = processors.ByteLevel(trim_offsets=False)
    library.add_special_tokens([AddedToken("<|user|>", normalized=False), AddedToken("[x]", rstrip=True)])
    return str(library.to_str())


def _tokenizers(_folder: Path) -> list[bytes]:
    return [_tokenizer(changed).encode() for changed in (False, True)]


def _read_tokenizer(raw: bytes, folder: Path) -> object:
    path = folder / "tokenizer.json"
    path.write_bytes(raw)
    text, _ = usable_tokenizer(path)
    for tokenizer in (Tokenizer(path, 300), Tokenizer.from_text(text)):
        for text in _TEXTS:
            for special in (True, False):
                try:
                    ids = tokenizer.encode(text, parse_special=special)
                except PromptError:
                    continue
                tokenizer.decode(ids)
                detokenizer = Detokenizer(tokenizer)
                [detokenizer.push(i) for i in ids]
            tokenizer.encode_marked(tokenizer.markup.mark(tokenizer.markup.guard(text)))
    return tokenizer.to_json()


def _configs(_folder: Path) -> list[bytes]:
    token = {"content": "<|user|>", "special": True, "normalized": False, "lstrip": False}
    values = [
        {"bos_token": "<s>", "eos_token": token, "chat_template": _TEMPLATE, "added_tokens_decoder": {"258": token}},
        {
            "additional_special_tokens": ["<a>", token],
            "pad_token": None,
            "chat_template": [
                {"name": "default", "template": _TEMPLATE},
                {"name": "tool_use", "template": "{{ tools }}"},
            ],
        },
    ]
    return [json.dumps(value).encode() for value in values]


def _read_config(raw: bytes, folder: Path) -> object:
    (folder / "tokenizer.json").write_text(_tokenizer(False))
    (folder / "tokenizer_config.json").write_bytes(raw)
    text, _ = usable_tokenizer(folder / "tokenizer.json", read_beside(folder))
    tokenizer = Tokenizer.from_text(text)
    template = folder_template(folder, read_config(folder))
    opened = open_template(template, tokenizer, json.dumps(read_config(folder)))
    return opened and opened.render([{"role": "user", "content": "hi"}])


def _templates(_folder: Path) -> list[bytes]:
    return [_TEMPLATE.encode()]


def _read_template(raw: bytes, folder: Path) -> object:
    (folder / "chat_template.jinja").write_bytes(raw)
    tokenizer = Tokenizer.from_text(_tokenizer(False))
    template = ChatTemplate(read_template(folder / "chat_template.jinja"), tokenizer.markup, {"bos_token": "<s>"})
    conversation = [{"role": "system", "content": "s"}, {"role": "user", "content": "banana <|user|>"}]
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}
    return tokenizer.encode_marked(template.render_marked(conversation, tools=[tool], variables={"x": [1, "a"]}))


def _conversations(_folder: Path) -> list[bytes]:
    return [json.dumps({"messages": _MESSAGES, "tools": None}).encode()]


def _read_conversation(raw: bytes, _folder: Path) -> object:
    given = parse_json(raw, "it", PromptError, "send JSON")
    if not isinstance(given, dict):
        return None
    template = ChatTemplate(
        _TEMPLATE + "{{ messages[0].tool_calls }}tool", Tokenizer.from_text(_tokenizer(False)).markup
    )
    return template.render(given.get("messages", []), tools=given.get("tools"), variables=given.get("variables"))


_WORDS = (
    b"normalizer", b"Replace", b"Regex", b"Sequence", b"Prepend", b"Precompiled", b"ByteLevel", b"BPE", b"WordPiece",
    b"Unigram", b"(a+)+", b"Metaspace", b"Digits", b"TemplateProcessing", b"null", b"special", b"Fuse", b"Strip",
)  # fmt: skip
_SYNTAX = tuple(
    word.encode()
    for word in (
        "{{ ", " }}", "{% ", " %}", "{%- ", " -%}", "{# ", " #}", "for x in ", "range(99999)", "endfor", "if ", "endif",
        "set y = ", "macro m()", "endmacro", "call ", "block b", "endblock", "recursive", "break", "generation",
        "endgeneration", "namespace()", "messages", "tools", "loop", ".__class__", "['__init__']", " | tojson", " | map('",
        " | sort", " | join(", " | list", " | string", " | batch(9)", " | indent(9)", " * 10 ** 9", " ** 99", " ~ ", " % ",
        ".format(", ".join(", ".replace('', '", "raise_exception(", "strftime_now('%Y')", "lipsum()", "cycler", "'", '"',
        "(", ")", "[", "]", "{", "}", " is ", " not ", " in ", " == ", "self.b()", "include 'x'", "extends 'x'", "filter ",
        "autoescape true", "endautoescape", "raw", "endraw", "with ", "do ", "trans", "\\ud83d", "1e999", "[-1]", "[::-1]",
    )
)  # fmt: skip

TARGETS = (
    Target("tokenizer", _tokenizers, _read_tokenizer, "json", _WORDS),
    Target("tokenizer-config", _configs, _read_config, "json", (b"content", b"special", b"template", b"{{", b"chatml")),
    Target("template", _templates, _read_template, "text", _SYNTAX),
    Target("messages", _conversations, _read_conversation, "json", (b"role", b"observation", b"metadata", b"<|user|>")),
)
