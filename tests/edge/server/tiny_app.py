"""An ASGI application for the protocol's tests, in a server of its own.

As a script it takes the limit of open files, and prints its port.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, Scope

from edge.server.listener import Listener, connections_that_fit
from edge.server.protocol import ConnectionLimits, limited_protocol


class TinyApp:
    """/echo answers with the body; /early answers before it; /wait until the client leaves; /flood with 64 MiB."""

    def __init__(self) -> None:
        self.running = 0
        self.left = 0  # clients that did not wait for their answer

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        assert scope["type"] == "http"
        self.running += 1
        try:
            match scope["path"]:
                case "/early":
                    await _answer(send, b"no")
                case "/wait":
                    while (await receive())["type"] != "http.disconnect":
                        pass
                    self.left += 1
                case "/flood":
                    await self._flood(receive, send)
                case _:
                    await self._echo(scope, receive, send)
        finally:
            self.running -= 1

    async def _echo(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        body = b""
        while True:
            event = await receive()
            if event["type"] != "http.request":
                self.left += 1
                return
            body += event["body"]
            if not event["more_body"]:
                break
        assert scope["type"] == "http"
        told = {"method": scope["method"], "path": scope["path"], "version": scope["http_version"], "body": len(body)}
        await _answer(send, json.dumps(told).encode())

    async def _flood(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        async def leaving() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            self.left += 1

        watch = asyncio.ensure_future(leaving())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(1024):
            if watch.done():
                break
            await send({"type": "http.response.body", "body": bytes(2**16), "more_body": True})
        else:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        watch.cancel()


async def _answer(send: ASGISendCallable, body: bytes) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": body, "more_body": False})


@contextmanager
def serving(app: TinyApp, limits: ConnectionLimits) -> Iterator[int]:
    """Run a server in a thread; gives its port."""
    listener = Listener(socket.create_server(("127.0.0.1", 0)))
    server = uvicorn.Server(config(app, limits))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.005)
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def config(app: TinyApp, limits: ConnectionLimits) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=limited_protocol(limits),
        ws="none",
        lifespan="off",
        loop="asyncio",  # as the server has it; uvicorn would take uvloop, which ray brings
        server_header=False,
        log_config=None,
        timeout_graceful_shutdown=1,
    )


def main(files: int) -> None:
    """Serve with few open files; prints the port."""
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    listener = Listener(socket.create_server(("127.0.0.1", 0), backlog=512))
    print(listener.getsockname()[1], flush=True)  # noqa: T201  # for the test
    limits = ConnectionLimits(max_connections=connections_that_fit(256))
    uvicorn.Server(config(TinyApp(), limits)).run(sockets=[listener])


if __name__ == "__main__":
    import sys

    main(int(sys.argv[1]))
