"""Every setting of the server: its default, its bounds, its purpose.

In: values from a command line. Out: a frozen record. Knows nothing about models or sockets.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from edge.runtime.errors import SettingsError
from edge.runtime.rules import Flag, Number, OneOf, Settings, Text, Texts, Whole, setting
from edge.runtime.settings import CONTEXT_POLICIES, MAX_WAITING, USUAL_SAMPLINGS, ContextPolicy, UsualSampling

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_SECONDS = Number(0, 86_400, above=True)
_MIB = 1 << 20
MAX_TEXT_BYTES, MAX_PICTURE_BYTES = 8 * _MIB, 32 * _MIB  # longest bodies; a phone's picture is up to 20 MB of base64


@dataclass(frozen=True, slots=True)
class ServerSettings(Settings):
    """How a model is served. Raises SettingsError for a value of the wrong type or outside its range."""

    host: str = setting("127.0.0.1", Text(), "the address to listen on")
    port: int = setting(8000, Whole(0, 65_535), "the port to listen on; 0 takes a free one")
    uds: str | None = setting(None, Text(), "listen on a unix socket at this path in place of host and port")
    root_path: str | None = setting(None, Text(), "the path that a proxy in front of it serves this below, like /llm")
    names: tuple[str, ...] = setting((), Texts(), "what requests may call the model")
    any_model: bool = setting(False, Flag(), "answer whatever model a request names")
    allowed_hosts: tuple[str, ...] = setting((), Texts(), "names of this host in URLs, beside localhost and addresses")
    cors_origins: tuple[str, ...] = setting(
        (), Texts(), "web sites whose pages may send requests, like https://a.example"
    )
    context_policy: ContextPolicy = setting(
        "error", OneOf(CONTEXT_POLICIES), "what becomes of a conversation that is longer than the context"
    )
    sampling: UsualSampling = setting(
        "model",
        OneOf(USUAL_SAMPLINGS),
        "how tokens are chosen where a request does not say: as recommended, or greedily",
    )
    max_waiting: int = setting(MAX_WAITING, Whole(1, 4096), "requests that may wait for room; one more is refused")
    max_connections: int = setting(256, Whole(1, 65_535), "connections at once")
    max_body_bytes: int | None = setting(None, Whole(1024, 1 << 30), "longest body of a request")
    max_held_bytes: int = setting(
        256 * _MIB, Whole(1024, 1 << 40), "bytes of bodies that are read or answered, all together"
    )
    max_document_bytes: int = setting(64 * _MIB, Whole(1024, 1 << 32), "largest file that the page may send to be read")
    header_timeout_s: float = setting(10.0, _SECONDS, "time for the headers of a request")
    body_timeout_s: float = setting(30.0, _SECONDS, "time for the body of a request")
    send_timeout_s: float = setting(60.0, _SECONDS, "time for which a client may take nothing of its answer")
    ping_s: float = setting(5.0, _SECONDS, "silence of a stream after which a comment says that it is alive")
    stall_s: float = setting(60.0, _SECONDS, "time of one step after which the engine counts as stalled")
    shutdown_s: float = setting(10.0, Number(0, 86_400), "time for running answers to finish when the server ends")
    log_prompts: bool = setting(False, Flag(), "log the bodies of requests, at level info")
    keys: tuple[str, ...] = field(default=(), repr=False)

    def check_together(self) -> None:
        """Raise SettingsError for a path or a site that no request could match."""
        root = (self.root_path or "").rstrip("/")
        if root and not root.startswith("/"):
            raise SettingsError(
                f"root_path is {self.root_path!r}, expected a path that begins with /", param="root_path"
            )
        object.__setattr__(self, "root_path", root or None)
        for origin in self.cors_origins:
            if origin != "*" and not origin.startswith(("http://", "https://")):
                raise SettingsError(
                    f"cors_origins has {origin!r}, expected an origin like https://a.example", param="cors_origins"
                )

    @property
    def is_local(self) -> bool:
        """Whether only programs on this machine can reach the server."""
        return self.uds is not None or self.host in LOOPBACK or self.host.startswith("127.")
