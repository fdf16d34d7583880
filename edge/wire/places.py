"""Where the values of a converted body came from, so that errors name the fields that a client sent.

In: paths of the body that a conversion made, with the paths of the body that it read; an error about the first. Out:
the error in terms of the second. Knows nothing about either protocol.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from edge.runtime.errors import EdgeError
from edge.wire.errors import RequestError

_ENDS = re.compile(r"(?=[.\[])|$")  # of the beginnings of a path that are paths
_TAIL = r"(?:\.\w+|\[\d+\])*"


class Places:
    """Paths of a made body -> paths of the body that it was made from. What is not in it has the same path in both."""

    def __init__(self) -> None:
        self._table: dict[str, str] = {}

    def add(self, made: str, original: str) -> None:
        """Note where a value came from; so do values inside it, unless they have a place of their own."""
        self._table[made] = original

    def original(self, path: str) -> str:
        """Return the path of a value in the body that a client sent."""
        for end in sorted((match.start() for match in _ENDS.finditer(path)), reverse=True):
            found = self._table.get(path[:end])
            if found is not None:
                return found + path[end:]
        return path

    def told(self, error: EdgeError) -> EdgeError:
        """Return an error in terms of the original body; as it is if it is not about a body."""
        if not isinstance(error, RequestError):
            return error
        param = None if error.param is None else self.original(error.param)
        message = self._renamed(str(error), error.param)
        if (message, param) == (str(error), error.param):
            return error
        return RequestError(
            message,
            code=error.code,
            param=param,
            status=error.status,
            figures=error.figures,
            retry_after_s=error.retry_after_s,
        )

    @contextmanager
    def translating(self) -> Iterator[None]:
        """Turn errors about the made body into errors about the original one."""
        try:
            yield
        except RequestError as error:
            told = self.told(error)
            if told is error:
                raise
            raise told from error

    def _renamed(self, text: str, param: str | None) -> str:
        """Return a message with original paths; a plain word stays unless it is what the error is about."""
        roots = {re.split(r"[.\[]", made)[0] for made in self._table}
        if not roots:
            return text

        def replaced(match: re.Match[str]) -> str:
            path = match[0]
            is_word = path.isalpha() and path != param
            return path if is_word else self.original(path)

        names = "|".join(sorted(map(re.escape, roots), key=len, reverse=True))
        return re.sub(rf"(?<![\w.\]])(?:{names})(?!\w){_TAIL}", replaced, text)
