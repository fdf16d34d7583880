"""Words arrive as they were: in systemd, which is asked itself, and in a shell."""

from __future__ import annotations

import os
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edge.kiosk.quoting import shell_command, unit_command, unit_text, unit_word
from tests.edge.kiosk.systemd import commands, verified

pytestmark = pytest.mark.skipif(os.name != "posix", reason="a kiosk is a Linux machine")

HARD = [
    "a b", "", "%", "%h", "%%n", "100%", '"', "'", '"quoted"', "it's", "\\", "\\n", "a\\", "$HOME", "${HOME}", "$$",
    ";", "\\;", "#", "-", "@", ":", "!", "+", "é", "博物馆", "متحف", "😀", "\t", "\n", "\r", "\x01", "\x7f", "\x85",
    "\u2028", "\ufeff", "\ufffe", "\U0001ffff", "a=b", "[Service]", "\\x41", "\\u0041", "\\101", "~", "`id`", "*",
    "  both  ", "x" * 3000,
]  # fmt: skip
words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)


def unit(command: str) -> str:
    return f"[Unit]\nDefaultDependencies=no\n[Service]\nType=oneshot\nExecStart={command}\n"


@settings(max_examples=4)
@example(given=HARD)
@given(given=st.lists(words, min_size=1, max_size=40))
def test_systemd_reads_the_words_that_were_meant(given: list[str]) -> None:
    meant = ["/bin/true", *given]
    assert commands({"words.service": unit(unit_command(meant))}) == {"words.service": meant}


def test_a_word_is_one_word_whatever_is_beside_it() -> None:
    for word in HARD:
        said = unit_word(word)
        assert said.startswith('"')
        assert said.endswith('"')
        assert "\n" not in said, "a line end would begin another setting"


def test_programs_of_any_name_are_found() -> None:
    """systemd looks for the file itself: a name that it read otherwise would not be there."""
    with tempfile.TemporaryDirectory(prefix="edge-programs-") as name:
        units = {}
        for number, word in enumerate(word for word in HARD if word and "/" not in word and len(word) < 200):
            folder = Path(name) / f"in {word}"
            folder.mkdir()
            program = folder / "python"
            program.touch()
            program.chmod(program.stat().st_mode | stat.S_IXUSR)
            units[f"n{number}.service"] = unit(unit_command([str(program), "-m", "edge"]))
        assert verified(units) == []
        program.unlink()
        assert len(verified(units)) == 1, "and it does look"


def test_a_description_says_what_it_should() -> None:
    assert unit_text("100% of\n\ufffeit's \\o/") == "100%% of it's \\\\o/"


@settings(max_examples=30)
@example(given=HARD)
@given(given=st.lists(words, min_size=1, max_size=20))
def test_a_shell_reads_the_words_that_were_meant(given: list[str]) -> None:
    command = shell_command(["printf", r"%s\0", *given])
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, check=True)
    assert done.stdout.split(b"\0")[:-1] == [os.fsencode(word) for word in given]
