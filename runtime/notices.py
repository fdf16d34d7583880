"""Lines for whoever starts a program: something went differently from usual, and nothing failed.

In: a line of text. Out: a record of the logger "edge.notices", which is silent unless a program listens; the command
prints it on stderr. Knows nothing about what happened.
"""

from __future__ import annotations

import logging

LOGGER = "edge.notices"

_logger = logging.getLogger(LOGGER)


def notice(line: str, *, usual: bool = False) -> None:
    """Say a line, without a period at its end. usual: it is news, and nothing to look into."""
    _logger.log(logging.INFO if usual else logging.WARNING, "%s", line)
