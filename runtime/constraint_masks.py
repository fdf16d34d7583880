"""What a constraint (JSON, a schema, a regular expression or a grammar) allows next, as masks over the vocabulary.

In: a tokenizer and a constraint. Out: for every step, the ids that may come next. Knows nothing about logits beyond
their order, or about sampling. The work is done by guidance-ai/llguidance, an optional dependency that is imported when
the first constraint starts.

JSON is written as Python's json.dumps writes it by default: one space after a comma or colon of the structure and no
other white space, so that a model cannot fill the answer with it, and more of the text is forced. A schema may choose
differently with llguidance's own "x-guidance" key. Nothing that a schema requires is dropped: a keyword that llguidance
does not implement is refused, and so is a schema that it warns about, unless the schema itself asks for leniency with
{"x-guidance": {"lenient": true}}. Keywords unknown to JSON Schema have no effect, as its specification demands, and
neither have formats that llguidance does not know (`json_schema`). Properties come in the order of the schema.

A constraint that cannot be completed is refused at the start, before anything is written: one that the library refuses,
one that would end the process (the library has no limit on how deep rules and $refs go), and one in which a search
finds a dead end (`dead_ends`).
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Collection, Iterator
from functools import cached_property
from importlib.util import find_spec
from itertools import takewhile
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.runtime.arrays import Ids, Logits
from edge.runtime.constraint import Constraint
from edge.runtime.dead_ends import dead_end
from edge.runtime.errors import GenerationError, SettingsError, TokenizerError, shown, telling_line
from edge.runtime.extras import install_command
from edge.runtime.json_reader import parse_json
from edge.runtime.json_schema import Schema, prepare_schema
from edge.runtime.tokenizer import Tokenizer

# What the library reads within about two seconds.
MAX_CHARACTERS = {"json_schema": 1_000_000, "json": 0, "regex": 50_000, "lark": 500_000}
MAX_RULES = 500  # of a grammar: a chain of 3,000 overflowed the library's stack
_RULE = re.compile(r"[A-Za-z_]\w*\s*(?:\[[^]\n]*\]|\{[^}\n]*\}|\.-?\d+)?\s*:")
# How JSON is written; keys of llguidance's own "x-guidance".
LAYOUT = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
_KEPT = 64  # constraints that are kept ready to start
_WORDS = {  # the library's names of errors -> words
    "NoExtension": "nothing may follow",
    "NoExtensionBias": "nothing may follow",
    "ParserTooComplex": "it is too complex to follow",
    "LexerTooComplex": "it is too complex to follow",
}


class Constraints:
    """Starts constraints over one tokenizer.

    num_tokens: ids in a row of logits; higher ids of the tokenizer never come. stop_ids: all ids that end an answer,
    each of them allowed where the text may end. The library reads the tokenizer when the first constraint starts: about
    1.5 s and 130 MB for GLM-4's 151,343 tokens (two cores of an AMD EPYC, llguidance 1.9.1).
    """

    def __init__(self, tokenizer: Tokenizer, num_tokens: int, stop_ids: Collection[int]) -> None:
        self._ours = tokenizer
        self._num_tokens = num_tokens
        self._stop_ids = sorted(i for i in stop_ids if 0 <= i < num_tokens)
        self._ready: OrderedDict[Constraint, Any] = OrderedDict()  # matchers at their beginning, to be copied

    @property
    def available(self) -> bool:
        """Whether any constraint can be started: llguidance is installed, and the model has an id to stop with."""
        return bool(self._stop_ids) and find_spec("llguidance") is not None

    def prepared(self, schema: Schema) -> Schema:
        """Return a JSON schema as the library can follow it, changed in place. Raises SettingsError."""
        return prepare_schema(schema, self._knows_format, self._knows_dialect)

    def start(self, constraint: Constraint) -> ConstraintState:
        """Return the state before the first token of an answer.

        Raises SettingsError when llguidance is not installed or refuses the constraint, and when the constraint is too
        large or leads nowhere; TokenizerError when llguidance cannot read the tokenizer.
        """
        matcher = self._ready.pop(constraint, None)  # popped and put back: the last used is the last to be dropped
        if matcher is None:
            matcher = self._checked(constraint)
            if len(self._ready) >= _KEPT:
                self._ready.popitem(last=False)
        self._ready[constraint] = matcher
        return self._state(matcher.deep_copy())

    def _state(self, matcher: Any) -> ConstraintState:
        return ConstraintState(matcher, self._special, np.array(self._stop_ids, np.int64), self._num_tokens)

    def _checked(self, constraint: Constraint) -> Any:
        """Return the library's matcher for a constraint. Raises as `start` does."""
        llguidance, tokenizer, kind = self._library, self._tokenizer, constraint.kind
        if len(constraint.text) > MAX_CHARACTERS[kind]:
            raise SettingsError(
                f"the {kind} constraint has {len(constraint.text):,} characters, expected at most "
                f"{MAX_CHARACTERS[kind]:,}; make it smaller"
            )
        try:
            grammar, schema = self._grammar(constraint)
            matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0)
        except ValueError as error:  # text that is not valid Unicode
            raise SettingsError(f"the {kind} constraint is refused: {_reason(str(error))}") from error
        if matcher.is_error():
            raise SettingsError(f"the {kind} constraint is refused: {_reason(matcher.get_error())}")
        if problems := [said for said in matcher.get_grammar_warnings() if not _asked_for(said, schema)]:
            raise SettingsError(f"the {kind} constraint is refused: {_reason(problems[0])}")
        try:
            self._state(matcher.deep_copy()).allowed()
        except GenerationError as error:
            raise SettingsError(f"the {kind} constraint cannot be used: {error}") from error
        self._check_leads_somewhere(kind, grammar, schema)
        return matcher

    def _check_leads_somewhere(self, kind: str, grammar: str, schema: Schema) -> None:
        """Raises SettingsError."""
        matcher = self._library.LLMatcher(self._bytes, grammar, log_level=0)
        if matcher.is_error():  # a grammar that names tokens: over bytes there are none
            return
        if (found := dead_end(matcher, _names(schema))) is not None:
            text, reason = found
            place = f"after {shown(text)} " if text else ""
            said = _reason(reason) if reason else _WORDS["NoExtension"]
            advice = "change the schema" if schema else "change it"
            raise SettingsError(f"the {kind} constraint leads nowhere: {place}{said}; {advice}")

    def _grammar(self, constraint: Constraint) -> tuple[str, Schema]:
        """Return the constraint in llguidance's form, and the schema in it. Raises SettingsError if it is too large."""
        matcher, text = self._library.LLMatcher, constraint.text
        if constraint.kind == "regex":
            return str(matcher.grammar_from_regex(text)), {}
        if constraint.kind == "lark":
            if (count := len(_RULE.findall(text))) > MAX_RULES:
                raise SettingsError(f"the grammar has {count:,} rules, expected at most {MAX_RULES}; make it smaller")
            for embedded in _embedded_schemas(text):
                self.prepared(embedded)
            return str(matcher.grammar_from_lark(text)), {}
        schema: Schema = {"type": "object"}
        if constraint.kind == "json_schema":
            schema = parse_json(text, "the JSON schema", SettingsError, "correct it")
            schema = self.prepared(schema)
        return str(matcher.grammar_from_json_schema(json.dumps(schema), defaults=LAYOUT)), schema

    def _knows_format(self, name: str) -> bool:
        return self._accepts({"type": "string", "format": name})

    def _knows_dialect(self, uri: str) -> bool:
        return self._accepts({"$schema": uri, "type": "string"})

    def _accepts(self, schema: Schema) -> bool:
        """Whether the library accepts a schema; its versions know different formats."""
        matcher = self._library.LLMatcher
        return not matcher.validate_grammar(matcher.grammar_from_json_schema(json.dumps(schema)))

    @cached_property
    def _library(self) -> Any:
        try:
            import llguidance
        except ImportError as error:
            raise SettingsError(
                "JSON, regex and grammar constraints need llguidance, which is not installed; "
                f"run: {install_command('grammar')}"
            ) from error
        return llguidance

    @cached_property
    def _tokenizer(self) -> Any:
        if not self._stop_ids:
            raise SettingsError("a constraint needs a stop id to end the answer, and this model has none")
        try:
            text = _without_markup(self._ours.to_json())
            size = max(self._num_tokens, self._ours.num_tokens)
            return self._library.LLTokenizer(text, n_vocab=size, eos_token=self._stop_ids)
        except (ValueError, KeyError, TypeError) as error:
            raise TokenizerError(f"llguidance cannot read the tokenizer ({_reason(str(error))})") from error

    @cached_property
    def _bytes(self) -> Any:
        """A tokenizer of single bytes, over which a step takes a microsecond."""
        return self._library.LLTokenizer("byte")

    @cached_property
    def _special(self) -> Ids:
        """Ids of special tokens, and of the byte 255, which marks them in the library and never occurs in UTF-8."""
        is_special, size = self._tokenizer.is_special_token, self._tokenizer.vocab_size
        return np.array([i for i in range(size) if is_special(i)], np.int64)


class ConstraintState:
    """How far one answer has come in its constraint. Made by `Constraints.start`."""

    def __init__(self, matcher: Any, special: Ids, stop_ids: Ids, num_tokens: int) -> None:  # llguidance has no types
        self._matcher = matcher
        self._special = special
        self._stop_ids = stop_ids
        self._num_tokens = num_tokens

    @property
    def finished(self) -> bool:
        """Whether only a stop id may follow, or one has come."""
        stopped: bool = self._matcher.is_stopped()
        return stopped

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Return (num_tokens,) which ids may come next: text within the constraint, and all stop ids where it may end.

        Other special tokens are never allowed. Raises GenerationError when the constraint has become too complex to
        follow, or allows nothing.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()  # after an error, the library would allow the end
        allowed = np.unpackbits(bits, bitorder="little").view(np.bool_)
        allowed[self._special] = False
        allowed[self._stop_ids] = self._matcher.is_accepting()
        allowed = allowed[: self._num_tokens]
        if not allowed.any():
            raise GenerationError("the constraint allows no token here; a grammar cannot ask for special tokens")
        return allowed

    def mask(self, logits: Logits) -> Logits:
        """Return a copy of a row with -inf at every id that may not come next. Raises as `allowed` does.

        If the model has fewer rows than its tokenizer has tokens, the row is shorter, and the other tokens never come.
        """
        self._num_tokens = min(self._num_tokens, logits.size)
        return np.where(self.allowed(), logits, np.float32(-np.inf))

    def advance(self, token_id: int) -> None:
        """Take a token of the answer. Raises GenerationError for one that may not come; the state is useless then."""
        if not self._matcher.consume_token(token_id):
            raise GenerationError(f"token id {token_id} may not come here: {_reason(self._matcher.get_error())}")

    def forced(self) -> list[int]:
        """Return the ids that must come next, as far as that is known without the model; often none.

        They are drafts: a model may spell the same text with other tokens, so they are verified like any draft.
        """
        ids: list[int] = self._matcher.compute_ff_tokens()
        return list(takewhile(lambda token_id: token_id < self._num_tokens, ids))

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GenerationError(f"the constraint cannot be followed further: {_reason(self._matcher.get_error())}")


def _asked_for(warning: str, schema: Schema) -> bool:
    """Whether a schema itself asks to ignore what the library warns about."""
    options = schema.get("x-guidance")
    if not isinstance(options, dict):
        return False
    return options.get("lenient") is True or (options.get("coerce_one_of") is True and warning.startswith("oneOf"))


def _embedded_schemas(grammar: str) -> Iterator[Schema]:
    """Yield the JSON schemas within a Lark grammar, each after %json. Invalid JSON is left to the library."""
    for found in re.finditer(r"%json\s*(?=\{)", grammar):
        try:
            schema, _ = json.JSONDecoder().raw_decode(grammar, found.end())
        except RecursionError:
            raise SettingsError("%json in the grammar nests too deeply; make it smaller") from None
        except ValueError:
            continue
        yield schema


def _names(value: object) -> Iterator[str]:
    """Yield the names of properties in a schema, as JSON writes them between quotes."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            if isinstance(named := item.get("properties"), dict):
                yield from (json.dumps(name)[1:-1] for name in named)
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item


def _without_markup(tokenizer_json: str) -> str:
    """Return a tokenizer.json whose special tokens have names that no text has: U+10FFFD and the id.

    Otherwise the library would read forced text such as "<|user|>" as the special token, and allow only that.
    """
    content = json.loads(tokenizer_json)
    vocab = content["model"]["vocab"]
    for token in content["added_tokens"]:
        if token["special"]:
            name = f"\U0010fffd{token['id']}"
            if token["content"] in vocab:
                vocab[name] = vocab.pop(token["content"])
            token["content"] = name
    content["post_processor"] = None  # it names them too, and nothing is to be added to text
    return json.dumps(content, ensure_ascii=False)


def _reason(message: str) -> str:
    """Return what is wrong according to llguidance's message, without its list of our made-up names."""
    said = telling_line(message).partition("; following special tokens are available")[0]
    said = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in said)
    if said.startswith("Unimplemented keys"):
        return (
            f'{said}; remove them from the schema, or add "x-guidance": {{"lenient": true}} to have them ignored, and '
            "check the answer for them yourself"
        )
    if said.startswith("panic"):
        return f"it is too large, or not what llguidance can follow ({shown(said)})"
    return _WORDS.get(said, said if len(said) < 300 else f"{said[:299]}…")
