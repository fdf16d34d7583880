"""Many processes, each with a stream that it reads; for a test that kills them. Takes a port and a number."""

from __future__ import annotations

import os
import sys

from tests.edge.server.raw import Client, request


def main(port: int, number: int) -> None:
    """Start them; prints a line once each has read something or was refused."""
    body = b'{"messages": [{"role": "user", "content": "Count to a million."}], "stream": true, "ignore_eos": true}'
    asked = request("POST", "/v1/chat/completions", "Content-Type: application/json", body=body)
    done, told = os.pipe()
    for _ in range(number):
        if os.fork() == 0:
            client = Client(port).send(asked)
            client.until(b"\r\n\r\n")
            os.write(told, b".")
            while client.socket.recv(2**16):
                pass
            sys.stdin.read()  # until it is killed
    started = 0
    while started < number:
        started += len(os.read(done, number))
    print("all", flush=True)  # noqa: T201  # for the test
    sys.stdin.read()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
