"""The figures of the demo checkpoint: its profile in profiles/results, and the table in docs/recipes.md from that.

    python benchmarks/results.py [--profile FOLDER]

Without --profile, the default profile is measured, which takes half an hour on two otherwise idle cores. FOLDER holds a
profile that `edge profile` has measured.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from edge.export.checkpoint.default import find_checkpoint
from edge.profiles.columns import COLUMNS
from edge.profiles.record import PROFILE, Profile, read_profile
from edge.profiles.report import markdown_table, write_report
from edge.profiles.sweep import sweep
from edge.profiles.sweep_progress import SweepProgress
from edge.runtime.atomic import write_atomically

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "profiles" / "results", ROOT / "docs" / "recipes.md"
BEGIN, END = "<!-- begin: python benchmarks/results.py -->\n", "<!-- end -->\n"
LEFT_OUT = ("setting", "load, s")  # of the page's table, which is wide enough


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", type=Path, metavar="FOLDER", help="a profile that has been measured already")
    args = parser.parse_args()
    profile = measured() if args.profile is None else read_profile(args.profile)
    RESULTS.mkdir(exist_ok=True)
    write_atomically(RESULTS / PROFILE, [profile.to_json().encode()], private=False)
    write_report(profile, RESULTS)
    text = PAGE.read_text(encoding="utf-8")
    write_atomically(PAGE, [with_table(text, profile).encode()], private=False)
    return 0


def measured() -> Profile:
    def show(progress: SweepProgress) -> None:
        if progress.row is not None or progress.phase == "start":
            print(f"{progress.steps_done} of {progress.num_steps}: {progress.step}", file=sys.stderr)

    with tempfile.TemporaryDirectory() as folder:
        return sweep(find_checkpoint(), folder, progress=show)


def with_table(text: str, profile: Profile) -> str:
    """The document with the profile's table between the two marks."""
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert end, f"{PAGE} has no {BEGIN.strip()} with an end"
    columns = [column for column in COLUMNS if column.title not in LEFT_OUT]
    return "".join([before, BEGIN, *(f"{line}\n" for line in markdown_table(profile, columns)), END, after])


if __name__ == "__main__":
    sys.exit(main())
