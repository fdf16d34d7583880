"""Several answers at once, read as one series of chunks.

In: streams. Out: their chunks as they come, each with the index of its stream. Knows nothing about requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from edge.runtime.chunk import Chunk
from edge.runtime.stream import Stream


async def merged(streams: Sequence[Stream]) -> AsyncIterator[tuple[int, Chunk]]:
    """Yield the chunks of all streams. Raises the first error of any of them."""
    if len(streams) == 1:  # most requests; this needs no tasks
        async for chunk in streams[0]:
            yield 0, chunk
        return
    news: asyncio.Queue[tuple[int, Chunk | Exception | None]] = asyncio.Queue()
    tasks = [asyncio.ensure_future(_read(index, stream, news)) for index, stream in enumerate(streams)]
    try:
        left = len(tasks)
        while left:
            index, item = await news.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                left -= 1
            else:
                yield index, item
    finally:
        for task in tasks:
            task.cancel()


async def _read(index: int, stream: Stream, news: asyncio.Queue[tuple[int, Chunk | Exception | None]]) -> None:
    try:
        async for chunk in stream:
            news.put_nowait((index, chunk))
    except Exception as error:
        news.put_nowait((index, error))
    else:
        news.put_nowait((index, None))
