"""The table of paths, and what answers each.

In: a service. Out: an ASGI application. Knows nothing about sockets, fields or how answers are computed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

import edge.web
from edge.runtime.errors import shown
from edge.server.answering import Answering, Post
from edge.server.endpoints import Call, Calling, Gets, ReadDocument, forget
from edge.server.errors import ErrorBody, response_of
from edge.server.guard import Guard
from edge.server.keys import Keys
from edge.server.metrics import Metrics
from edge.server.openapi import openapi, operations_of
from edge.server.service import Service
from edge.wire.answers import JsonBody
from edge.wire.anthropic_answers import anthropic_error_body
from edge.wire.anthropic_request import AnthropicRequest, count_tokens
from edge.wire.chat_request import ChatRequest
from edge.wire.completion_request import CompletionRequest
from edge.wire.errors import NOT_ALLOWED, NOT_FOUND, ErrorAnswer, RequestError
from edge.wire.responses_request import ResponsesRequest
from edge.wire.tokenizing import detokenize, tokenize

POSTS = (
    Post("/v1/chat/completions", ChatRequest, "chatcmpl-"),
    Post("/v1/completions", CompletionRequest, "cmpl-"),
    Post("/v1/responses", ResponsesRequest, "resp_"),
    Post("/v1/messages", AnthropicRequest, "msg_"),
)
CALLS: tuple[Call, ...] = (
    Call("/page/forget", forget),
    Call("/v1/messages/count_tokens", count_tokens),
    Call("/tokenize", tokenize),
    Call("/detokenize", detokenize),
)
WITHOUT_V1 = ("/chat/completions", "/completions", "/models")  # as llama.cpp and mlx-lm answer, too
_PAGE = Path(edge.web.__file__).parent
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


def make_app(service: Service, metrics: Metrics, page_config: JsonBody) -> ASGIApp:
    """Return the whole application, with its guard."""
    metrics.watch(lambda: service.llm if service.state == "ready" else None)
    gets = Gets(service, metrics, page_config)
    answerers = {post.path: Answering(post, service, metrics, _error_body_of(post.path)) for post in POSTS}
    routes = [
        Route("/", _page_file("index.html")),
        Route("/web/{name:path}", _web()),
        Route("/health", gets.health),
        Route("/metrics", gets.metrics),
        Route("/v1/models", gets.models),
        Route("/models", gets.models),
        Route("/v1/models/{name:path}", gets.model),
        Route("/tokenizer_info", gets.tokenizer_info),
        Route("/page-config.json", gets.page_config),
        Route("/page/status.json", gets.status),
        Route("/page/read-document", ReadDocument(service), methods=["POST"]),
        *(Route(path, answer, methods=["POST"]) for path, answer in answerers.items()),
        *(Route(path, answerers[f"/v1{path}"], methods=["POST"]) for path in WITHOUT_V1 if f"/v1{path}" in answerers),
        *(Route(call.path, Calling(call, service), methods=["POST"]) for call in CALLS),
    ]
    routes.append(Route("/openapi.json", _document(routes, service)))
    return Guard(
        _Routed(Router(routes, redirect_slashes=False)), service.settings, Keys(service.settings.keys), _error_body_of
    )


def _error_body_of(path: str) -> ErrorBody:
    """Return the shape of errors for a path, also where no endpoint is reached."""
    return anthropic_error_body if path.startswith("/v1/messages") else ErrorAnswer.to_dict


class _Routed:
    """A router whose refusals look like all others."""

    def __init__(self, router: Router) -> None:
        self._router = router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self  # the router then raises, in place of answering with text
        try:
            await self._router(scope, receive, send)
        except HTTPException as refused:
            response = response_of(_refusal(refused, scope), _error_body_of(scope["path"]))
            response.headers.update(refused.headers or {})
            await response(scope, receive, send)


def _refusal(refused: HTTPException, scope: Scope) -> RequestError:
    path = shown(scope["path"])
    if refused.status_code == NOT_ALLOWED:
        allowed = (refused.headers or {}).get("Allow", "")
        return RequestError(
            f"{scope['method']} is not allowed for {path}, expected {allowed}",
            code="method_not_allowed",
            status=NOT_ALLOWED,
        )
    return RequestError(
        f"nothing is at {path}; POST /v1/chat/completions answers messages, and GET /openapi.json lists all paths",
        code="not_found",
        status=NOT_FOUND,
    )


def _document(routes: list[Route], service: Service) -> Callable[[Request], Awaitable[Response]]:
    listed = operations_of([*((route.path, route.methods or ()) for route in routes), ("/openapi.json", ("GET",))])
    document = openapi(listed, root_path=service.settings.root_path or "", keys=bool(service.settings.keys))

    async def respond(_: Request) -> Response:
        return JSONResponse(document)

    return respond


def _page_file(name: str) -> Callable[[Request], Awaitable[Response]]:
    async def respond(_: Request) -> Response:
        return FileResponse(_PAGE / name, media_type=_TYPES[Path(name).suffix], headers={"cache-control": "no-cache"})

    return respond


def _web() -> Callable[[Request], Awaitable[Response]]:
    """Files of the page, by a table of names: what a client asks for never becomes a path."""
    files = {path.relative_to(_PAGE).as_posix(): path for path in _PAGE.rglob("*") if path.suffix in _TYPES}

    async def respond(request: Request) -> Response:
        path = files.get(request.path_params["name"])
        if path is None:
            raise HTTPException(NOT_FOUND)
        return FileResponse(path, media_type=_TYPES[path.suffix], headers={"cache-control": "no-cache"})

    return respond
