"""Whatever ends an export, and whenever: the same command given again ends with the same bytes.

Processes of the command line are killed, interrupted and starved of disk at moments that are drawn anew from a seed
each; the recipes are a calibrated one, whose hidden states are part of what is resumed, and one within a budget, which
is measured first. Takes minutes.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge.runtime.bundle import open_bundle

pytestmark = pytest.mark.slow

SETTINGS = {
    "calibrated": ["--recipe", "int4-asym-g64-gptq"],
    "budget": ["--max-bytes", "110kB"],
}


def command(checkpoint: Path, out: Path, settings: list[str]) -> list[str]:
    return [sys.executable, "-m", "edge", "export", str(checkpoint), str(out), *settings]


def start(checkpoint: Path, out: Path, settings: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(checkpoint, out, settings), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def digests(bundle: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(bundle.iterdir())}


@pytest.fixture(scope="module", params=SETTINGS)
def undisturbed(
    request: pytest.FixtureRequest, tiny_checkpoint: Path, text: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[str], dict[str, str], float]:
    """Settings, what an export with them gives, and the seconds that it takes."""
    settings = [*SETTINGS[request.param], "--calibration", str(text)]
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    started = time.monotonic()
    finish(tiny_checkpoint, out, settings)
    return settings, digests(out), time.monotonic() - started


def finish(checkpoint: Path, out: Path, settings: list[str]) -> None:
    process = start(checkpoint, out, settings)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 0, said
    open_bundle(out).check_hashes()
    assert not [path.name for path in [*out.iterdir(), *out.parent.iterdir()] if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("number", "times"), [(signal.SIGKILL, 4), (signal.SIGINT, 3), (signal.SIGTERM, 1), (signal.SIGHUP, 1)]
)
def test_a_signal_at_random_moments(
    number: signal.Signals,
    times: int,
    undisturbed: tuple[list[str], dict[str, str], float],
    tiny_checkpoint: Path,
    tmp_path: Path,
) -> None:
    """Each export is ended up to three times, then let alone."""
    settings, expected, seconds = undisturbed
    moments, kept, sent, rounds = random.Random(16), 0, 0, 0
    while sent < times or (number == signal.SIGKILL and not kept and rounds < 30):
        rounds += 1
        out = tmp_path / f"out{rounds}" / "out"
        if moments.random() < 0.5:
            out.mkdir(parents=True)
        for _ in range(moments.randint(1, 3)):
            if (out / "manifest.json").exists():
                break
            work = out / ".export.partial" if out.is_dir() else out.with_name(".out.partial")
            begun = work.is_dir()
            process = start(tiny_checkpoint, out, settings)
            try:
                process.wait(moments.uniform(0.1, 1.0) * seconds)
            except subprocess.TimeoutExpired:
                process.send_signal(number)
                sent += 1
            said = process.communicate(timeout=120)[1]
            assert "Traceback" not in said
            assert process.returncode in (0, -number, 130)
            last = said.strip().splitlines()[-1:]
            if process.returncode == 130 and begun and last == ["edge: interrupted"]:
                assert work.is_dir()  # this process had not come to it yet
            elif process.returncode == 130 and work.is_dir():
                assert f"what is done is kept in {work}: the same command resumes there" in said
                kept += 1
            elif process.returncode == 130:
                assert last == ["edge: interrupted"]
            elif number in (signal.SIGTERM, signal.SIGHUP) and process.returncode == -number and said:
                assert f"edge: ended by {number.name}" in said
                kept += 1
            elif process.returncode == -number:
                kept += work.is_dir()
        if not (out / "manifest.json").exists():
            finish(tiny_checkpoint, out, settings)
        assert digests(out) == expected
    assert kept or number != signal.SIGKILL, "no moment was one with something to go on from"


FULL = """
set -e
mount -t tmpfs -o size=200m none "$1"
size=$(( $2 ))
python=$3; shift 3
mkdir "$MNT/other"
$python - "$MNT/other/fill" $size <<'END' &
import os, sys, time
from pathlib import Path
parts = Path(os.environ["MNT"])
while not list(parts.glob(".out.partial/bundle/*")):  # disk space was looked at before anything is there
    time.sleep(0.005)
time.sleep(0.1)
found = os.statvfs(parts)
left = int(sys.argv[2])
with open(sys.argv[1], "wb") as file:
    try:
        file.write(bytes(max(found.f_bavail * found.f_frsize - left, 0)))
    except OSError:
        pass
Path(os.environ["MNT"] + "/other/done").touch()
END
filler=$!
code=0
"$@" 2> "$MNT.said" || code=$?
kill $filler 2> /dev/null || true
echo "code $code"
tail -1 "$MNT.said"
ls -A "$MNT" | tr '\\n' ' '; echo
rm -f "$MNT/other/fill"
if [ $code != 0 ]; then "$@" > /dev/null 2>&1; fi
cd "$MNT/out" && sha256sum *
"""


@pytest.mark.parametrize("left", [0, 60_000, 400_000])
def test_a_full_disk(
    left: int, undisturbed: tuple[list[str], dict[str, str], float], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """A disk of its own, which somebody else fills up to `left` bytes when the export has begun to write."""
    settings, expected, _ = undisturbed
    mount = tmp_path / "disk"
    mount.mkdir()
    if subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no mounts without root")
    arguments = [str(mount), str(left), sys.executable, *command(tiny_checkpoint, mount / "out", settings)]
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", FULL, "full", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"MNT": str(mount)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    code, said, there, *sums = done.stdout.splitlines()
    if code != "code 0":
        assert code == "code 1"
        assert "Traceback" not in said
        assert "disk is full" in said or "bytes free, the bundle needs about" in said
        assert (".out.partial" in there) == ("the same command resumes" in said)
        assert "out" not in there.split()
    assert {line.split()[1]: line.split()[0] for line in sums} == expected


@pytest.mark.parametrize("limit", [10_000])
def test_a_limit_of_file_sizes(
    limit: int, undisturbed: tuple[list[str], dict[str, str], float], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """What quotas are like, without root."""
    settings, expected, _ = undisturbed
    limited = ["bash", "-c", f'ulimit -f {limit // 1024}; exec "$@"', "limited"]
    done = subprocess.run(
        [*limited, *command(tiny_checkpoint, tmp_path / "out", settings)], capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr
    if done.returncode:
        assert "disk is full" in done.stderr
        finish(tiny_checkpoint, tmp_path / "out", settings)
    assert digests(tmp_path / "out") == expected
