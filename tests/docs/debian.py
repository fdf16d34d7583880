"""Which packages Debian has, by the lists of the machine that runs the tests.

In: names. Out: those that are not there; the test is skipped where nothing is known.
"""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest


def unknown(names: set[str]) -> set[str]:
    """Packages that Debian does not have."""
    if shutil.which("apt-cache") is None:
        pytest.skip("apt-cache is Debian's")
    done = subprocess.run(
        ["apt-cache", "show", "--no-all-versions", "python3", *names], capture_output=True, text=True, check=False
    )
    found = set(re.findall(r"^Package: (\S+)$", done.stdout, re.MULTILINE))
    if "python3" not in found:
        pytest.skip("apt-get update has not run here")
    return names - found
