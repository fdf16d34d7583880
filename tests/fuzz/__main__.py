"""`python -m tests.fuzz`; see the package."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # as pytest does, for what makes files

from tests.fuzz.driver import main

if __name__ == "__main__":
    sys.exit(main())
