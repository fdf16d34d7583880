"""What an answer may look like: JSON, a schema, a regular expression or a grammar, as masks over the vocabulary.

In: a tokenizer and a constraint. Out: for every step the ids that may come next. Knows nothing about logits beyond
their order, or about sampling. The work is done by guidance-ai/llguidance, an optional dependency that is imported when
the first constraint starts.

JSON is written as Python's json.dumps writes it by default: one space behind a comma or colon of the structure and no
other white space, so that a model cannot fill the answer with it, and so that more of the text is forced. A schema may
choose otherwise with llguidance's own "x-guidance" key. Nothing that a schema demands is dropped: a keyword that
llguidance does not implement is refused, and so is a schema that it warns about. Keywords that JSON Schema does not
know stay without effect, as its specification wants it. Properties come in the order of the schema.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.runtime.arrays import Ids, Logits
from edge.runtime.constraint import Constraint
from edge.runtime.errors import GenerationError, SettingsError, TokenizerError, telling_line
from edge.runtime.extras import install_command
from edge.runtime.tokenizer import Tokenizer


class Constraints:
    """Starts constraints over one tokenizer.

    num_tokens: ids of a row of logits, at least as many as the tokenizer has. stop_ids: all ids that end an answer,
    each of them allowed where the text may end. The library reads the tokenizer when the first constraint starts:
    about 1.5 s and 130 MB for GLM-4's 151,343 tokens (two cores of an AMD EPYC, llguidance 1.9.1).
    """

    def __init__(self, tokenizer: Tokenizer, num_tokens: int, stop_ids: Collection[int]) -> None:
        self._ours = tokenizer
        self._num_tokens = num_tokens
        self._stop_ids = sorted(stop_ids)

    def start(self, constraint: Constraint) -> ConstraintState:
        """The state before the first token of an answer.

        Raises SettingsError when llguidance is not installed, when it refuses the constraint, and when nothing can
        match it; TokenizerError when it does not read the tokenizer.
        """
        llguidance, tokenizer = self._library, self._tokenizer
        try:
            grammar = _grammar(llguidance.LLMatcher, constraint)
            matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0)
        except ValueError as error:  # text that is no Unicode
            raise SettingsError(f"the {constraint.kind} constraint is refused: {_reason(str(error))}") from error
        problems: list[str] = [matcher.get_error()] if matcher.is_error() else matcher.get_grammar_warnings()
        if problems:
            raise SettingsError(f"the {constraint.kind} constraint is refused: {_reason(problems[0])}")
        state = ConstraintState(matcher, self._special, np.array(self._stop_ids, np.int64), self._num_tokens)
        try:
            state.allowed()
        except GenerationError as error:
            raise SettingsError(f"the {constraint.kind} constraint cannot be used: {error}") from error
        return state

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
            raise SettingsError("a constraint needs a stop id to end the answer with, and this model has none")
        try:
            text = _without_markup(self._ours.to_json())
            return self._library.LLTokenizer(text, n_vocab=self._num_tokens, eos_token=self._stop_ids)
        except (ValueError, KeyError, TypeError) as error:
            raise TokenizerError(f"llguidance does not read the tokenizer ({_reason(str(error))})") from error

    @cached_property
    def _special(self) -> Ids:
        """Ids of special tokens, and of the byte 255, which no UTF-8 has and which marks them in the library."""
        is_special = self._tokenizer.is_special_token
        return np.array([i for i in range(self._num_tokens) if is_special(i)], np.int64)


class ConstraintState:
    """How far one answer has come through its constraint. Made by `Constraints.start`."""

    def __init__(self, matcher: Any, special: Ids, stop_ids: Ids, num_tokens: int) -> None:  # of llguidance, no types
        self._matcher = matcher
        self._special = special
        self._stop_ids = stop_ids
        self._num_tokens = num_tokens

    @property
    def finished(self) -> bool:
        """Whether nothing but a stop id may follow, or one has come."""
        stopped: bool = self._matcher.is_stopped()
        return stopped

    def allowed(self) -> npt.NDArray[np.bool_]:
        """(num_tokens,) which ids may come next: text within the constraint, and all stop ids where it may end.

        Other special tokens never may. Raises GenerationError when the constraint has become too complex to follow, or
        when nothing may come.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()  # after an error the library allows the end
        allowed = np.unpackbits(bits, count=self._num_tokens, bitorder="little").view(np.bool_)
        allowed[self._special] = False
        allowed[self._stop_ids] = self._matcher.is_accepting()
        if not allowed.any():
            raise GenerationError("the constraint allows no token here; a grammar cannot ask for special tokens")
        return allowed

    def mask(self, logits: Logits) -> Logits:
        """A copy of a row (num_tokens,) with -inf at every id that may not come next. Raises as `allowed` does."""
        return np.where(self.allowed(), logits, np.float32(-np.inf))

    def advance(self, token_id: int) -> None:
        """Take a token of the answer. Raises GenerationError for one that may not come; the state is then of no use."""
        if not self._matcher.consume_token(token_id):
            raise GenerationError(f"token id {token_id} may not come here: {_reason(self._matcher.get_error())}")

    def forced(self) -> list[int]:
        """The ids that are bound to come next, as far as that is known without the model; often none.

        They are drafts: a model may spell the same text with other tokens, so they are verified as any draft is.
        """
        ids: list[int] = self._matcher.compute_ff_tokens()
        return ids

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GenerationError(f"the constraint cannot be followed further: {_reason(self._matcher.get_error())}")


def _grammar(matcher: Any, constraint: Constraint) -> str:
    """The constraint in llguidance's own form."""
    if constraint.kind == "regex":
        return str(matcher.grammar_from_regex(constraint.text))
    if constraint.kind == "lark":
        return str(matcher.grammar_from_lark(constraint.text))
    schema = constraint.text if constraint.kind == "json_schema" else '{"type": "object"}'
    layout = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
    return str(matcher.grammar_from_json_schema(schema, defaults=layout))


def _without_markup(tokenizer_json: str) -> str:
    """A tokenizer.json whose special tokens have names that no text has: U+10FFFD and the id.

    Else the library would read forced text such as "<|user|>" as the special token, and allow that alone.
    """
    content = json.loads(tokenizer_json)
    vocab = content["model"]["vocab"]
    for token in content["added_tokens"]:
        if token["special"]:
            name = f"\U0010fffd{token['id']}"
            if token["content"] in vocab:
                vocab[name] = vocab.pop(token["content"])
            token["content"] = name
    content["post_processor"] = None  # it names them too; nothing is to be added to text
    return json.dumps(content, ensure_ascii=False)


def _reason(message: str) -> str:
    """What is wrong, by llguidance's message, without a list of our own names."""
    return telling_line(message).partition("; following special tokens are available")[0]
