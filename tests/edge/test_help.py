"""What help says: every verb in groups, with real defaults and with examples that the parser takes."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from edge import cli
from edge.commands.help import listed, sections, told, usual
from edge.export.compress.recipes import DEFAULT, FOR_NPU
from edge.export.settings import ExportSettings, Limits
from edge.profiles import limits, settings
from edge.runtime.settings import EngineSettings, Sampling
from tests.edge.verbs import PARSERS

MANY = 6  # options that need no groups
EVERYWHERE = {"help", "log_level", "no_config"}  # of every command


def help_of(name: str) -> str:
    """A help text on one line, however argparse has wrapped it."""
    return re.sub(r"(?<=-) (?=[a-z])", "", " ".join(PARSERS[name].format_help().split()))


def all_parsers() -> dict[str, argparse.ArgumentParser]:
    """With the parsers of verbs that have actions."""
    verbs = next(a for a in cli.build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return {"": cli.build_parser(), **verbs.choices, **PARSERS}


def test_the_list_names_every_verb_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for verb in cli.VERBS:
        assert re.search(rf"^    {verb}\s+[A-Z][^.]*$", shown, re.MULTILINE), verb


@pytest.mark.parametrize("name", PARSERS)
def test_long_helps_are_in_groups(name: str) -> None:
    parser = PARSERS[name]
    options = [action for action in parser._actions if action.option_strings and action.dest not in EVERYWHERE]
    ungrouped = [action for action in parser._action_groups[1]._group_actions if action.dest not in EVERYWHERE]
    named = [group for group in parser._action_groups[2:] if group._group_actions]
    assert len(ungrouped) <= MANY
    assert bool(named) >= (len(options) > MANY)
    assert all(group.title for group in named)


@pytest.mark.parametrize("name", PARSERS)
def test_every_argument_is_explained_in_one_voice(name: str) -> None:
    for action in PARSERS[name]._actions:
        label = f"{name} {action.dest}"
        assert action.help, label
        assert not action.help.endswith("."), label
        assert not action.help[0].isupper() or action.help.startswith("KV"), label
        assert "default:" not in action.help.replace("(default: ", ""), label


@pytest.mark.parametrize("name", all_parsers())
def test_examples_are_at_the_end_and_are_taken(name: str) -> None:
    """By the parser, as a shell would hand them over."""
    parser = all_parsers()[name]
    shown = parser.format_help()
    assert parser.epilog is not None
    assert shown.endswith(parser.epilog + "\n")
    title, *examples = parser.epilog.splitlines()
    assert title == "examples:"
    assert examples
    for example in examples:
        words = shlex.split(example.rpartition(" | ")[2], comments=True)
        assert words[0] == "edge"
        if words[1:] == ["COMMAND", "--help"]:
            continue
        given = cli.build_parser().parse_args(words[1:])
        assert name.split()[:1] in ([], [given.verb]), example
        assert name.split()[1:] in ([], [getattr(given, "action", None)]), example


def test_defaults_are_those_of_the_classes() -> None:
    assert usual(EngineSettings, "engine") == "auto"
    for name in ("run", "chat", "bench", "needle", "prefix build"):
        shown = help_of(name)
        assert f"which engine computes (default: {EngineSettings().engine})" in shown
        assert f"(default: {EngineSettings().device})" in shown
        assert f"(default: {EngineSettings().kv_cache_bytes / 1e9:.2f})" in shown
    for verb, usually in (("run", ""), ("chat", "the model's, or ")):
        for field in ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty"):
            assert re.search(
                rf"--{field.replace('_', '-')} [XN] [^()]*(\([^()]*\)[^()]*)?"
                rf"\(default: {usually}{getattr(Sampling(), field):g}\)",
                help_of(verb),
            )
    for verb, usual_sampling in (("run", "greedy"), ("chat", "model"), ("serve", "model"), ("batch", "greedy")):
        assert PARSERS[verb].get_default("sampling") == usual_sampling
        assert re.search(rf"--sampling .*?\(default: {usual_sampling}\)", help_of(verb))
    assert ExportSettings().recipe is None
    for name in (f"{DEFAULT}; for an NPU {FOR_NPU}", ExportSettings().format, Limits().device):
        assert f"(default: {name})" in help_of("export")
    sweep = settings.SweepSettings()
    for value in (
        ",".join(sweep.recipes),
        ",".join(sweep.engines),
        sweep.num_tokens,
        sweep.window_tokens,
        f"{settings.CHUNK}; {settings.EXACT_CACHE_CHUNK} with",
        sweep.greedy_tokens,
        sweep.device,
    ):
        assert f"(default: {value}" in help_of("profile run"), value
    assert f"(default: {listed(settings.BENCH_PROMPT_TOKENS)})" in help_of("bench")
    assert f"(default: {listed(settings.NEEDLE_DEPTHS)})" in help_of("needle")


def test_a_changed_default_is_what_is_parsed_and_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """No help text has a figure of its own."""
    from edge.commands import bench

    monkeypatch.setattr(bench, "BENCH_NEW_TOKENS", 77)
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    assert parser.parse_args(["bundle"]).new_tokens == 77
    assert "(default: 77)" in " ".join(parser.format_help().split())


def test_every_metric_of_a_limit_is_named() -> None:
    assert f"of {', '.join(limits.METRICS)}; repeatable" in help_of("profile run")


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0"), (0.95, "0.95"), (12, "12"), ("CPU", "CPU"), ((32, 512), "32,512"), (["a", "b"], "a,b")],
)
def test_how_a_default_is_shown(value: object, shown: str) -> None:
    assert told("what it is", value) == f"what it is (default: {shown})"


def test_a_docstring_in_sections() -> None:
    found = sections("What.\n\nMore.\n\nexamples:\n  edge x\n")
    assert (found["description"], found["epilog"]) == ("What.\n\nMore.", "examples:\n  edge x")
    assert sections("What.\n")["epilog"] is None


def test_a_mistyped_verb_is_told_the_likely_one(capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (["exprot"], "edge: command 'exprot' is unknown, did you mean 'export'? Known are demo, "),
        (["prefix", "bulid"], "edge prefix: action 'bulid' is unknown, did you mean 'build'? Known are build, show; "),
        (["profile", "zzz"], "edge profile: action 'zzz' is unknown, known are run, compare, report; "),
    ):
        with pytest.raises(SystemExit):
            cli.main(words)
        assert capsys.readouterr().err.startswith(said)


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys; from edge.cli import build_parser; build_parser().format_help(); "
        "print([name for name in ('numpy', 'rich', 'openvino', 'onnxruntime', 'nncf', 'matplotlib') "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_help_is_fast(tmp_path: Path) -> None:
    """Within 0.15 s of a processor's time, which others do not use up; compiled, as an installed package is."""
    compiled = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""}
    taken = []
    for _ in range(6):
        before = os.times()
        subprocess.run([sys.executable, "-m", "edge", "--help"], env=compiled, capture_output=True, check=True)
        after = os.times()
        taken.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(taken) < 0.15, taken
