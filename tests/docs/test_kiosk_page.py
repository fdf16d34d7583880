"""docs/kiosk.md from top to bottom: a container without a screen gets as far as a service that answers.

Every line of its `sh` blocks runs as it is printed, with folders of the test in the place of the system's. Not run, but
checked, is what such a container cannot do: `systemctl` and `reboot` need a running systemd, `useradd` and `apt-get`
would change the machine that runs the tests.
"""

from __future__ import annotations

import os
import pwd
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from edge.kiosk import settings as names
from edge.kiosk.files import texts
from edge.kiosk.settings import KioskSettings
from edge.server.page_config import PageConfig
from tests.docs.debian import unknown
from tests.docs.shown import ROOT, SHELL, blocks
from tests.docs.test_commands import failure, fresh, run
from tests.edge.kiosk.service import check_service
from tests.edge.server.live import free_port

PAGE = (ROOT / "docs" / "kiosk.md").read_text(encoding="utf-8")
NOT_HERE = ("systemctl ", "reboot", "useradd ", "apt-get ")
FOLDERS = ("/opt", "/srv", "/etc/systemd/system")
SHOWN = [(block.line, command) for block in blocks(PAGE) if block.language == SHELL for command in block.commands]
HEALTH = [(line, command) for line, command in SHOWN if "/health" in command]


def packages() -> set[str]:
    """Of Debian, that the page has installed."""
    found = [shlex.split(command) for _, command in SHOWN if command.startswith("apt-get install")]
    return {word for words in found for word in words[2:] if not word.startswith("-")}


@pytest.mark.slow
def test_debian_has_the_packages() -> None:
    assert {"python3-venv", "cage", "chromium"} <= packages()
    assert unknown(packages()) == set()
    assert unknown({"no-such-package-of-debian"}) == {"no-such-package-of-debian"}


def test_what_is_not_run_names_what_there_is() -> None:
    """Users and units by the names that the written files have, and packages as README.txt has them."""
    made = [shlex.split(command)[-1] for _, command in SHOWN if command.startswith("useradd ")]
    case = KioskSettings(
        bundle=Path("/srv/kiosk/glm4-int4"),
        folder=Path("/srv/kiosk/guide"),
        python=Path("/opt/edge/bin/python"),
        user=made[0],
    )
    assert made == [case.user, case.browser_user]
    units = {
        word
        for _, command in SHOWN
        for word in shlex.split(command)
        if command.startswith("systemctl ") and "." in word
    }
    assert units == {names.SERVER_UNIT, names.BROWSER_UNIT}
    readme = texts(case, PageConfig(), "x")[names.README]
    _, *shown = [command for _, command in SHOWN if command.startswith("apt-get install")]
    assert shown
    for command in shown:
        assert f"    {command}\n" in readme
    (user,) = [command for _, command in SHOWN if command.startswith("useradd --create-home")]
    assert f"    {user}\n" in readme


def test_every_key_of_the_page_is_in_the_table() -> None:
    told = set(
        re.findall(r"`(\w+)`", "\n".join(line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `")))
    )
    assert set(PageConfig.__dataclass_fields__) <= told


def moved(command: str, root: Path) -> str:
    for folder in FOLDERS:
        command = re.sub(rf"(?<![\w/]){folder}\b", str(root) + folder, command)
    return command


@pytest.mark.slow
def test_the_page_leads_to_a_service_that_answers(demo_bundle: Path, tmp_path: Path) -> None:
    """With packages from PyPI, and the project itself from a folder."""
    origin, root, port = tmp_path / "origin", tmp_path / "root", free_port()
    leave_out = shutil.ignore_patterns(".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, origin, symlinks=True, ignore=leave_out)
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for arguments in (["init", "-q"], ["add", "--all", "--force"], ["commit", "-q", "-m", "as it is now"]):
        subprocess.run([*git, *arguments], cwd=origin, check=True, capture_output=True)
    for folder in FOLDERS:
        (root / folder.lstrip("/")).mkdir(parents=True)
    (root / "srv/kiosk").mkdir()
    shutil.copytree(demo_bundle, root / "srv/kiosk/glm4-int4")
    user = "daemon" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
    lines = ["set -e -o pipefail"]
    for line, command in SHOWN:
        if command.startswith(NOT_HERE) or (line, command) in HEALTH:
            continue
        if command.startswith("pip wheel"):
            lines.append(f"cd {root}/opt/edgeglm")  # "in a checkout"
        if command.startswith("systemd-analyze"):
            continue
        typed = moved(command, root).replace("--user edge-kiosk", f"--user {user} --port {port}")
        lines += [f"echo '@@ {line}' >&2", typed]
    done = run("\n".join(lines), tmp_path, fresh(origin), timeout_s=1200)
    assert done.returncode == 0, failure(done)
    kiosk = root / "srv/kiosk/guide"
    for unit in (names.SERVER_UNIT, names.BROWSER_UNIT):
        assert (root / "etc/systemd/system" / unit).read_text() == (kiosk / unit).read_text()

    def healthy() -> None:
        for _, command in HEALTH:
            asked = run(command.replace(":8000", f":{port}"), tmp_path, fresh(origin), timeout_s=60)
            assert asked.returncode == 0, asked.stderr

    check_service(kiosk, port, tmp_path, meanwhile=healthy, environment={})
    assert len(HEALTH) == 1
