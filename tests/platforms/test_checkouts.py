"""A checkout as Windows makes it, without links and with its line ends, works, and needs no make."""

from __future__ import annotations

import os
import re
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
AS_ON_WINDOWS = ("-c", "core.symlinks=false", "-c", "core.autocrlf=true")
BINARY = (".png",)


def git(*arguments: str | Path, cwd: Path = ROOT) -> str:
    return subprocess.run(["git", *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This tree as it is now, as git of Windows would write it."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no clone")
    base = tmp_path_factory.mktemp("windows")
    names = [name for name in git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0") if name]
    origin = base / "origin"
    git("init", "-q", origin)
    for name in names:
        source, target = ROOT / name, origin / name
        if source.is_symlink() or source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_symlink():
                target.symlink_to(source.readlink())
            else:
                target.write_bytes(source.read_bytes())
    as_somebody = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    git(*as_somebody, "add", "--all", cwd=origin)
    git(*as_somebody, "commit", "-q", "-m", "as it is now", cwd=origin)
    git(*AS_ON_WINDOWS, "clone", "-q", origin, base / "checkout")
    return base / "checkout"


def test_sources_are_the_same_bytes(checkout: Path) -> None:
    """Without .gitattributes, scripts and golden files would have CRLF there."""
    names = git("ls-files", cwd=checkout).splitlines()
    assert len(names) > 700
    for name in names:
        path = checkout / name
        if (ROOT / name).is_symlink():
            assert path.read_text() == str((ROOT / name).readlink()), "a file in place of a link"
        else:
            assert path.read_bytes() == (ROOT / name).read_bytes(), name
    with_returns = [name for name in names if b"\r\n" in (checkout / name).read_bytes()]
    assert [name for name in with_returns if not name.endswith(BINARY)] == []


@pytest.fixture(scope="module")
def python(checkout: Path) -> Path:
    """An environment with the packages of this one, into which the checkout is installed as docs/windows.md says."""
    home = checkout.parent / "environment"
    venv.create(home)
    found = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    shared = sysconfig.get_paths()["purelib"]
    own = subprocess.run([found, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
                         capture_output=True, text=True, check=True).stdout.strip()  # fmt: skip
    (Path(own) / "shared.pth").write_text(shared + "\n")  # after its own, and without what is editable there
    install = ["-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-build-isolation", "-e", "."]
    subprocess.run([found, *install], cwd=checkout, check=True, capture_output=True, env=outside())
    return found


def outside() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


@pytest.mark.slow
def test_a_demo_and_tests_without_make(checkout: Path, python: Path, demo_gguf: Path, tmp_path: Path) -> None:
    """The two commands of docs/windows.md."""
    environment = {**outside(), "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    demo = subprocess.run(
        [python, "-m", "edge", "demo", "--max-new-tokens", "8"], cwd=checkout, capture_output=True, text=True,
        encoding="utf-8", env=environment, timeout=300, check=False,
    )  # fmt: skip
    assert demo.returncode == 0, demo.stderr[-2000:]
    assert "> What is the capital of France?" in demo.stderr
    assert "Paris" in demo.stdout
    where = subprocess.run(
        [python, "-c", "import edge.runtime.locks as l; print(l.__file__)"], cwd=checkout, capture_output=True,
        text=True, env=environment, check=True,
    )  # fmt: skip
    assert Path(where.stdout.strip()).is_relative_to(checkout), "the clone is what ran"
    tests = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/runtime/test_locks.py",
         "tests/platforms/test_waiting.py"], cwd=checkout, capture_output=True, text=True, env=environment,
        timeout=300, check=False,
    )  # fmt: skip
    assert tests.returncode == 0, tests.stdout[-2000:] + tests.stderr[-2000:]
    assert " passed" in tests.stdout


def test_hints_are_in_double_quotes() -> None:
    """cmd.exe takes single quotes for a part of the name: pip install 'edgeglm[onnx]' installs nothing there."""
    wrong = re.compile(r"pip install[^\n\"`]* '")
    for name in git("ls-files", "*.py", "*.md", "*.toml", "*.html", "Makefile").splitlines():
        if name == Path(__file__).relative_to(ROOT).as_posix() or not (ROOT / name).is_file():
            continue
        text = (ROOT / name).read_text(encoding="utf-8")
        assert wrong.findall(text) == [], name
