"""Settings: one way of checking, whoever gives them, and nothing but an EdgeError for what cannot be used."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import edge
from edge.api import scripted_llm
from edge.export.settings import ExportSettings
from edge.runtime.chunk import FinishReason
from edge.runtime.engines.scripted import noise
from edge.runtime.errors import EdgeError, SettingsError
from edge.runtime.llm import LLM
from edge.runtime.rules import help_of
from edge.runtime.session import ChatSession
from edge.runtime.settings import (
    ENGINE_NAMES,
    GENERATION_NAMES,
    SAMPLING_NAMES,
    EngineOptions,
    EngineSettings,
    GenerationOptions,
    GenerationSettings,
    Sampling,
    SpeculationSettings,
    engine_settings,
    generation_settings,
)

HUGE = 10**5000  # which Python will not even print
# Of every JSON type, and what Python adds to them.
VALUES: list[Any] = [
    None, True, False, 0, 1, 5, -1, 2**63, HUGE, -HUGE, 0.0, 0.5, 5.0, 5.5, -1.5, 1e308, math.inf, -math.inf, math.nan,
    "", " ", "5", "auto", "cpu", "Paris!", "\ud800", "a\0b", [], [1], [-1], [1.5], ["a"], [""], ["a", 1], [[1]], [None],
    {}, {"a": 1}, {"5": 1}, {5: 1}, {"5": "x"}, {5: math.nan}, b"hi", object(), np.int64(3), np.float32(0.5),
]  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def test_a_text_is_one_stop_string() -> None:
    """It was iterated: every letter of it stopped the answer."""
    assert generation_settings(stop="Paris!").stop == ("Paris!",)
    assert generation_settings(stop=["Paris!", "Rome"]).stop == ("Paris!", "Rome")
    assert generation_settings(stop=None).stop == ()


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"max_new_tokens": 5.0}, 5),
        ({"max_new_tokens": np.int32(5)}, 5),
        ({"max_new_tokens": None}, None),
        ({"deadline_s": 3}, 3.0),
        ({"logprobs": 0}, 0),
        ({"stop_token_ids": [1, 2.0, np.int64(3)]}, (1, 2, 3)),
        ({"logit_bias": {"17": -1, 3: 2}}, ((3, 2.0), (17, -1.0))),
        ({"temperature": np.float32(0.5)}, 0.5),
        ({"temperature": None}, 0.0),
        ({"ignore_stop_ids": np.True_}, True),
    ],
)
def test_what_is_converted(given: dict[str, Any], kept: object) -> None:
    chosen = generation_settings(**given)
    [name] = given
    found = getattr(chosen.sampling if name in SAMPLING_NAMES else chosen, name)
    assert found == kept
    assert type(found) is type(kept)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_new_tokens": 5.5}, "max_new_tokens is 5.5, expected a whole number, 0 or more"),
        ({"max_new_tokens": "5"}, "max_new_tokens is '5', expected a whole number, 0 or more"),
        ({"max_new_tokens": True}, "max_new_tokens is True, expected"),
        ({"max_new_tokens": -HUGE}, "max_new_tokens is <int>, expected"),
        ({"stop": 5}, "stop is 5, expected a text, or a list of texts, none of them empty"),
        ({"stop": ["a", ""]}, "stop holds '', expected"),
        ({"stop_token_ids": 5}, "stop_token_ids is 5, expected a list of token ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids holds -1, expected"),
        ({"stop_token_ids": "12"}, "stop_token_ids is '12', expected"),
        ({"deadline_s": "3"}, "deadline_s is '3', expected a number above 0"),
        ({"deadline_s": math.nan}, "deadline_s is nan, expected"),
        ({"logprobs": "3"}, "logprobs is '3', expected a whole number from 0 to 20"),
        ({"constraint": {"type": "object"}}, "constraint is {'type': 'object'}, expected an edge.Constraint"),
        ({"logit_bias": {"a": 1}}, "logit_bias holds 'a', expected a mapping"),
        ({"temperature": "hot"}, "temperature is 'hot', expected a number from 0 up"),
        ({"min_new_tokens": 5, "max_new_tokens": 4}, "min_new_tokens is 5, expected 0 to max_new_tokens, 4"),
        ({"max_new_tokns": 5}, "unknown setting 'max_new_tokns', did you mean 'max_new_tokens'"),
    ],
)
def test_what_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as raised:
        generation_settings(**given)
    assert str(raised.value).startswith(message)
    assert raised.value.param == next(iter(given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_context": "512"}, "max_context is '512', expected a whole number, 1 or more"),
        ({"kv_cache_bytes": "2GB"}, "kv_cache_bytes is '2GB', expected"),
        ({"threads": -1}, "threads is -1, expected a whole number from 1 to 1024"),
        ({"device": ""}, "device is '', expected a text"),
        ({"device": 5}, "device is 5, expected"),
        ({"dynamic_quantization_group": -4}, "dynamic_quantization_group is -4, expected"),
        ({"kv_cache_share": 0}, "kv_cache_share is 0, expected a number above 0 and at most 1"),
        ({"kv_precision": "f8"}, "kv_precision is 'f8', expected f32, f16, bf16, u8, i8 or u4"),
        ({"reproducible": 1}, "reproducible is 1, expected true or false"),
    ],
)
def test_engine_settings_that_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as raised:
        EngineSettings(**given)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize("name", ["engine", "device"])
def test_a_name_is_short_and_so_is_what_is_said_of_another(name: str) -> None:
    with pytest.raises(
        SettingsError, match=rf"{name} is too long \(1,000,000 characters; at most 100\), expected"
    ) as said:
        engine_settings(**{name: "x" * 1_000_000})  # type: ignore[arg-type]
    assert len(str(said.value)) < 200


def test_threads_are_bounded_by_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """1,024 of them on two processors take half a minute to load what else takes a second; 5,000 never ended."""
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert EngineSettings(threads=64).threads == 64
    with pytest.raises(SettingsError, match=r"threads is 65, expected .* 1 to 64 on this machine, which has 2 proc"):
        EngineSettings(threads=65)
    monkeypatch.setattr("os.cpu_count", lambda: 128)
    assert EngineSettings(threads=512).threads == 512
    with pytest.raises(SettingsError, match="threads is 513"):
        EngineSettings(threads=513)


@pytest.mark.parametrize("path", ["x" * 256, "a/" * 3000 + "b", "a/" + "ü" * 128])
def test_a_path_that_no_system_takes_is_refused(path: str) -> None:
    """The system's own error came from wherever it was first used, and quoted the whole of it."""
    for options in ({"bundle": path}, {"bundle": "x", "draft_store": path}):
        with pytest.raises(SettingsError, match=r"is too long \([0-9,]+ bytes, ") as said:
            edge.load(**options)  # type: ignore[arg-type]
        assert len(str(said.value)) < 200


def test_paths_up_to_what_systems_take() -> None:
    for path in ("x" * 255, "ü" * 127, ".", "..", "/", "a b", "-"):
        with pytest.raises(EdgeError, match=r"no such path|so it is not a bundle"):
            edge.load(path)


def test_no_device_is_the_default_one() -> None:
    assert EngineSettings(device=None) == EngineSettings()  # type: ignore[arg-type]  # as JSON gives it


@pytest.mark.parametrize("name", ["npu", "ONNX", "OpenVINO", "ort", "onnxruntime"])
def test_an_unknown_engine_is_refused(tiny_bundle: Path, name: str) -> None:
    """It was OpenVINO on the CPU, without a word."""
    with pytest.raises(SettingsError, match=f"engine '{name}' is unknown.* known are auto, openvino .*, onnx "):
        edge.load(tiny_bundle, engine=name)


def test_options_are_the_fields() -> None:
    """Keywords that checkers and editors know are those that are taken, and None is allowed for each."""
    assert set(GenerationOptions.__annotations__) | set(EngineOptions.__annotations__) >= {"max_new_tokens", "threads"}
    for options, names in (
        (GenerationOptions, GENERATION_NAMES | SAMPLING_NAMES | {"sampling"}),
        (EngineOptions, ENGINE_NAMES),
    ):
        hints = get_type_hints(options)
        assert set(hints) == names - {"device"}
        assert all(type(None) in get_args(hint) for hint in hints.values())


@pytest.mark.parametrize("kind", [Sampling, GenerationSettings, EngineSettings, SpeculationSettings])
def test_every_field_has_help_and_a_default_that_it_takes(kind: type[Any]) -> None:
    assert kind() == kind(**{spec.name: None for spec in fields(kind)})
    assert hash(kind()) == hash(kind())
    assert all(help_of(spec) for spec in fields(kind) if spec.name != "sampling")


def finishes(run: Callable[[], object]) -> object:
    """What a call gives, or the text of its EdgeError, which is as good; no other exception is."""
    try:
        return run()
    except EdgeError as error:
        return str(error) or pytest.fail("an error without a message")


@pytest.fixture(scope="module")
def llm() -> LLM:
    return scripted_llm(noise(), max_context=64, num_blocks=16)


NAMES = sorted(GENERATION_NAMES | SAMPLING_NAMES)


def check(llm: LLM, options: dict[str, Any]) -> None:
    """A run is right where it ends for a reason that there is, within its limit and the context."""
    answer = finishes(lambda: llm.generate([1, 2, 3], **options).answer())
    if not isinstance(answer, edge.Answer):
        return
    assert answer.finish_reason in get_args(FinishReason)
    limit = options.get("max_new_tokens")
    assert len(answer.token_ids) <= (61 if limit is None else min(int(limit), 61))
    assert llm.stats.running == llm.stats.waiting == 0


@pytest.mark.parametrize("name", NAMES)
def test_every_keyword_takes_any_value_or_refuses_it(llm: LLM, name: str) -> None:
    for value in VALUES:
        check(llm, {name: value})


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(NAMES), JSON, min_size=1, max_size=3))
def test_any_json_as_keywords(llm: LLM, options: dict[str, Any]) -> None:
    check(llm, options)


@pytest.mark.parametrize("name", sorted(ENGINE_NAMES | {"speculation", "draft_store"}))
def test_every_keyword_of_a_load_takes_any_value_or_refuses_it(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)  # a draft store is a file
    for value in VALUES:
        options = {name: value} | ({"speculation": True} if name == "draft_store" else {})
        loaded = finishes(lambda options=options: edge.load(tiny_bundle, **options))  # type: ignore[misc]
        if isinstance(loaded, LLM):
            if loaded.engine.info.max_context > 4:
                answer = loaded.generate([1, 2], max_new_tokens=2, ignore_stop_ids=True).answer()
                assert answer.finish_reason == "length"
            loaded.close()


@pytest.mark.parametrize("name", [spec.name for spec in fields(ExportSettings)])
def test_every_keyword_of_an_export_takes_any_value_or_refuses_it(name: str) -> None:
    for value in VALUES:
        finishes(lambda value=value: ExportSettings(**{name: value}))  # type: ignore[misc]


METHODS: dict[str, Callable[[LLM, Any, Path], object]] = {
    "generate": lambda llm, value, _: llm.generate(value, max_new_tokens=2).answer(),
    "chat": lambda llm, value, _: llm.chat(value, max_new_tokens=2).answer(),
    "batch": lambda llm, value, _: llm.generate_batch(value, max_new_tokens=2),
    "batch of one": lambda llm, value, _: llm.generate_batch([value], max_new_tokens=2),
    "sample": lambda llm, value, _: llm.sample(value, 2, max_new_tokens=2),
    "sample n": lambda llm, value, _: llm.sample([1, 2], value, max_new_tokens=2),
    "render": lambda llm, value, _: llm.render(value),
    "render one": lambda llm, value, _: llm.render([value]),
    "content": lambda llm, value, _: llm.render([{"role": "user", "content": value}]),
    "role": lambda llm, value, _: llm.render([{"role": value, "content": "Hello"}]),
    "system prefix": lambda llm, value, _: llm.system_prefix(value),
    "pin": lambda llm, value, _: llm.prefixes.pin(value),
    "save": lambda llm, value, folder: llm.prefixes.save(value, folder / "prefix"),
    "save path": lambda llm, value, _: llm.prefixes.save([1, 2], value) if not isinstance(value, str) else None,
    "load path": lambda llm, value, _: llm.prefixes.load(value),
    "document": lambda llm, value, _: llm.add_document(value),
    "prompt": lambda llm, value, _: llm.generate(edge.Prompt(value), max_new_tokens=2).answer(),
    "keys": lambda llm, value, _: llm.generate(edge.Prompt([1, 2], value), max_new_tokens=2).answer(),
    "positions": lambda llm, value, _: llm.generate(edge.Prompt([1], None, value), max_new_tokens=2).answer(),
    "embeddings": lambda llm, value, _: llm.generate(edge.Prompt([1], embeddings=value), max_new_tokens=2).answer(),
    "session": lambda llm, value, _: list(ChatSession(llm).send(value, max_new_tokens=2)),
    "session system": lambda llm, value, _: list(ChatSession(llm, value).send("Hello", max_new_tokens=2)),
    "load": lambda _, value, __: edge.load(value),
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_any_value_or_refuses_it(llm: LLM, method: str, tmp_path: Path) -> None:
    for value in VALUES:
        finishes(lambda value=value: METHODS[method](llm, value, tmp_path))  # type: ignore[misc]
    llm.prefixes.unpin_all()
