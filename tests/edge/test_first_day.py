"""What somebody who is new to edgeglm hoped for on the first day and found: it stays so.

In: nothing. Out: a table from each sentence to the tests that hold it, and those tests that have no better place: that
answering writes nothing and reaches nobody, that an export has let go of its files when it moves them, that help loads
little, and that plain terminals get plain text.
"""

from __future__ import annotations

import ast
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.edge.test_cli import EDGE
from tests.edge.test_network import STRACE

ROOT = Path(__file__).parents[2]
HERE = "tests/edge/test_first_day.py"
HELD = {
    "an unknown hub, one that cannot be reached, and being offline are one line": (
        "tests/export/test_hub.py::test_outage_and_nothing_cached",
        "tests/edge/test_cli.py::test_inspect_asks_no_hub",
    ),
    "a wrong folder, and --force on what is not a bundle": (
        "tests/edge/test_cli.py::test_bad_bundles",
        "tests/edge/test_cli.py::test_bad_exports",
        "tests/export/test_output.py::test_what_is_no_bundle_is_refused",
    ),
    "a damaged prefix, and one of another model": (
        "tests/edge/test_cli.py::test_bad_prefixes",
        "tests/runtime/test_snapshot.py::test_an_altered_byte_wherever_it_is",
    ),
    "an impossible budget": ("tests/export/test_mixed.py::test_what_cannot_be_is_refused",),
    "GLM in its published layout, with the real tokenizer: the known answer, and what stops it, on both engines": (
        "tests/edge/test_glm_chain.py::test_the_answer_is_the_known_one",
        "tests/edge/test_glm_chain.py::test_streams_tools_and_turns",
    ),
    "all golden renders": ("tests/runtime/test_chat.py::test_renders_equal_the_golden_ones",),
    "tools in a system message, observations, and split emoji": (
        "tests/edge/test_glm_chain.py::test_streams_tools_and_turns",
        "tests/runtime/test_detokenizer.py::test_hard_texts",
    ),
    "the runtime writes nothing but what it may lose, and opens no socket": (
        f"{HERE}::test_answering_writes_nothing",
        f"{HERE}::test_the_system_sees_no_write_and_no_socket",
        "tests/edge/test_network.py::test_nothing_opens_an_internet_socket",
    ),
    "kill -9 while a prefix is built tears nothing": (
        "tests/edge/kiosk/test_drill.py::test_the_plug_is_pulled",
        "tests/runtime/test_atomic.py::test_several_processes_write_one_path_and_readers_see_whole_files",
        "tests/runtime/test_atomic.py::test_what_a_killed_process_left_is_removed_and_what_one_is_writing_is_not",
    ),
    "NO_COLOR, TERM=dumb and 45 columns": (
        f"{HERE}::test_plain_terminals",
        "tests/edge/chat/test_terminal.py::test_terminals_that_can_do_less",
        "tests/edge/chat/test_terminal.py::test_an_answer_has_its_figures_below_and_ends_by_ctrl_c",
    ),
    "a reader that leaves, like head": ("tests/edge/test_cli.py::test_reader_that_leaves",),
    "Ctrl-C ends an answer and keeps the chat; in `edge run` it is 130": (
        "tests/edge/test_cli.py::test_chat_on_a_terminal_survives_ctrl_c",
        "tests/edge/test_cli.py::test_run_interrupted",
    ),
    "readline's keys, and CJK editing": (
        "tests/edge/chat/test_terminal.py::test_readline_pastes_edits_and_completes_too",
        "tests/edge/chat/test_terminal.py::test_wide_characters_keep_their_columns",
    ),
    "bars of prefill, export and sweep": (
        "tests/edge/test_cli.py::test_progress_bar_on_a_terminal",
        "tests/edge/test_streams.py::test_a_bar_may_draw_and_what_is_printed_beside_it_may_not",
    ),
    "`profile compare`, and --fail-if": (
        "tests/edge/test_profile_command.py::test_compare",
        "tests/edge/test_profile_command.py::test_limits_decide_the_exit_code",
    ),
    "lm-eval on a local task": ("tests/profiles/test_lm_eval.py::test_real_tasks",),
    "`edge --help` at once": (f"{HERE}::test_help_loads_little", "tests/edge/test_help.py::test_help_is_fast"),
    "a clone without symlinks installs and runs": (
        "tests/platforms/test_checkouts.py::test_a_demo_and_tests_without_make",
    ),
    "an export holds no file of its folder when it moves it": (f"{HERE}::test_an_export_has_let_go_of_what_it_moves",),
}


@pytest.mark.parametrize("sentence", HELD)
def test_every_sentence_is_held_by_a_test(sentence: str) -> None:
    for name in HELD[sentence]:
        path, test = name.split("::")
        assert re.search(rf"^def {test}\(", (ROOT / path).read_text(encoding="utf-8"), re.M), name


# Python tells of every file that it opens, of every path that it changes and of every socket; libraries do not.
WATCHED = """
import os, sys
seen = []
CHANGES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.truncate", "socket.__new__")

def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], int):
        return  # by its number: its opening was told
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        seen.append((event, str(arguments[0])))
    elif event in CHANGES or event.startswith("shutil."):
        seen.append((event, str(arguments)))

sys.addaudithook(watch)
import edge

for engine in ("onnx", "openvino"):
    with edge.load(sys.argv[1], engine=engine, max_context=64) as llm:
        assert llm.chat([{"role": "user", "content": "hi"}], max_new_tokens=3).answer().token_ids
        assert llm.generate("hi", sampling="model", max_new_tokens=3).answer().token_ids
print([one for one in seen if one[1] != os.devnull])
"""


def test_answering_writes_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    """But for two lists in the cache folder, which may be lost: files that were found right, and first results."""
    cache = tmp_path / "cache"
    env = {**os.environ, "HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1", "XDG_CACHE_HOME": str(cache)}
    command = [sys.executable, "-c", WATCHED, str(tiny_bundle)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    written: list[tuple[str, str]] = ast.literal_eval(done.stdout)
    assert [(event, what) for event, what in written if str(cache) not in what] == []
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} <= {"checked-files", "first-results"}


@pytest.mark.slow
@pytest.mark.skipif(STRACE is None, reason="strace is not here")
@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_the_system_sees_no_write_and_no_socket(name: str, tiny_bundle: Path, tmp_path: Path) -> None:
    """A whole command with its libraries, besides those lists."""
    assert STRACE is not None
    seen, own = tmp_path / "seen", {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    changing = "openat,open,creat,mkdir,mkdirat,unlink,unlinkat,rename,renameat,renameat2,socket,connect,truncate"
    watched = [STRACE, "-f", "-qqq", "-e", f"trace={changing}", "-e", "signal=none", "-o", str(seen)]
    command = [*EDGE, "run", str(tiny_bundle), "hi", "--max-new-tokens", "3", "--engine", name]
    env = {**os.environ, **own, "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(tmp_path)}
    done = subprocess.run([*watched, *command], env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split(maxsplit=1)[1] for line in seen.read_text(errors="replace").splitlines()]
    assert len(lines) > 100
    reads = re.compile(r"open(at)?\((?!.*O_(WRONLY|RDWR|CREAT|TRUNC))")
    allowed = ('"/dev/null"', "resumed>", *own.values())
    assert [line for line in lines if not reads.match(line) and not any(part in line for part in allowed)] == []


MOVED = """
import os, sys
from pathlib import Path

def held():
    maps = [line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line]
    for number in os.listdir("/proc/self/fd"):
        try:
            maps.append(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            pass
    return maps

moves = []
def watch(event, arguments):
    if event == "os.rename" and os.path.isdir(arguments[0]):
        inside = os.path.realpath(arguments[0]) + os.sep
        moves.append([path for path in held() if path.startswith(inside)])

from edge.export.pipeline import export
sys.addaudithook(watch)
source, out = sys.argv[1:3]
for number, (recipe, form) in enumerate(pair.split("/") for pair in sys.argv[3:]):
    export(source, f"{out}/{number}", recipe, format=form)
print(len(moves), [move for move in moves if move])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks at /proc")
def test_an_export_has_let_go_of_what_it_moves(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Windows refuses to rename a folder in which a file is open or mapped."""
    pairs = [
        "fp16/onnx",
        "int8-asym/openvino",
        "int8-sym/both",
        "int4-asym-g64/both",
        "int4-asym-g64-awq-data-free/onnx",
    ]
    done = subprocess.run(
        [sys.executable, "-c", MOVED, str(tiny_checkpoint), str(tmp_path), *pairs],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{len(pairs)} []\n"


def test_help_loads_little() -> None:
    """As a count, which no busy machine changes: nothing from site-packages, and a file for each verb."""
    script = (
        "import sys; before = set(sys.modules); from edge.cli import build_parser; build_parser().format_help(); "
        "new = sorted(set(sys.modules) - before); print([name for name in new if name.split('.')[0] != 'edge' and "
        "'site-packages' in (getattr(sys.modules[name], '__file__', None) or '')], len(new))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    others, count = done.stdout.rsplit(maxsplit=1)
    assert others == "[]"
    assert int(count) < 200


def on_a_terminal(columns: int, changes: dict[str, str], *arguments: str) -> tuple[int, str]:
    """Exit code and all that a terminal of this width gets, of both streams."""
    pid, terminal = pty.fork()
    if pid == 0:
        kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
        os.execve(sys.executable, [*EDGE, *arguments], {**kept, "COLUMNS": str(columns), **changes})
    shown = b""
    try:
        while data := os.read(terminal, 65536):
            shown += data
    except OSError:  # it has ended
        pass
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(terminal)
    return code, shown.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("changes", [{"TERM": "dumb"}, {"TERM": "xterm", "NO_COLOR": "1"}], ids=["dumb", "no colour"])
def test_plain_terminals(changes: dict[str, str], tiny_bundle: Path, tmp_path: Path) -> None:
    """An answer after a prompt that is read in several steps, on 45 columns."""
    words = ("run", str(tiny_bundle), "word " * 40, "--max-new-tokens", "3", "--verbose", "--log-level", "error")
    code, shown = on_a_terminal(45, {"XDG_STATE_HOME": str(tmp_path), **changes}, *words)
    assert code == 0
    assert "\x1b[3" not in shown, "a colour"
    if changes["TERM"] == "dumb":
        assert "\x1b" not in shown
    assert shown.startswith("sampling: greedy\n")
    assert re.search(
        r"\(cut at 3 tokens; --max-new-tokens allows more\)\n\(2\d\d prompt tokens \(0 from the cache\)", shown
    )
