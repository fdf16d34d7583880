"""A kiosk whose plug is pulled: killed at random moments, upgraded, started by another user on a disk it cannot write.

It starts every time; its system message comes out of the file or is computed, which is said in one line; and its
answers are those of a model that has no such file.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import edge
from edge.runtime.speculation import DraftStore
from tests.edge.kiosk.service import own_environment
from tests.edge.server.live import free_port

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="users and signals of POSIX")]

SYSTEM = "You are the guide of a museum. Speak of paintings, of painters and of nothing else. " * 15
QUESTION = "Who painted the Ghent altarpiece?"
TOKENS = 12
KILLS = 10
SEED = 20
KINDS = ("build", "run", "serve")
UPGRADE = {  # what a newer package says of itself
    "onnx": "import onnxruntime; onnxruntime.__version__ = '9.9.9'",
    "openvino": "import openvino; openvino.get_version = lambda: '9.9.9'",
}
PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino"}


USER = "nobody"
# Whoever it becomes may not be able to read an interpreter in root's home: all that it takes is loaded before.
BECOME = """
import contextlib, io, os, pwd, tempfile
from edge.cli import main
words = {words!r}
with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
    with contextlib.redirect_stderr(io.StringIO()):
        words[words.index("--prefix") + 1] = os.path.join(folder, "prefix")
        assert main(words) == 0
user = pwd.getpwnam({user!r})
os.setgroups([])
os.setgid(user.pw_gid)
os.setuid(user.pw_uid)
"""


class Kiosk:
    """A bundle, a system message and a prefix in a folder that everybody may read."""

    def __init__(self, folder: Path, bundle: Path, engine: str) -> None:
        self.folder, self.bundle, self.engine = folder, bundle, engine
        self.prefix, self.drafts = folder / "kiosk.prefix", folder / "drafts"
        self.system = folder / "guide.txt"
        self.system.write_text(SYSTEM)
        self.llm = edge.load(bundle, engine=engine, reproducible=True)
        self.expected = self.answer(self.llm)

    def answer(self, llm: edge.LLM) -> tuple[int, ...]:
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]
        return llm.chat(messages, max_new_tokens=TOKENS).answer().token_ids

    def words(self, kind: str) -> list[str]:
        """The arguments of a command."""
        engine = ["--engine", self.engine, "--reproducible"]
        use = ["--system-file", str(self.system), "--prefix", str(self.prefix)]
        drafts = ["--speculate", "--draft-store", str(self.drafts)]
        return {
            "build": [
                "prefix",
                "build",
                str(self.bundle),
                str(self.prefix),
                "--system-file",
                str(self.system),
                *engine,
            ],
            "run": ["run", str(self.bundle), QUESTION, *engine, *use, *drafts, "--max-new-tokens", "60"],
            "start": ["run", str(self.bundle), QUESTION, *engine, *use, "--json", "--max-new-tokens", str(TOKENS)],
            "serve": ["serve", str(self.bundle), "--port", str(free_port()), *engine, *use, *drafts],
        }[kind]

    def start(self, before: str = "") -> str:
        """Start a process that answers, and return what it says on stderr. before: statements that it runs first."""
        code = f"{before}\nimport sys\nfrom edge.cli import main\nsys.exit(main(sys.argv[1:]))"
        done = subprocess.run(
            [sys.executable, "-c", code, *self.words("start")],
            env=own_environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        assert tuple(answer["token_ids"]) == self.expected
        assert answer["prefix_tokens"] == len(self.llm.system_prefix(SYSTEM))
        assert answer["cached_tokens"] >= answer["prefix_tokens"], "from the file, or computed before the question"
        return done.stderr

    def check(self, before: bytes | None) -> None:
        """What a killed process has left lets the next one start, and is not torn. before: what it found."""
        if (left := _content(self.prefix)) != before:
            assert left is not None, "it was removed"
            assert self.llm.prefixes.load(self.prefix).system == SYSTEM, "it is whole"
        if self.drafts.exists():
            DraftStore.open(self.drafts, self.llm.bundle.manifest.files["tokenizer.json"].sha256)
        self.llm.clear_cache()
        used = self.llm.prefixes.use(self.prefix, system=SYSTEM)
        assert used.in_file
        assert self.answer(self.llm) == self.expected
        stats = self.llm.chat([{"role": "system", "content": SYSTEM}], max_new_tokens=1).answer().stats
        assert stats is not None
        assert stats.cached_tokens >= used.num_tokens - 1


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may read; those of pytest are its user's alone."""
    with tempfile.TemporaryDirectory(prefix="edge-drill-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def kiosk(open_folder: Path, demo_bundle: Path, engine: str) -> Iterator[Kiosk]:
    bundle = open_folder / "bundle"
    shutil.copytree(demo_bundle, bundle, copy_function=_link_or_copy)
    found = Kiosk(open_folder, bundle, engine)
    yield found
    found.llm.close()


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)


def killed(words: Sequence[str], after_s: float) -> None:
    """Start a command, and kill it after a while, if it still runs."""
    with subprocess.Popen(
        [sys.executable, "-m", "edge", *words],
        env=own_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            process.wait(after_s)
        except subprocess.TimeoutExpired:
            process.kill()


def changed(path: Path, chance: random.Random, llm: edge.LLM) -> None:
    """What the next process finds: the file as it is, none, half of one, or that of another message."""
    match chance.randrange(4):
        case 0:
            path.unlink()
        case 1:
            os.truncate(path, chance.randrange(path.stat().st_size))
        case 2:
            llm.prefixes.save(llm.system_prefix("Another one."), path, system="Another one.")


def test_the_plug_is_pulled(kiosk: Kiosk) -> None:
    chance = random.Random(SEED)
    began = time.monotonic()
    assert re.fullmatch(rf"edge: {kiosk.prefix} was missing; built in \d+\.\d s\n", kiosk.start())
    longest_s = time.monotonic() - began
    for i in range(KILLS // 2):  # of each engine
        if i:
            changed(kiosk.prefix, chance, kiosk.llm)
        before = _content(kiosk.prefix)
        killed(kiosk.words(KINDS[i % len(KINDS)]), chance.uniform(0.2, 1.1) * longest_s)
        kiosk.check(before)
    assert kiosk.start() == "", "it fits, and there is nothing to say"
    said = kiosk.start(UPGRADE[kiosk.engine])
    package = PACKAGES[kiosk.engine]
    assert re.fullmatch(
        rf"edge: {kiosk.prefix} was made by {package} \S+, this is 9\.9\.9; built anew in \d+\.\d s\n", said
    ), said
    names = {path.name for path in kiosk.folder.iterdir()} - {"drafts", "drafts.lock"}
    assert names == {"bundle", "guide.txt", "kiosk.prefix"}, "nothing is left of processes that were killed"
    _another_user(kiosk)


def _another_user(kiosk: Kiosk) -> None:
    """Who may not write here: nobody, if root has built the file; else its own user, in a folder that is read-only."""
    become = BECOME.format(user=USER, words=kiosk.words("start")) if os.getuid() == 0 else ""
    kiosk.folder.chmod(0o555 if os.getuid() else 0o755)
    try:
        written = kiosk.prefix.read_bytes()
        said = kiosk.start(become)  # by the engine as it is, from a file of its next version
        assert re.fullmatch(
            rf"edge: {kiosk.prefix} was made by \S+ 9\.9\.9, this is \S+; computed in \d+\.\d s, "
            r"for this process alone, since it cannot be written \(Permission denied\)\n",
            said,
        ), said
        assert kiosk.start(f"{UPGRADE[kiosk.engine]}\n{become}") == "", "it may read the file"
        assert kiosk.prefix.read_bytes() == written
    finally:
        kiosk.folder.chmod(0o755)
