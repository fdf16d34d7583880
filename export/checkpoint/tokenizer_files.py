"""The tokenizer.json of a bundle, made from the files in which a checkpoint's tokenizer is published.

In: a tokenizer.json, and the files next to it that affect its tokens. Out: the text of a tokenizer.json for use, and
warnings about it. Knows nothing about models, prompts or GGUF.

As huggingface/transformers (4.57.6) loads it: text is neither truncated nor padded, whatever tokenizer.json says about
that; tokens of `added_tokens_decoder` in tokenizer_config.json, or else of added_tokens.json, are added where they are
missing, and so are those that have a name such as pad_token; `add_prefix_space` is taken from tokenizer_config.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from edge.export.checkpoint.build_tokenizer import added_token, check_added, special_tokens
from edge.runtime.chat import MORE_TOKENS, NAMED_TOKENS, named_tokens, token_text
from edge.runtime.errors import ConfigError, TokenizerError, shown
from edge.runtime.files import read_file
from edge.runtime.json_reader import parse_json, read_json_object
from edge.runtime.tokenizer import MOST_IDS, Tokenizer
from edge.runtime.tokenizer_json import ADVICE

CONFIG, SPECIAL_TOKENS_MAP, ADDED_TOKENS = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
_DECODER = "added_tokens_decoder"


@dataclass(frozen=True)
class Beside:
    """What the files next to a tokenizer.json say about its tokens."""

    config: Mapping[str, object]  # tokenizer_config.json, with special_tokens_map.json where that applies
    added: Mapping[int, AddedToken]  # by the ids that the files give them
    decides: bool = True  # whether it wins for tokens that tokenizer.json has an id for too

    @property
    def names(self) -> dict[str, str | list[str]]:
        """Special tokens by the names that templates know them by."""
        return named_tokens(self.config)

    @property
    def special(self) -> list[AddedToken]:
        """Tokens that have a name, in the order in which they would be added."""
        given = [self.config.get(name) for name in NAMED_TOKENS]
        tokens = [*given, *_listed(self.config.get(MORE_TOKENS))]
        return [_special(token) for token in tokens if token_text(token)]


def read_config(folder: Path) -> dict[str, object]:
    """tokenizer_config.json; empty where there is none. Raises ConfigError."""
    return _read(folder / CONFIG)


def read_beside(folder: Path) -> Beside:
    """What the files in a folder say; empty where it has none. Raises TokenizerError and ConfigError."""
    config = read_config(folder)
    if config.get(_DECODER) is not None:
        return Beside(config, special_tokens(config))
    names = _read(folder / SPECIAL_TOKENS_MAP)
    more = [token for given in (config, names) for token in _listed(given.get(MORE_TOKENS))]
    config = config | names | ({MORE_TOKENS: more} if more else {})
    special = {token.content for token in Beside(config, {}).special}
    added: dict[int, AddedToken] = {}
    for text, i in _read(folder / ADDED_TOKENS).items():
        if not text or type(i) is not int or i < 0:
            raise TokenizerError(f"{folder / ADDED_TOKENS}: {shown(text)} is {shown(i)}, expected an id; {ADVICE}")
        added[i] = AddedToken(text, special=text in special, normalized=text not in special)
    return Beside(config, added, decides=False)


def usable_tokenizer(path: Path, beside: Beside | None = None) -> tuple[str, tuple[str, ...]]:
    """The text of a tokenizer.json for use, and warnings about it. Raises TokenizerError.

    The text is that of the file unless something in it has to be changed.
    """
    raw = read_file(path, TokenizerError, ADVICE)
    data = parse_json(raw, str(path), TokenizerError, ADVICE, unique_keys=True)
    if not isinstance(data, dict):
        raise TokenizerError(f"{path} holds {shown(data)}, expected a JSON object; {ADVICE}")
    text = raw.decode("utf-8-sig")
    if _clean(data, {} if beside is None else beside.config, beside is not None):
        text = json.dumps(data, ensure_ascii=False)
    Tokenizer.from_text(text)  # refuses what cannot be used, before the library gets the text again
    library = tokenizers.Tokenizer.from_str(text)
    if (largest := max(library.get_vocab(with_added_tokens=True).values(), default=0)) > MOST_IDS:
        raise TokenizerError(f"{path} has the id {largest:,}, expected at most {MOST_IDS:,}; {ADVICE}")
    declared = {entry["id"]: entry["content"] for entry in data.get("added_tokens") or []}
    if beside is not None:
        if not beside.decides:
            beside = replace(beside, added={i: token for i, token in beside.added.items() if i not in declared})
        if missing := _missing(library, beside):
            check_added(missing)
            library.add_tokens(missing)
            text = library.to_str()
            Tokenizer.from_text(text)
        declared |= {i: token.content for i, token in beside.added.items()}
    return text, _moved(library, declared)


def _clean(data: dict[str, Any], config: Mapping[str, object], has_config: bool) -> bool:
    """Remove what is for training, in place; returns whether anything was removed."""
    changed = False
    for key in ("truncation", "padding"):
        if data.get(key) is not None:
            data[key], changed = None, True
    model, cutting = data.get("model"), data.get("pre_tokenizer")
    if isinstance(model, dict) and model.get("dropout") is not None:
        model["dropout"], changed = None, True
    if has_config and isinstance(cutting, dict) and cutting.get("type") == "ByteLevel":
        prefix = config.get("add_prefix_space") is True
        if cutting.get("add_prefix_space") != prefix:
            cutting["add_prefix_space"], changed = prefix, True
    return changed


def _missing(library: Any, beside: Beside) -> list[AddedToken]:
    """The tokens to add: those that the tokenizer lacks, or has differently from the files next to it."""
    known = library.get_added_tokens_decoder().values()
    as_known = {repr(token) for token in known}
    missing = [token for _, token in sorted(beside.added.items()) if repr(token) not in as_known]
    special = {token.content for token in beside.special}
    for token in missing:
        token.special = token.special or token.content in special
    texts = {token.content for token in (*known, *missing)}
    for token in beside.special:
        if token.content not in texts:
            missing.append(token)
            texts.add(token.content)
    return missing


def _moved(library: Any, declared: Mapping[int, str]) -> tuple[str, ...]:
    """A warning where tokens get other ids than the files give them, because the library numbers them itself."""
    moved = [(i, text) for i, text in declared.items() if library.token_to_id(text) != i]
    if not moved:
        return ()
    i, text = moved[0]
    return (
        f"{len(moved)} tokens get other ids than the tokenizer's files say, first {shown(text)}: "
        f"{library.token_to_id(text)} instead of {i}; the files may be of different models",
    )


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _special(given: object) -> AddedToken:
    if isinstance(given, Mapping):
        token = added_token(given)
        token.special = True
        return token
    return AddedToken(str(given), special=True)


def _read(path: Path) -> dict[str, object]:
    return read_json_object(path, ConfigError, "download it again") if path.is_file() else {}
