"""A listening socket that outlives the limit of open files, and how many connections that limit leaves room for.

In: a socket that is bound; a wished number of connections. Out: the socket for uvicorn's `serve(sockets=[...])`; a
number. Knows nothing of what is sent.

asyncio logs each failure of `accept`, a few thousand in a row, and stops listening for a second. Here a client that
comes when no file can be opened gets its answer: one descriptor is kept in reserve for it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from edge.server.refusals import TOO_MANY

_SPARE_FILES = 32  # what the server opens beside connections: documents, caches, refused clients
_OPEN_FILES = ("/proc/self/fd", "/dev/fd")  # Linux, macOS
_NAP_S = 0.01


class Listener(socket.socket):
    """A listening socket that refuses, rather than fails, when there are too many open files."""

    def __init__(self, bound: socket.socket) -> None:
        super().__init__(bound.family, bound.type, bound.proto, fileno=bound.detach())
        self._spare: int | None = None
        self._keep_spare()

    def accept(self) -> tuple[socket.socket, Any]:  # Any: an address, as in socket.socket
        try:
            return super().accept()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
        self._refuse_one()
        raise BlockingIOError  # asyncio goes on to other work, and comes again if there are more

    def close(self) -> None:
        self._give_spare()
        super().close()

    def _refuse_one(self) -> None:
        self._give_spare()
        try:
            client, _ = super().accept()
        except BlockingIOError:
            pass  # it has left
        except OSError:
            time.sleep(_NAP_S)  # another thread was quicker; without a pause this would be a busy loop
        else:
            with client, contextlib.suppress(OSError):
                client.setblocking(False)
                client.send(TOO_MANY.to_bytes())
                client.shutdown(socket.SHUT_WR)
                client.recv(2**16)  # unread bytes would reset the connection, and the answer with it
        self._keep_spare()

    def _keep_spare(self) -> None:
        with contextlib.suppress(OSError):
            self._spare = os.open(os.devnull, os.O_RDONLY)

    def _give_spare(self) -> None:
        spare, self._spare = self._spare, None
        if spare is not None:
            os.close(spare)


def connections_that_fit(wanted: int) -> int:
    """Return how many connections the limit of open files has room for, at most `wanted` and at least one."""
    if sys.platform == "win32":
        return wanted
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    folder = next((Path(name) for name in _OPEN_FILES if Path(name).is_dir()), None)
    if limit == resource.RLIM_INFINITY or folder is None:
        return wanted
    used = sum(1 for _ in folder.iterdir())
    return max(1, min(wanted, limit - used - _SPARE_FILES))
