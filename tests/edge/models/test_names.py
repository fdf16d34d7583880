"""What may be the name of a bundle, and what an export is called that was given none."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.models.names import LONGEST, check_name, is_word, key_of, name_for
from edge.runtime.errors import SettingsError


@pytest.mark.parametrize(
    "name", ["glm4", "glm-4-9b.int4", "A b", "模型", "a" * LONGEST, "é", "COM10", "console", "x~1"]
)
def test_names(name: str) -> None:
    assert check_name(name) == name
    assert is_word(name)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "empty"), (".a", "begins"), ("-a", "begins"), ("~a", "begins"), ("a.", "dot"), ("a ", "space"),
        (" a", "space"), ("a:b", ":"), ("a*", r"\*"), ('"', '"'), ("a/b", "/"), ("a\\b", r"\\"), ("con", "Windows"),
        ("NUL.txt", "Windows"), ("Com1", "Windows"), ("lpt¹", "Windows"), ("a\nb", "shown"), ("\x1b[2J", "shown"),
        ("\ud800", "shown"), ("\u202eabc", "shown"), ("a" * (LONGEST + 1), "100 bytes"), ("..", "begins"),
    ],
)  # fmt: skip
def test_what_is_not_a_name(name: str, why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        check_name(name)


@given(st.text(min_size=1))
def test_a_name_has_one_form(text: str) -> None:
    """However its letters were typed; and the form is itself a name."""
    try:
        name = check_name(text)
    except SettingsError:
        return
    assert check_name(name) == name == unicodedata.normalize("NFC", text)
    assert check_name(unicodedata.normalize("NFD", name)) == name
    assert key_of(unicodedata.normalize("NFD", name).upper()) == key_of(name.upper())
    assert is_word(name)


@pytest.mark.parametrize("path", ["", ".", "..", "a/b", "./a", "/a", "a\\b", "a/"])
def test_paths_are_no_words(path: str) -> None:
    assert not is_word(path)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("THUDM/glm-4-9b-chat", "glm-4-9b-chat-int4"),
        ("hf:THUDM/glm-4-9b-chat@main", "glm-4-9b-chat-int4"),
        ("org/name/Model.Q4_K_M.gguf@main", "model-int4"),
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m-instruct-int4"),
        ("glm-4-9b-f16.gguf", "glm-4-9b-int4"),
        ("big-BF16-00001-of-00003.gguf", "big-int4"),
        ("IQ4_XS.gguf", "iq4_xs-int4"),
        ("模型", "模型-int4"),
        ("a b:c*", "a-b-c-int4"),
        ("", "model-int4"),
        ("con", "con-int4"),
    ],
)
def test_a_name_for_a_source(source: str, name: str) -> None:
    assert name_for(source, "int4") == name


def test_a_lora_is_part_of_the_name() -> None:
    assert name_for("glm-4-9b", "int8-asym", "adapters/Museum") == "glm-4-9b-museum-int8-asym"


@given(st.text(), st.text(alphabet="abc0-._é☃ /", max_size=300))
def test_any_source_has_a_name(source: str, more: str) -> None:
    name = name_for(source + more, "int4")
    assert check_name(name) == name
    assert name.endswith("int4")
