"""Finds a checkpoint's chat template in the places and forms in which templates are published.

In: a folder of a checkpoint with its tokenizer_config.json, or the metadata of a GGUF file. Out: one template, None for
a base model, or a TokenizerError. Knows nothing about what a template does: `prompt_check.py` tries it.

As in huggingface/transformers (4.57.6, tokenization_utils_base.py): files win over tokenizer_config.json; a template
may be text, a mapping or a list of named ones; and of named ones `tool_use` is used where tools are given, otherwise
`default`. These two become one template here, so that a bundle has one file. Beyond what transformers does: a
byte-order mark is not part of the text, {"template": ...} is a template, an empty text is none, and the
chat_template.json of processors is looked at last.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edge.runtime import template_file
from edge.runtime.errors import TokenizerError, in_words, shown
from edge.runtime.json_reader import read_json_object

FILE = "chat_template.jinja"
MORE_FILES = "additional_chat_templates"
PROCESSOR_FILE = "chat_template.json"
ADVICE = (
    f"put a {FILE} that fits the model next to its weights, or an empty one to export the model without a template and "
    "ask it with --raw"
)
_GGUF_KEY = "tokenizer.chat_template"

# Names that GGUF files have instead of a template, for those built into llama.cpp (src/llama-chat.cpp). The templates
# were written for this project from what the models' prompts look like; tools are left to the models' own templates.
_GLM4 = (
    "[gMASK]<sop>{% for message in messages %}{% if message.content %}"
    "<|{{ message.role }}|>{{ message.metadata }}\n{{ message.content }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_GLM_EDGE = (
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{{ '\\n' }}{% endif %}"
)
BUILT_IN = {"chatglm4": _GLM4, "glmedge": _GLM_EDGE, "chatml": _CHATML}


def template_files(folder: Path) -> list[Path]:
    """The files in a folder that hold only templates, in a stable order."""
    files = [folder / FILE, folder / PROCESSOR_FILE, *sorted((folder / MORE_FILES).glob("*.jinja"))]
    return [file for file in files if file.is_file()]


def folder_template(folder: Path, tokenizer_config: Mapping[str, object]) -> str | None:
    """The template of a folder. Raises TokenizerError."""
    found: dict[str, object] = {}
    if (file := folder / FILE).is_file():
        found["default"] = read_template(file)
    for file in sorted((folder / MORE_FILES).glob("*.jinja")):
        found[file.name.removesuffix(".jinja")] = read_template(file)
    if found:
        return choose(found, str(folder))
    if (given := tokenizer_config.get("chat_template")) is not None:
        return choose(given, f"{folder.name}/tokenizer_config.json")
    if (file := folder / PROCESSOR_FILE).is_file():
        return choose(read_json_object(file, TokenizerError, ADVICE).get("chat_template"), str(file))
    return None


def gguf_template(path: Path, metadata: Mapping[str, object]) -> str | None:
    """The template of a GGUF file; a chat_template.jinja beside it wins. Raises TokenizerError."""
    if (file := path.with_name(FILE)).is_file():
        return choose(read_template(file), str(file))
    prefix = f"{_GGUF_KEY}."
    named = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    default = metadata.get(_GGUF_KEY)
    return choose(named | {"default": default} if named and default is not None else default, f"{path}: {_GGUF_KEY}")


def read_template(path: Path) -> str:
    """The text of a template file, with \\n as line ends. Raises TokenizerError."""
    return template_file.read_template(path, TokenizerError, ADVICE)


def choose(given: object, origin: str) -> str | None:
    """One template from any form that templates come in. Raises TokenizerError."""
    if isinstance(given, list):
        names = [part.get("name") if isinstance(part, Mapping) else None for part in given]
        if not given or not all(isinstance(name, str) for name in names):
            raise TokenizerError(
                f"{origin}: the chat template is {shown(given)}, expected a list of named ones; {ADVICE}"
            )
        given = {name: part.get("template") for name, part in zip(names, given, strict=True)}
    if isinstance(given, Mapping):
        if "default" not in given and "template" in given:
            return choose(given["template"], origin)
        if "default" not in given:
            named = in_words(", ".join(map(shown, given))) or "none"
            raise TokenizerError(f"{origin}: of the chat templates ({named}) none is named 'default'; {ADVICE}")
        default, tools = choose(given["default"], origin), choose(given.get("tool_use"), origin)
        return default if default is None or tools is None or tools == default else _either(tools, default)
    if given is None:
        return None
    if not isinstance(given, str):
        raise TokenizerError(f"{origin}: the chat template is {shown(given)}, expected text; {ADVICE}")
    text = given.removeprefix("\ufeff")
    if not text.strip():
        return None
    if "{" in text:
        return text
    if text.strip() in BUILT_IN:
        return BUILT_IN[text.strip()]
    raise TokenizerError(
        f"{origin}: the chat template {shown(text)} has no place for messages; it may be the name of one that is built "
        f"into llama.cpp, of which edgeglm knows {', '.join(BUILT_IN)}; {ADVICE}"
    )


def _either(tools: str, default: str) -> str:
    """One template made of two: the first is used where tools are given. The signs keep white space at the tags."""
    first, second = (text.removesuffix("\n") for text in (tools, default))
    return f"{{%- if tools is not none +%}}{first}{{%+ else +%}}{second}{{%+ endif %}}"
