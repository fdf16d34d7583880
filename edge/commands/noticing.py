"""Lines of `edge.runtime.notices` on stderr, for as long as a command runs.

In: nothing. Out: `edge: LINE`. Knows nothing about what is said.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from edge.runtime.notices import LOGGER
from edge.runtime.terminal_text import on_one_line


class _Printer(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print(f"edge: {on_one_line(record.getMessage())}", file=sys.stderr, flush=True)


@contextmanager
def notices_printed() -> Iterator[None]:
    """Print them; with --log-level, too, each once."""
    logger, printer = logging.getLogger(LOGGER), _Printer()
    before = logger.level, logger.propagate
    logger.addHandler(printer)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(printer)
        logger.setLevel(before[0])
        logger.propagate = before[1]
