"""Whether a model, its tokenizer and its chat template belong together, tried before anything is compressed.

In: an open checkpoint, its spec, and its tokenizer as the bundle has it. Out: the ids that end an answer, and warnings;
or a TokenizerError where no conversation would reach the model. Knows nothing about weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edge.export.checkpoint.chat_templates import ADVICE
from edge.export.checkpoint.checkpoint import Checkpoint
from edge.export.checkpoint.fields import Fields
from edge.export.proof import GOLDEN_TEXT
from edge.runtime.chat import ChatTemplate
from edge.runtime.errors import PromptError, TokenizerError, in_words, shown
from edge.runtime.markup import plain_text
from edge.runtime.messages import MessageLike
from edge.runtime.spec import ModelSpec
from edge.runtime.tokenizer import Tokenizer

# GLM's roles are tokens, and each ends the assistant's turn: after a tool call, <|observation|> does. All of its
# generation_config.json files say so; GGUF files and fine-tunes often leave it out.
_GLM_ENDS = ("<|endoftext|>", "<|user|>", "<|observation|>")
_USER, _SYSTEM = "which zebra lives in house 42", "the answer is seven"  # which no tokenizer changes on the way
_TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Finds something.",
        "parameters": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
    },
}
_TAG = re.compile(r"<\|[^|<>\s]{1,40}\|>")
_PADDED = 2  # an embedding has less than twice as many rows as its own tokenizer has tokens


@dataclass(frozen=True)
class PromptCheck:
    """The ids that end an answer, and what is doubtful."""

    stop_ids: tuple[int, ...]
    warnings: tuple[str, ...]


def check_prompts(
    checkpoint: Checkpoint, spec: ModelSpec, tokenizer: Tokenizer, num_ids: int, template: str | None
) -> PromptCheck:
    """Try tokenizer and template.

    tokenizer: limited to the rows of the embedding. num_ids: how many ids it has without that limit.
    Raises TokenizerError where text does not survive the tokenizer, or a message the template.
    """
    rows = spec.vocab_size
    warnings = []
    if num_ids > rows:
        warnings.append(
            f"the tokenizer has ids up to {num_ids - 1} and the embedding {rows} rows: prompts with a token beyond "
            f"{rows - 1} are refused; the embedding was not resized when tokens were added"
        )
    elif num_ids * _PADDED <= rows:
        warnings.append(f"the embedding has {rows} rows and the tokenizer {num_ids} tokens: it may be another model's")
    for text in (_USER, GOLDEN_TEXT):
        _check_text(text, tokenizer, rows)
    stop_ids, doubts = find_stop_ids(checkpoint, tokenizer)
    warnings += doubts
    if template is not None:
        compiled = ChatTemplate(template, tokenizer.markup, checkpoint.named_tokens())
        warnings += _try_template(compiled, tokenizer, rows)
    return PromptCheck(stop_ids, tuple(warnings))


def find_stop_ids(checkpoint: Checkpoint, tokenizer: Tokenizer) -> tuple[tuple[int, ...], list[str]]:
    """Every id that ends an answer: those of generation_config and of config, in this order; and warnings.

    Raises ConfigError for ids that are not numbers.
    """
    given = [*_numbers(checkpoint.generation_config()), *_numbers(checkpoint.config)]
    ids = [i for i in dict.fromkeys(given) if 0 <= i < tokenizer.num_tokens]
    warnings = []
    if impossible := sorted(set(given) - set(ids)):
        warnings.append(
            f"stop ids {in_words(', '.join(map(str, impossible)))} are left out: the model has tokens 0 to "
            f"{tokenizer.num_tokens - 1}"
        )
    glm = [tokenizer.token_id(token) for token in _GLM_ENDS]
    if all(i is not None and i < tokenizer.num_tokens and tokenizer.is_special(i) for i in glm):
        missing = [(i, token) for i, token in zip(glm, _GLM_ENDS, strict=True) if i is not None and i not in ids]
        if missing:
            ids += [i for i, _ in missing]
            named = ", ".join(f"{i} {token}" for i, token in missing)
            warnings.append(
                f"stop ids {named} are added: GLM ends its turns with them, and the checkpoint leaves them out"
            )
    eos = checkpoint.named_tokens().get("eos_token")
    if not ids and isinstance(eos, str) and (i := tokenizer.token_id(eos)) is not None and i < tokenizer.num_tokens:
        ids.append(i)
        warnings.append(f"stop id {i} {shown(eos)} is the tokenizer's eos_token: the model's configuration names none")
    if not ids:
        warnings.append(
            "no token ends an answer, so that each runs to its limit: the checkpoint has no eos_token_id that its "
            "tokenizer knows"
        )
    return tuple(ids), warnings


def possible_ids(fields: Fields, key: str, num_tokens: int) -> tuple[int, ...]:
    """Ids that a configuration gives to a token, without impossible ones: -1 is written for none."""
    value = fields.find(key)
    given = value if isinstance(value, list) else [value]
    return tuple(i for i in given if type(i) is int and 0 <= i < num_tokens)


def _numbers(fields: Fields) -> list[int]:
    """The stop ids that a configuration gives, possible or not. Raises ConfigError."""
    value = fields.find("eos_token_id")
    given = [] if value is None else value if isinstance(value, list) else [value]
    found = [i for i in given if isinstance(i, int) and not isinstance(i, bool)]
    if len(found) < len(given):
        fields.ids("eos_token_id")  # refuses them
    return found


def _check_text(text: str, tokenizer: Tokenizer, rows: int) -> None:
    """Raises TokenizerError where plain text does not survive the tokenizer."""
    ids = tokenizer.encode(text, parse_special=False)
    advice = "the tokenizer is another model's, or damaged; download it again"
    if ids and max(ids) >= rows:
        raise TokenizerError(f"plain text needs token {max(ids)}, and the embedding has {rows} rows; {advice}")
    if text == _USER and text not in tokenizer.decode(ids):
        raise TokenizerError(f"the tokenizer makes {shown(tokenizer.decode(ids))} of {shown(text)}; {advice}")


def _try_template(template: ChatTemplate, tokenizer: Tokenizer, rows: int) -> list[str]:
    """Warnings about a template. Raises TokenizerError where messages do not reach the model."""
    user = {"role": "user", "content": _USER}
    conversations: dict[str, list[MessageLike]] = {
        "a message": [user],
        "a system message": [{"role": "system", "content": _SYSTEM}, user],
        "several turns": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, user],
    }
    failed: dict[str, str] = {}
    rendered: dict[str, str] = {}
    for name, messages in conversations.items():
        _try(name, template, tokenizer, rows, messages, (), rendered, failed)
    if template.convention.tools != "none":
        _try("tools", template, tokenizer, rows, [user], [_TOOL], rendered, failed)
    if "a message" in failed and "a system message" in failed:
        raise TokenizerError(f"the chat template fails at a plain message: {failed['a message']}; {ADVICE}")
    warnings = [
        f"the chat template refuses {name if name != 'a message' else 'what has no system message'}: {why}"
        for name, why in failed.items()
        if name != "a system message"  # Gemma has none, and others
    ]
    if _SYSTEM not in rendered.get("a system message", _SYSTEM):
        warnings.append("the chat template leaves system messages out")
    written = {tag for text in rendered.values() for tag in _TAG.findall(text)}
    if unknown := sorted(tag for tag in written if tokenizer.token_id(tag) is None):
        warnings.append(
            f"the chat template writes {', '.join(unknown[:5])}, for which the tokenizer has no token: it may be "
            "another model's"
        )
    return warnings


def _try(
    name: str,
    template: ChatTemplate,
    tokenizer: Tokenizer,
    rows: int,
    messages: Sequence[MessageLike],
    tools: Sequence[Mapping[str, object]],
    rendered: dict[str, str],
    failed: dict[str, str],
) -> None:
    """Render a conversation, and look for the user's words in its text and its tokens. Raises TokenizerError."""
    try:
        marked = template.render_marked(messages, tools=tools)
        ids = tokenizer.encode_marked(marked)
    except PromptError as error:
        failed[name] = str(error).removeprefix("the chat template refused the messages: ")
        return
    rendered[name] = plain_text(marked)
    if _USER not in rendered[name] or _USER not in tokenizer.decode(ids):
        raise TokenizerError(f"the chat template leaves the user's message out of a prompt with {name}; {ADVICE}")
    if max(ids) >= rows:
        raise TokenizerError(
            f"the chat template needs token {max(ids)}, {shown(tokenizer.token_text(max(ids)))}, and the embedding has "
            f"{rows} rows; {ADVICE}"
        )
