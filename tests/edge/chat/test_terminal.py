"""`edge chat` in a real terminal, with real keys."""

from __future__ import annotations

import json
import shutil
import stat
import sys
from pathlib import Path

import pytest

from edge.runtime.terminal_text import visible
from tests.edge.chat.terminal import Terminal

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")]

FEW = ("--max-new-tokens", "3")
FUNCTION = "def f(x):\n    return x + 1\n\nWhat does this function do?"
READY = "tokens used"  # the line below the prompt


def edge_chat(bundle: Path, *arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "edge", "chat", str(bundle), *map(str, arguments)]


def without(module: str, bundle: Path, *arguments: str) -> list[str]:
    """The chat where modules are not installed."""
    hidden = "; ".join(f"sys.modules[{name!r}] = None" for name in module.split())
    script = f"import sys; {hidden}; from edge.cli import main; sys.exit(main({['chat', str(bundle), *arguments]!r}))"
    return [sys.executable, "-c", script]


def saved(path: Path) -> list[str]:
    """The questions of a saved conversation."""
    return [m["content"] for m in json.loads(path.read_text(encoding="utf-8")) if m["role"] == "user"]


def test_several_lines_are_one_message(tiny_bundle: Path, tmp_path: Path) -> None:
    """Pasted, begun by Alt-Enter, or in a block; lines and indentation stay."""
    path = tmp_path / "a.json"
    with Terminal(edge_chat(tiny_bundle, *FEW, "--save", path), tmp_path) as terminal:
        terminal.wait_for(READY)
        terminal.paste(FUNCTION)
        terminal.wait_for("What does this")
        assert not path.exists()
        terminal.keys("Enter")
        terminal.wait_for("cut at 3 tokens")
        terminal.enter("one")
        terminal.keys("M-Enter")
        terminal.enter("  two")
        terminal.keys("Enter")
        terminal.wait_for("cut at 3 tokens", 2)
        terminal.enter('"""')
        terminal.keys("Enter")
        terminal.enter("/exit")
        terminal.keys("Enter")
        terminal.enter('three"""')
        terminal.keys("Enter")
        terminal.wait_for("cut at 3 tokens", 3)
        terminal.keys("C-d")
        terminal.wait_for("EXIT 0")
    assert saved(path) == [FUNCTION, "one\n  two", "/exit\nthree"]


def test_wide_characters_keep_their_columns(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with Terminal(edge_chat(tiny_bundle, *FEW, "--save", path), tmp_path) as terminal:
        terminal.wait_for(READY)
        terminal.enter("你好，世界😀!")
        terminal.wait_for("> 你好，世界😀!")
        terminal.keys("Left", "Left", "Left")
        terminal.enter("ab")
        terminal.wait_for("> 你好，世ab界😀!")
        terminal.keys("BSpace")
        terminal.wait_for("> 你好，世a界😀!")
        terminal.keys("Enter")
        terminal.wait_for("cut at 3 tokens")
    assert saved(path) == ["你好，世a界😀!"]


def test_completion(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "report of may.txt").write_text("May was warm.")
    with Terminal(edge_chat(tiny_bundle, *FEW), tmp_path, columns=200) as terminal:
        terminal.wait_for(READY)
        terminal.enter("/s")
        terminal.keys("Tab")
        assert {"/system", "/save", "/stats", "/stop"} <= set("\n".join(terminal.wait_for("/stop")).split())
        terminal.keys("C-c")
        terminal.enter("/fi")
        terminal.keys("Tab")
        terminal.wait_for("> /file")
        terminal.enter(f"{tmp_path}/rep")
        terminal.keys("Tab")
        terminal.wait_for("report of may.txt")
        terminal.keys("Enter")
        terminal.wait_for("it goes with your next message")


def test_ctrl_c_clears_the_line_and_ctrl_d_leaves(tiny_bundle: Path, tmp_path: Path) -> None:
    with Terminal(edge_chat(tiny_bundle, *FEW), tmp_path) as terminal:
        terminal.wait_for(READY)
        terminal.enter("half a question")
        terminal.wait_for("half")
        terminal.keys("C-c")
        terminal.enter("/stats")
        assert "half" not in "\n".join(terminal.wait_for("> /stats"))
        terminal.keys("C-c")
        terminal.keys("C-c")
        terminal.wait_for("Ctrl-D or /exit leaves")
        terminal.keys("C-d")
        terminal.wait_for("EXIT 0")


def test_the_history_is_private_and_there_again(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "edgeglm" / "chat-history.jsonl"
    command = edge_chat(tiny_bundle, *FEW)
    with Terminal(command, tmp_path) as terminal:
        terminal.wait_for(READY)
        terminal.paste("first\n  line")
        terminal.keys("Enter")
        terminal.wait_for("cut at 3 tokens")
        terminal.enter(" a secret")
        terminal.keys("Enter")
        terminal.wait_for("cut at 3 tokens", 2)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes() == b'"first\\n  line"\n'
    with Terminal(command, tmp_path) as terminal:
        terminal.wait_for(READY)
        terminal.keys("Up")
        terminal.wait_for("> first")
        terminal.wait_for(".   line")
    with Terminal([*command, "--no-history"], tmp_path) as terminal:
        terminal.wait_for(READY)
        terminal.keys("Up")
        terminal.enter("new")
        assert "first" not in "\n".join(terminal.wait_for("> new"))
        terminal.keys("Enter")
        terminal.wait_for("cut at 3 tokens")
    assert path.read_bytes() == b'"first\\n  line"\n'


def test_a_history_that_cannot_be_kept_is_one_line(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "edgeglm").touch()
    with Terminal(edge_chat(tiny_bundle, *FEW), tmp_path, columns=200) as terminal:
        terminal.wait_for(READY)
        terminal.enter("hi")
        terminal.keys("Enter")
        terminal.wait_for("cut at 3 tokens")
        lines = [line for line in terminal.screen() if line.startswith("edge:")]
    assert len(lines) == 1
    assert "what you type is not kept for later chats" in lines[0]


@pytest.mark.parametrize("columns", [45, 80])
def test_an_answer_has_its_figures_below_and_ends_by_ctrl_c(demo_bundle: Path, tmp_path: Path, columns: int) -> None:
    command = edge_chat(demo_bundle, "--max-new-tokens", "4000", "--sampling", "greedy")
    with Terminal(command, tmp_path, columns=columns, rows=12) as terminal:
        terminal.wait_for(READY)
        terminal.enter("Write a very long story about a cat.")
        terminal.keys("Enter")
        assert terminal.wait_for("tok/s")[-1].endswith("%)")
        terminal.keys("C-c")
        terminal.wait_for("(stopped)")
        shown = terminal.wait_for(READY)
        assert "\n".join(shown).count("tok/s") == 1, "it left a trace"
        assert max(map(len, shown)) <= columns
        terminal.enter("/stats")
        terminal.keys("Enter")
        terminal.wait_for("stopped after")
        terminal.enter("/retry")  # the same long story, from its beginning
        before = len("".join(terminal.screen()))
        terminal.keys("Enter")
        terminal.wait_until(lambda lines: len("".join(lines)) > before + 80)
        terminal.enter("/stop")
        terminal.keys("Enter")
        terminal.wait_for("(stopped)", 2)
        terminal.keys("C-d")
        terminal.wait_for("EXIT 0")


def test_loading_is_said_before_it_begins(tiny_bundle: Path, tmp_path: Path) -> None:
    with Terminal(edge_chat(tiny_bundle), tmp_path, columns=200) as terminal:
        first, second, *_ = terminal.wait_for(READY)
    assert first == f"loading {tiny_bundle} ..."
    assert second == "256 tokens of context; sampling: greedy; /help lists commands"


@pytest.mark.parametrize(
    ("hidden", "changes"),
    [
        ("prompt_toolkit", {}),
        ("prompt_toolkit readline", {}),
        ("json5", {"TERM": "dumb"}),
        ("prompt_toolkit", {"LC_ALL": "C", "LANG": ""}),
        ("json5", {"LC_ALL": "C", "LANG": ""}),
        ("json5", {"NO_COLOR": "1"}),
        ("prompt_toolkit readline", {"LC_ALL": "C", "LANG": "", "PYTHONUTF8": "0"}),
    ],
    ids=str,
)
def test_terminals_that_can_do_less(tiny_bundle: Path, tmp_path: Path, hidden: str, changes: dict[str, str]) -> None:
    """Without packages, without a cursor, without a locale: lines are read, and Chinese arrives as it was typed."""
    path = tmp_path / "a.json"
    command = without(hidden, tiny_bundle, *FEW, "--save", str(path))
    with Terminal(command, tmp_path, changes, columns=120) as terminal:
        terminal.wait_for("/help lists commands")
        terminal.wait_for("\n>")
        terminal.enter("你好 x")
        terminal.keys("Enter")
        terminal.wait_for("cut at 3 tokens")
        terminal.enter('"""one')
        terminal.keys("Enter")
        terminal.enter('  two"""')
        terminal.keys("Enter")
        terminal.wait_for("cut at 3 tokens", 2)
        terminal.enter("half")
        terminal.wait_for("> half")
        terminal.keys("C-c")  # what is typed before it is heard would be thrown away with it
        terminal.wait_until(lambda lines: [line for line in lines if line.startswith(">")][-1] == ">")
        terminal.enter("/stats")
        terminal.keys("Enter")
        terminal.wait_for("from the cache")
        terminal.enter("/exit")
        terminal.keys("Enter")
        terminal.wait_for("EXIT 0")
    assert saved(path) == ["你好 x", "one\n  two"]


def test_readline_pastes_edits_and_completes_too(tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("readline")
    path = tmp_path / "a b.json"
    command = without("prompt_toolkit", tiny_bundle, *FEW)
    with Terminal(command, tmp_path) as terminal:
        terminal.wait_for("\n>")
        terminal.paste(FUNCTION)
        terminal.wait_for("What does this")
        terminal.keys("Enter")
        terminal.wait_for("cut at 3 tokens")
        terminal.enter(f"/save {path}")
        terminal.keys("Enter")
        terminal.wait_for("2 messages saved")
        terminal.enter("/lo")
        terminal.keys("Tab")
        terminal.enter(f"{tmp_path}/a")
        terminal.keys("Tab")
        terminal.wait_for("b.json", 2)
        terminal.keys("Enter")
        terminal.wait_for("(2 messages, ")
        terminal.enter("hi")
        terminal.keys("Enter")
        terminal.wait_for("cut at 3 tokens", 2)
        terminal.enter("/edit")
        terminal.keys("Enter")
        terminal.wait_for("> hi", 2)
        terminal.enter(" you")
        terminal.keys("Enter")
        terminal.wait_for("cut at 3 tokens", 3)
        terminal.keys("Up", "Up", "Up", "Up")
        terminal.wait_for("> /load /", 2)  # the path is cut where the screen ends
        terminal.keys("C-u", "C-d")
        terminal.wait_for("EXIT 0")
    assert saved(path) == [FUNCTION]
    history = [json.loads(line) for line in (tmp_path / "edgeglm" / "chat-history.jsonl").read_text().splitlines()]
    assert history == [FUNCTION, f"/save {path}", f"/load {path}", "hi", "/edit", "hi you"]
    assert all(visible(line) == line for line in history)
