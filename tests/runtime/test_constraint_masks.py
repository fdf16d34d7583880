"""Constraints: random walks under the mask give text that parses, and masks equal what the language allows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from edge.runtime.constraint import Constraint
from edge.runtime.constraint_masks import Constraints, ConstraintState
from edge.runtime.errors import GenerationError, SettingsError, TokenizerError
from edge.runtime.extras import install_command
from edge.runtime.sampling import Sampler
from edge.runtime.settings import Sampling
from edge.runtime.tokenizer import Tokenizer
from tests import tiny

pytest.importorskip("llguidance", minversion="1.9")

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "grün", "<|user|>"]}, "maxItems": 3},
        "ok": {"type": ["boolean", "null"]},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
LONG_TEXT = "the rest of this sentence is forced"


class Setup:
    """A tokenizer and the constraints over it."""

    def __init__(self, path: Path, stop_ids: tuple[int, ...]) -> None:
        self.tokenizer = Tokenizer(path)
        self.stop_ids = stop_ids
        self.size = self.tokenizer.num_tokens
        self.constraints = Constraints(self.tokenizer, self.size, stop_ids)
        self.bytes = [self.tokenizer.token_bytes(i) for i in range(self.size)]

    def start(self, constraint: Constraint) -> ConstraintState:
        return self.constraints.start(constraint)

    def advance(self, state: ConstraintState, text: str) -> None:
        for token_id in self.tokenizer.encode(text):
            state.advance(token_id)

    def ends(self, state: ConstraintState) -> bool:
        """Whether the text may end; all stop ids agree on it."""
        found = state.allowed()[list(self.stop_ids)]
        assert found.all() == found.any()
        return bool(found.all())

    def walk(self, constraint: Constraint, seed: int, complete: Callable[[str], bool]) -> str:
        """Text of random ids under the mask, to its end; at every step it may end exactly where it is complete."""
        state, rng = self.start(constraint), np.random.default_rng(seed)
        sampler = Sampler(Sampling(1.0, seed=seed), [], self.size)
        text = b""
        for _ in range(400):
            logits = rng.normal(size=self.size).astype(np.float32)
            before, allowed = logits.copy(), state.allowed()
            masked = state.mask(logits)
            np.testing.assert_array_equal(masked, np.where(allowed, before, -np.inf))
            np.testing.assert_array_equal(logits, before)
            try:
                may_end = complete(text.decode())
            except UnicodeDecodeError:
                may_end = False
            assert self.ends(state) == may_end, text
            chosen = sampler.choose(masked)
            assert allowed[chosen]
            state.advance(chosen)
            if chosen in self.stop_ids:
                assert state.finished
                return text.decode()
            assert self.bytes[chosen], "a special token inside the text"
            text += self.bytes[chosen]
        raise AssertionError(f"no end in sight: {text!r}")


@pytest.fixture(scope="module")
def bytes_only(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    """One token a byte."""
    folder = tmp_path_factory.mktemp("bytes")
    tiny.write_tokenizer(folder)
    return Setup(folder / "tokenizer.json", tiny.STOP_IDS)


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    """Tokens of several bytes, parts of characters among them."""
    folder = tmp_path_factory.mktemp("merged")
    tiny.write_tokenizer(folder)
    path = folder / "tokenizer.json"
    trained = tokenizers.Tokenizer.from_file(str(path))
    corpus = [
        json.dumps(SCHEMA, indent=1),
        LONG_TEXT,
        '{"name": "Ada", "age": 36, "ok": null}',
        "grün 你好 😀",
        "ababab",
    ]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=list(tiny.SPECIAL),
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    trained.train_from_iterator(corpus * 3, trainer)
    trained.save(str(path))
    return Setup(path, (0, 1, 2))


@pytest.fixture(scope="module")
def glm4(shared: Path) -> Setup:
    return Setup(shared / "glm4-tokenizer" / "tokenizer.json", (151329, 151336, 151338))


@pytest.fixture(params=["bytes_only", "merged", "glm4"])
def setup(request: pytest.FixtureRequest) -> Setup:
    found: Setup = request.getfixturevalue(request.param)
    return found


def keeps_schema(text: str) -> bool:
    """SCHEMA, written out by hand."""
    try:
        value = json.loads(text)
    except ValueError:
        return False
    assert list(value) == [name for name in SCHEMA["properties"] if name in value]
    assert {"name", "age", "tags"} <= set(value)
    assert isinstance(value["name"], str)
    assert len(value["name"]) <= 12
    assert type(value["age"]) is int
    assert 0 <= value["age"] <= 150
    assert len(value["tags"]) <= 3
    assert all(tag in ("red", "grün", "<|user|>") for tag in value["tags"])
    assert value.get("ok") in (True, False, None)
    assert text == json.dumps(value, ensure_ascii=False) or "\\" in text  # white space as json.dumps
    return True


@pytest.mark.parametrize("seed", range(5))
def test_walks_through_a_schema_keep_it(setup: Setup, seed: int) -> None:
    assert keeps_schema(setup.walk(Constraint.json_schema(SCHEMA), seed, keeps_schema))


@pytest.mark.parametrize(
    "pattern",
    [r"[0-9]{3}-[a-f]{1,4}", r"(ab|abc|你好){1,3}", r"x?y{0,5}", r"\{\"a\": -?[1-9][0-9]{0,4}\}", r"[^a-z\n]{2,4}!"],
)
@pytest.mark.parametrize("seed", range(3))
def test_walks_through_a_regex_match_it(setup: Setup, pattern: str, seed: int) -> None:
    compiled = re.compile(pattern)
    text = setup.walk(Constraint.regex(pattern), seed, lambda text: compiled.fullmatch(text) is not None)
    assert compiled.fullmatch(text)


OPTIONS = ["a", "ab", "abab", 'say "hi"\n', "\\d", "/x/", "grün", "😀", "\x01", "<|user|>"]


def test_every_choice_can_be_made_and_nothing_else(setup: Setup) -> None:
    made = {setup.walk(Constraint.choice(OPTIONS), seed, OPTIONS.__contains__) for seed in range(60)}
    assert made <= set(OPTIONS)
    for option in OPTIONS:
        state = setup.start(Constraint.choice(OPTIONS))
        for byte in option.encode():  # byte by byte, which every tokenizer can
            state.advance(setup.bytes.index(bytes([byte])))
        assert setup.ends(state), option


def test_masks_equal_the_definition(bytes_only: Setup, merged: Setup) -> None:
    """An id is allowed if the text with it begins an option; stop ids where the text is one.

    Where one text alone can follow the library allows only its usual tokens, so of those with merges a part is allowed.
    """
    for setup in (bytes_only, merged):
        options = [option.encode() for option in OPTIONS]
        for start in {option[:n] for option in options for n in range(len(option) + 1)}:
            state = setup.start(Constraint.choice(OPTIONS))
            for byte in start:
                state.advance(setup.bytes.index(bytes([byte])))
            expected = {
                i
                for i, piece in enumerate(setup.bytes)
                if piece and any(option.startswith(start + piece) for option in options)
            }
            if start in options:
                expected |= set(setup.stop_ids)
            found = set(np.flatnonzero(state.allowed()).tolist())
            assert found == expected if setup is bytes_only or not state.forced() else found <= expected, start
            assert found


def test_any_json_object(setup: Setup) -> None:
    def begins(text: str) -> bool:
        state = setup.start(Constraint.json_object())
        try:
            setup.advance(state, text)
        except GenerationError:
            return False
        return setup.ends(state)

    assert begins("{}")
    assert begins('{"a": [1, 2.5e3, {"b": null}], "c": "d\\n"}')
    assert not begins("[1]")
    assert not begins('{"a" : 1}')
    assert not begins('{"a": 1,  "b": 2}')
    assert not begins('{"a": 1,\n"b": 2}')
    assert not begins('{"a": 01}')
    assert not begins(' {"a": 1}')


def test_a_schema_may_choose_its_white_space(merged: Setup) -> None:
    schema = {"x-guidance": {"key_separator": ":", "item_separator": ","}, **SCHEMA}
    state = merged.start(Constraint.json_schema(schema))
    merged.advance(state, '{"name":"Ada","age":36,"tags":["red","red"]}')
    assert state.finished


def test_lark_grammars(setup: Setup) -> None:
    grammar = 'start: "(" start ")" | "x"{1,2}'

    def complete(text: str) -> bool:
        return re.fullmatch(r"(\(*)x{1,2}(\)*)", text) is not None and text.count("(") == text.count(")")

    assert {complete(setup.walk(Constraint.lark(grammar), seed, complete)) for seed in range(8)} == {True}


def test_finished_when_nothing_may_follow(setup: Setup) -> None:
    state = setup.start(Constraint.regex("yes"))
    assert not state.finished
    setup.advance(state, "yes")
    assert state.finished
    assert np.flatnonzero(state.allowed()).tolist() == list(setup.stop_ids)
    assert state.forced() == []
    optional = setup.start(Constraint.regex("a(b)?"))
    setup.advance(optional, "a")
    assert setup.ends(optional)
    assert not optional.finished
    optional.advance(setup.stop_ids[1])
    assert optional.finished


def test_only_stop_ids_end_an_empty_text(setup: Setup) -> None:
    state = setup.start(Constraint.choice([""]))
    assert np.flatnonzero(state.allowed()).tolist() == list(setup.stop_ids)


def test_special_tokens_never_come_inside(setup: Setup) -> None:
    """Not in free text, and not where a grammar leaves every token open."""
    special = [i for i in range(setup.size) if setup.tokenizer.is_special(i)]
    for constraint in (Constraint.regex(r"(?s:.)*x"), Constraint.lark('start: <[*]>* "x"')):
        allowed = setup.start(constraint).allowed()
        assert np.count_nonzero(allowed) > 150
        assert not allowed[special].any()


def test_forced_ids_are_what_the_grammar_leaves(setup: Setup) -> None:
    state = setup.start(Constraint.regex(f"(a|b){LONG_TEXT}(c|d)"))
    assert state.forced() == []
    setup.advance(state, "b")
    forced = state.forced()
    assert LONG_TEXT.startswith(setup.tokenizer.decode(forced))
    assert len(setup.tokenizer.decode(forced)) > len(LONG_TEXT) / 2
    for token_id in forced:  # drafts are verified under the mask, row by row
        assert state.allowed()[token_id]
        state.advance(token_id)


def test_markup_in_forced_text_is_text(setup: Setup) -> None:
    """A special token must not stand for its own name, and its name can be written."""
    for constraint in (Constraint.regex(r"see <\|user\|> there"), Constraint.choice(["see <|user|> there"])):
        state, text = setup.start(constraint), b""
        assert not any(setup.tokenizer.is_special(i) for i in state.forced())
        while not state.finished:
            allowed = state.allowed()
            state.advance(int(allowed.argmax()))
            text += setup.bytes[int(allowed.argmax())]
        assert text == b"see <|user|> there"


def test_states_of_one_tokenizer_are_independent(merged: Setup) -> None:
    a, b = (merged.start(Constraint.choice(["ab", "cd"])) for _ in range(2))
    merged.advance(a, "ab")
    assert a.finished
    assert not b.finished
    merged.advance(b, "cd")


def test_a_token_that_may_not_come(merged: Setup) -> None:
    state = merged.start(Constraint.regex("abc"))
    with pytest.raises(GenerationError, match=r"token id \d+ may not come here: .*doesn't satisfy the grammar"):
        merged.advance(state, "x")
    with pytest.raises(GenerationError, match="cannot be followed further"):
        state.allowed()
    ended = merged.start(Constraint.regex("abc"))
    with pytest.raises(GenerationError, match="token id 1 may not come here"):
        ended.advance(merged.stop_ids[1])


@pytest.mark.parametrize(
    ("constraint", "reason"),
    [
        (Constraint.json_schema({"type": "text"}), "Invalid type: text"),
        (Constraint.json_schema({"type": "array", "uniqueItems": True}), 'Unimplemented keys: ["uniqueItems"]'),
        (Constraint.json_schema({"type": "array", "uniqueItems": True}), '"x-guidance": {"lenient": true}'),
        (Constraint.json_schema({"enum": []}), "Unsatisfiable schema"),
        (Constraint.json_schema({"$ref": "https://example.com/a.json"}), "retrieving it failed"),
        (Constraint.json_schema({"type": "string", "pattern": "(?=a)"}), "look-around"),
        (Constraint.regex("(a"), "unclosed group"),
        (Constraint.regex("(?<!a)b"), "look-around"),
        (Constraint.regex("\ud800"), "surrogates not allowed"),
        (Constraint.lark(""), "Empty grammar"),
        (Constraint.lark("start: thing"), 'unknown name: "thing"'),
        (Constraint.lark('start: start "a"'), "cannot be followed further"),
        (Constraint.lark("start: <|user|>"), 'unknown special token: "<|user|>"'),
        (Constraint.lark("start: <[3]>"), "a grammar cannot ask for special tokens"),
    ],
)
def test_refused_constraints(merged: Setup, constraint: Constraint, reason: str) -> None:
    with pytest.raises(SettingsError, match=f"the {constraint.kind} constraint .*{re.escape(reason)}"):
        merged.start(constraint)


def test_what_is_too_deep_is_refused(merged: Setup) -> None:
    with pytest.raises(SettingsError, match="nest"):
        merged.start(Constraint.regex("(" * 2000 + "a" + ")" * 2000))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Constraint.json_schema('{"type": '),
        lambda: Constraint.json_schema("[1]"),
        lambda: Constraint.json_schema("false"),
        lambda: Constraint.json_schema("[" * 100_000),
        lambda: Constraint.json_schema([1]),  # type: ignore[arg-type]
        lambda: Constraint.json_schema({"a": {1, 2}}),
        lambda: Constraint.json_schema({"maximum": float("nan")}),
        lambda: Constraint.regex(5),  # type: ignore[arg-type]
        lambda: Constraint.choice([]),
        lambda: Constraint.choice("abc"),
        lambda: Constraint.choice(["a", 1]),  # type: ignore[list-item]
        lambda: Constraint("yaml", ""),  # type: ignore[arg-type]
    ],
)
def test_malformed_constraints(make: Callable[[], Constraint]) -> None:
    with pytest.raises(SettingsError, match=r"expected|is not valid JSON|cannot be written as JSON"):
        make()


def test_constraints_can_be_hashed_and_compared() -> None:
    schema: dict[str, Any] = {"type": "object"}
    assert Constraint.json_schema(schema) == Constraint.json_schema(json.dumps(schema))
    assert len({Constraint.regex("a"), Constraint.regex("a"), Constraint.lark("a"), Constraint.json_object()}) == 3


def test_without_the_library(monkeypatch: pytest.MonkeyPatch, bytes_only: Setup) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    constraints = Constraints(bytes_only.tokenizer, 5, (1,))
    with pytest.raises(SettingsError, match=re.escape(install_command("grammar"))):
        constraints.start(Constraint.json_object())


def test_tokenizers_that_cannot_be_used(bytes_only: Setup, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="nowhere"):
        Constraints(Tokenizer(tmp_path / "nowhere"), 5, (1,)).start(Constraint.json_object())
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match="cannot be read"):
        Constraints(Tokenizer(tmp_path / "tokenizer.json"), 5, (1,)).start(Constraint.json_object())
    tiny.write_tokenizer(tmp_path)
    with pytest.raises(SettingsError, match="needs a stop id"):
        Constraints(Tokenizer(tmp_path / "tokenizer.json"), 261, ()).start(Constraint.json_object())


def test_padding_rows_are_never_allowed(tmp_path: Path) -> None:
    tiny.write_tokenizer(tmp_path)
    allowed = (
        Constraints(Tokenizer(tmp_path / "tokenizer.json"), 320, tiny.STOP_IDS)
        .start(Constraint.regex("(?s:.)*"))
        .allowed()
    )
    assert allowed.shape == (320,)
    assert not allowed[261:].any()
    assert allowed[list(tiny.STOP_IDS)].all()


def test_tokens_beyond_the_rows_of_a_model_never_come(tmp_path: Path) -> None:
    """A tokenizer to which tokens were added without resizing the model."""
    tiny.write_tokenizer(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["added_tokens"] += [
        {"id": 261 + i, "content": text, "special": False, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False}
        for i, text in enumerate(["yes", "please", "no"])
    ]  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json")
    for known in (264, 262):  # how many rows the constraint is told of, and then sees
        constraints = Constraints(tokenizer, known, tiny.STOP_IDS)
        state = constraints.start(Constraint.choice(["yes please", "yes now"]))
        row = np.zeros(262, np.float32)
        assert set(np.flatnonzero(np.isfinite(state.mask(row))).tolist()) <= {*tokenizer.encode("y"), 261}
        for token_id in tokenizer.encode("y") + tokenizer.encode("e") + tokenizer.encode("s") + tokenizer.encode(" "):
            state.advance(token_id)
        masked = state.mask(row)
        assert masked.shape == (262,)
        assert np.flatnonzero(np.isfinite(masked)).tolist() == sorted(tokenizer.encode("p") + tokenizer.encode("n"))
        state.advance(tokenizer.encode("p")[0])
        assert all(token_id < 262 for token_id in state.forced())


def test_nothing_heavy_is_imported(tmp_path: Path) -> None:
    tiny.write_tokenizer(tmp_path)
    script = f"""
import sys
from pathlib import Path
from edge.runtime.constraint import Constraint
from edge.runtime.constraint_masks import Constraints
from edge.runtime.tokenizer import Tokenizer
assert "llguidance" not in sys.modules
for name in ("torch", "transformers"):
    sys.modules[name] = None
Constraints(Tokenizer(Path({str(tmp_path)!r}) / "tokenizer.json"), 261, (256,)).start(Constraint.json_object()).forced()
assert "llguidance" in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
