"""Replicas of one model on a Ray cluster, behind the same wire code as a single server.

`edge serve --ray` and `serve run edge.server.ray:app` use it. A front reads requests, makes ids of them and writes
answers, as a single server does; replicas compute. Ray is imported by the modules in here, and by none elsewhere but
`runtime/cluster.py`.
"""

from __future__ import annotations

import typing

if typing.TYPE_CHECKING:
    from edge.server.ray.application import app

__all__ = ["app"]

if not typing.TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name != "app":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from edge.server.ray.application import app

        return app
