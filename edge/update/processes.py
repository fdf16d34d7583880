"""What an update has other processes do: the self-test of a bundle, and the command that tells the server.

In: a bundle, or a command line. Out: nothing, or an error with the last line that the process said. An engine that
crashes, or that the system ends for its memory, fails the self-test without taking the update with it.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from edge.runtime.errors import SettingsError, UpdateError, in_words, shown, telling_line


def self_test(bundle: Path, device: str) -> None:
    """Run `edge verify`: every file's sha256, and the golden logits on every engine. Raises UpdateError."""
    edge = (sys.executable, "-P", "-m", "edge", "verify", "--no-config", str(bundle), "--device", device, "--json")
    _run(edge, "the self-test of the release failed")


def words_of(command: str) -> tuple[str, ...]:
    """A command line as a shell would split it. Raises SettingsError."""
    try:
        words = tuple(shlex.split(command))
    except ValueError as error:
        raise SettingsError(f"then is {shown(command)}, expected a command ({error})", param="then") from None
    if not words:
        raise SettingsError("then is empty, expected a command", param="then")
    return words


def tell(words: Sequence[str]) -> None:
    """Run the command that tells the server of another bundle. Raises UpdateError."""
    _run(words, f"the command {shown(words[0])} failed after the switch")


def _run(words: Sequence[str], failed: str) -> None:
    """Its stdout is not ours, and stderr is repeated, so that a journal has all of it."""
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False
        )
    except OSError as error:
        raise UpdateError(f"{failed}: {error.strerror or error}") from error
    said = done.stderr.decode("utf-8", "replace")
    if done.returncode:
        ended = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
        line = (
            in_words(telling_line(said, last=True).removeprefix("edge: "), 300) if said.strip() else "it said nothing"
        )
        raise UpdateError(f"{failed} with {ended}: {line}")
    sys.stderr.write(said)
