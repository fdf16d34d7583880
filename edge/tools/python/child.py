"""The interpreter in the sandbox: runs cells one after the other, with variables that persist.

Started by `sandbox.py` as a script, with two numbers and the limits: it reads requests from a private copy of its input
and writes answers to a private descriptor, so that what a cell prints is never taken for an answer. Prints go to the
descriptors 1 and 2, which are one pipe: their order is kept. Imports the standard library alone. A cell can do what it
likes with this process, and what is said here is believed only as far as the text of a result goes.

A message is four bytes of length, most significant first, and JSON in ASCII:

    request   {"call": 1, "code": "1 + 1"}
    answer    {"call": 1, "error": null}, or {"call": 1, "error": "Traceback ..."}
"""

from __future__ import annotations

import ast
import json
import linecache
import os
import sys
import traceback
import types
from contextlib import suppress

DATA = "/mnt/data"
_FRAMES = 12  # of a traceback
_ERROR = 8000  # characters of a traceback
_RESERVE = 8 << 20  # bytes that are freed when memory runs out, so that this can be said
_reserve: list[bytearray] = []


def main() -> None:
    import resource  # which Windows has not; this module can be imported there

    answers, limits = int(sys.argv[1]), json.loads(sys.argv[2])
    requests = os.dup(0)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    os.set_inheritable(answers, False)
    for name, most in limits.items():
        resource.setrlimit(getattr(resource, name), tuple(most))
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    sys.argv = [""]
    sys.path.append(DATA)
    with suppress(OSError):  # a cell has closed them
        _serve(requests, answers, module.__dict__)
    os._exit(1)


def _serve(requests: int, answers: int, names: dict[str, object]) -> None:
    _send(answers, {"call": 0})
    while True:
        request = json.loads(_read(requests, int.from_bytes(_read(requests, 4), "big")))
        error = _run(str(request["code"]), f"<call {request['call']}>", names)
        _send(answers, {"call": request["call"], "error": error})


def _read(requests: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = os.read(requests, size - len(data))
        if not piece:
            os._exit(0)  # the program has gone, or closed the tool
        data += piece
    return bytes(data)


def _send(answers: int, message: dict[str, object]) -> None:
    body = json.dumps(message).encode("ascii")
    data = len(body).to_bytes(4, "big") + body
    while data:
        data = data[os.write(answers, data) :]


def _run(code: str, file: str, names: dict[str, object]) -> str | None:
    """Run one cell and return its traceback; None if it ended well."""
    with suppress(MemoryError):
        _reserve[:] = [bytearray(_RESERVE)]
    try:
        try:
            tree = ast.parse(code, file)
            linecache.cache[file] = (len(code), None, [f"{line}\n" for line in code.splitlines()], file)
            last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, file, "exec"), names)  # what this process is for
            if isinstance(last, ast.Expr):
                _show(eval(compile(ast.Expression(last.value), file, "eval"), names), names)  # noqa: S307
        finally:
            for stream in (sys.stdout, sys.stderr):
                _flush(stream)
    except BaseException as error:  # SystemExit and KeyboardInterrupt end the cell, not the interpreter
        _reserve.clear()
        return _told(error)
    return None


def _show(value: object, names: dict[str, object]) -> None:
    """Print the last expression's value as a notebook does."""
    if value is not None:
        names["_"] = value
        print(repr(value))  # noqa: T201


def _flush(stream: object) -> None:
    with suppress(Exception):  # a cell may have put anything there
        stream.flush()  # type: ignore[attr-defined]  # likewise


def _told(error: BaseException) -> str:
    """Return a traceback with the lines of cells alone: what libraries do inside is noise to a model."""
    try:
        told = traceback.TracebackException.from_exception(error, compact=True)
        seen: set[int] = set()
        _keep_cells(told, seen)
        text = "".join(told.format())
    except BaseException:  # the error's own methods failed, or memory is short
        text = f"{type(error).__name__}\n"
    if len(text) > _ERROR:
        text = f"{text[: _ERROR // 2]}\n[...]\n{text[-_ERROR // 2 :]}"
    return text.rstrip("\n")


def _keep_cells(told: traceback.TracebackException, seen: set[int]) -> None:
    if id(told) in seen:
        return
    seen.add(id(told))
    frames = [frame for frame in told.stack if frame.filename.startswith("<call ")]
    told.stack = traceback.StackSummary.from_list(frames[-_FRAMES:])
    for inner in (told.__cause__, told.__context__, *(getattr(told, "exceptions", None) or ())):
        if inner is not None:
            _keep_cells(inner, seen)


if __name__ == "__main__":
    main()
