"""Messages of the command line speak of options, and its exit codes say whose mistake it was.

Every message is read from the source: what an error is made of, as a literal. Placeholders stand for values.
"""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge import cli
from edge.commands import kinds
from edge.runtime.settings import ENGINE_NAMES, GENERATION_NAMES, SAMPLING_NAMES
from tests.edge.verbs import PARSERS

ROOT = Path(__file__).parents[2]
SETTINGS = ENGINE_NAMES | GENERATION_NAMES | SAMPLING_NAMES | {"draft_store", "speculation"}
OPTIONS = {name: option for verb in cli.VERBS for name, option in cli._options(cli.build_parser(), verb).items()}


def literal(node: ast.expr) -> str:
    """The text of an expression, with an X for what is only known when it runs."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(map(literal, node.values))
    if isinstance(node, ast.BinOp):
        return literal(node.left) + literal(node.right)
    return "X"


def messages() -> Iterator[tuple[str, str]]:
    for folder in ("runtime", "edge", "export", "profiles"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if any(part.is_symlink() for part in path.parents):
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.Call) or not node.args:
                    continue
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                if name.endswith("Error"):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", literal(node.args[0])


def test_no_message_names_a_setting_that_has_an_option() -> None:
    found = list(messages())
    assert len(found) > 500
    wrong = []
    for place, message in found:
        shown = cli._with_options(message, OPTIONS)
        words = set(re.findall(r"(?<![\w.\"'-])[a-z]+_[a-z_]+(?![\w.\"'])|\b[a-z_]+(?==True)", shown))
        if words & SETTINGS & OPTIONS.keys():
            wrong.append((place, shown))
    assert wrong == []


def test_settings_without_an_option_are_few() -> None:
    """Whatever the command line can set, a message can name as it is typed."""
    assert set(SETTINGS - OPTIONS.keys()) == {
        "constraint",
        "dynamic_quantization_group",
        "expected_prompt_tokens",
        "ignore_stop_ids",
        "inference_precision",
        "logit_bias",
        "logprobs",
        "min_new_tokens",
        "prompt_logprobs",
        "stop_token_ids",
        "turn_pictures",
    }


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("draft_store is what X; give speculation=True too", "--draft-store is what X; give --speculate too"),
        ("load without speculation", "load without speculation"),
        ("sampling is 5", "--sampling is 5"),
        ("X=True", "X=True"),
    ],
)
def test_values_that_are_switches(message: str, shown: str) -> None:
    assert cli._with_options(message, cli._options(cli.build_parser(), "run")) == shown


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--temperature", "warm"], 2, "edge run: argument --temperature: invalid float value: 'warm'; see"),
        (["--temperature", "-1"], 2, "edge: --temperature is -1.0, expected a number from 0 up"),
        (["--top-p", "0"], 2, "edge: --top-p is 0.0"),
        (["--max-new-tokens", "0"], 2, "edge: --max-new-tokens is 0, expected a whole number, 1 or more"),
        (["--threads", "-1"], 2, "edge: --threads is -1, expected a whole number from 1 to "),
        (
            ["--kv-cache-gb", "lots"],
            2,
            "edge run: argument --kv-cache-gb: 'lots' is not a size; give gigabytes",
        ),
        (["--kv-cache-gb", "1", "--kv-cache-share", "0.5"], 2, "edge run: argument --kv-cache-share: not allowed with"),
        (["--kv-precision", "u2"], 2, "edge run: argument --kv-precision: invalid choice: 'u2'"),
        (["--sampling", "hot"], 2, "edge run: argument --sampling: invalid choice: 'hot'"),
        (["--engine", "ort"], 2, "edge run: argument --engine/--engines: engine 'ort' is unknown"),
        (["--draft", "d"], 2, "edge: --draft is a model that speculation drafts with; give --speculate too"),
        (["--draft-store", "d"], 2, "edge: --draft-store is what speculation drafts from; give --speculate too"),
        (["--raw", "--system", "x"], 2, "edge: --system needs the chat template, which --raw leaves out"),
        (["--temp", "0.5"], 2, "edge run: unrecognized arguments: --temp 0.5, did you mean --temperature?; see"),
        (["there"], 2, "edge run: unrecognized arguments: there; see edge run --help"),
        (["--json-schema", "nothing.json"], 1, "edge: nothing.json cannot be read (No such file or directory)"),
        (["--grammar", "latin.txt"], 1, "edge: latin.txt is not UTF-8: byte 0xE9 at position 3"),
        (["--max-context", "99999999"], 2, "edge: --max-context is 99999999"),
        (["--device", "CPU.1"], 1, "edge: device 'CPU.1' does not exist on this machine; devices here: CPU"),
        (["--device", "TOASTER"], 1, "edge: device 'TOASTER': no engine runs on it"),
        (["--prefix", "nothing.prefix"], 1, "edge: nothing.prefix: no such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_is_wrong_and_whose_mistake_it_is(
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    monkeypatch.chdir(tmp_path)
    try:
        found = cli.main(["run", str(tiny_bundle), "hi", *arguments])
    except SystemExit as stopped:
        found = stopped.code  # type: ignore[assignment]  # an int, as argparse gives it
    shown = capsys.readouterr()
    assert (found, shown.out) == (code, "")
    assert shown.err.startswith(said)
    assert shown.err.count("\n") == 1


SIZES = {
    "2.1": 2_100_000_000,
    "2.1GB": 2_100_000_000,
    "2100 mb": 2_100_000_000,
    "2GiB": 2 << 30,
    "2.1e9B": 2_100_000_000,
}


@pytest.mark.parametrize("text", SIZES)
def test_one_form_of_sizes(text: str) -> None:
    """With a unit they are the same everywhere; a number alone counts what the option's name says."""
    assert PARSERS["run"].parse_args(["b", "p", "--kv-cache-gb", text]).kv_cache_bytes == SIZES[text]
    if text[-1].isalpha():
        assert PARSERS["export"].parse_args(["a", "b", "--max-bytes", text]).max_bytes == SIZES[text]
        assert PARSERS["serve"].parse_args(["b", "--max-body-bytes", text]).max_body_bytes == SIZES[text]
    assert PARSERS["export"].parse_args(["a", "b", "--max-bytes", "2.1e9"]).max_bytes == 2_100_000_000


@pytest.mark.parametrize("text", ["", "GB", "-1", "0", "nan", "1e999", "5 apples", "9e18GB"])
def test_what_is_not_a_size(text: str) -> None:
    for kind in (kinds.size, kinds.gigabytes):
        with pytest.raises(argparse.ArgumentTypeError, match=r"is not a size; give (giga)?bytes like"):
            kind(text)
