"""What is known of a prefix and its file, and what is wrong with a file that does not fit, in words.

In: a path; the identity that a file has, and the one that it should have. Out: a `SavedPrefix`; reasons that follow the
name of the file, as in "kiosk.prefix holds another system message". Knows nothing about loading or computing one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edge.runtime.engines.registry import ENGINES
from edge.runtime.errors import EdgeError
from edge.runtime.files import shown_path
from edge.runtime.kv.snapshot_format import SnapshotIdentity, read_header
from edge.runtime.rules import FilePath, check_value

MISSING = "was missing"
_VERSION = "engine version"  # the key of an engine's identity


@dataclass(frozen=True, slots=True)
class SavedPrefix:
    """A prefix and its file."""

    path: Path
    num_tokens: int
    system: str | None  # the system message that it is, if it is one
    note: str = ""  # by `use`: why the file was built, or what kept it from being written; "" if it was used as it was
    in_file: bool = True  # by `use`: False if it is in the memory of this process alone


def read_prefix(path: str | Path) -> SavedPrefix:
    """Return what a prefix file says about itself, without its keys and values. Raises SnapshotError."""
    file: Path = check_value("path", FilePath(), path)
    header = read_header(file)
    return SavedPrefix(file, header.num_tokens, header.system)


def made_for(found: SnapshotIdentity, expected: SnapshotIdentity) -> str:
    """Return what a file was made for or by instead; "" if it is what is expected."""
    differences = found.differences(expected)
    if not differences:
        return ""
    ours, theirs = (dict(identity.layout) for identity in (found, expected))
    versions = ours.pop(_VERSION, "an unknown version"), theirs.pop(_VERSION, "an unknown version")
    if len(differences) == 1 and versions[0] != versions[1]:
        engine = ours.get("engine", "the engine")
        package = ENGINES[engine].package if engine in ENGINES else engine
        return f"was made by {package} {versions[0]}, this is {versions[1]}"
    return f"was made for something else ({', '.join(differences)})"


def reason_of(error: EdgeError, path: Path) -> str:
    """Return what an error says about a file, without its name in front and the advice at the end."""
    return str(error).rpartition("; ")[0].removeprefix(shown_path(path)).removeprefix(":").strip()
