"""A client that leaves, noticed while its request is being answered.

In: work, and the `receive` of its request, whose body has been read. Out: the work's result. Knows nothing about what
the work is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

T = TypeVar("T")


class ClientLeft(Exception):
    """The client closed the connection: there is nobody to answer."""


async def unless_left(work: Coroutine[Any, Any, T], receive: Receive) -> T:  # Any: as Coroutine has it
    """Return what work returns, and raise what it raises. Cancels it and raises ClientLeft as soon as nobody waits."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeft
        return working.result()
    finally:
        leaving.cancel()
        if not working.done():
            working.cancel()
            await asyncio.wait({working})


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
