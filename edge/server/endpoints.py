"""What is answered without computing: health, models, figures, the page and its files.

In: a service. Out: responses; what cannot be answered is raised, and the guard answers it. Knows nothing about prompts.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from edge.runtime.errors import BundleError, ContextLengthError, DocumentError, MissingPackageError, PromptError
from edge.runtime.llm import LLM
from edge.runtime.machine import rss_bytes
from edge.runtime.tools.declared import JsonObject
from edge.server.body import BYTES, read_body
from edge.server.errors import RETRY_S
from edge.server.metrics import Metrics
from edge.server.service import Service
from edge.wire.answers import JsonBody
from edge.wire.body import read_body as read_json
from edge.wire.errors import UNAVAILABLE, RequestError
from edge.wire.tokenizing import tokenizer_info

ROOM_FOR_TEXT = 256 << 10  # of a body with a picture, whose bytes are four thirds as many in base64
_MAX_NAME = 255


class Gets:
    """The endpoints that only tell."""

    def __init__(self, service: Service, metrics: Metrics, page_config: JsonBody) -> None:
        self._service, self._metrics, self._page_config = service, metrics, page_config

    async def health(self, _: Request) -> Response:
        """200 if a request would be answered; else 503 and why not."""
        service = self._service
        told: JsonBody = {"status": "ok"}
        if service.state == "loading":
            told = {"status": "loading", "stage": service.stage, "progress": round(service.progress, 3)}
        elif service.state == "stopping":
            told = {"status": "stopping", "active": service.num_active}
        elif stalled_s := service.stalled_s:
            told = {"status": "stalled", "step_s": round(stalled_s, 1)}
        if told["status"] == "ok":
            return JSONResponse(told)
        return JSONResponse(told, UNAVAILABLE, {"retry-after": str(RETRY_S)})

    async def models(self, _: Request) -> Response:
        """All names of the model."""
        data = [self._model(name) for name in self._service.settings.names]
        return JSONResponse({"object": "list", "data": data})

    async def model(self, request: Request) -> Response:
        """One name of the model."""
        name = request.path_params["name"]
        if name not in self._service.settings.names:
            raise self._service.no_model(name)
        return JSONResponse(self._model(name))

    async def metrics(self, _: Request) -> Response:
        """Figures for Prometheus."""
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def tokenizer_info(self, _: Request) -> Response:
        """Names of special tokens, and the chat template."""
        return JSONResponse(tokenizer_info(self._service.llm))

    async def page_config(self, _: Request) -> Response:
        """What this server's page shows and does."""
        return JSONResponse(self._page_config, headers={"cache-control": "no-store"})

    async def status(self, _: Request) -> Response:
        """What the page shows of the server's state."""
        service = self._service
        told: JsonBody = {"state": service.state, "model": service.settings.names[0], "rss_bytes": rss_bytes()}
        if service.state == "loading":
            told |= {"stage": service.stage, "progress": round(service.progress, 3)}
        else:
            llm = service.llm
            stats = llm.stats
            told |= {
                "stalled_s": round(service.stalled_s, 1),
                "running": stats.running,
                "waiting": stats.waiting,
                "max_context": llm.engine.info.max_context,
                "kv_tokens": stats.tokens,
                "kv_free_tokens": stats.free_tokens,
                "kv_cached_tokens": stats.prefixes.tokens,
                "kv_used_blocks": llm.engine.pool.num_blocks - llm.engine.pool.num_free,
                "kv_cached_blocks": stats.prefixes.blocks,
                "kv_pinned_blocks": stats.prefixes.pinned_blocks,
                "preemptions": stats.preemptions,
                "engine": llm.engine.info.name,
                "device": llm.engine.info.device,
                "sampling": asdict(service.sampling),
                "tools": llm.template is not None,
                "pictures": self._pictures(llm),
            }
        return JSONResponse(told, headers={"cache-control": "no-store"})

    def _model(self, name: str) -> JsonBody:
        llm = self._service.llm
        info = llm.engine.info
        meta: JsonBody = {
            "n_ctx": info.max_context,
            "engine": info.name,
            "device": info.device,
            "kv_cache_tokens": llm.stats.tokens,
            "default_sampling": asdict(self._service.sampling),
        }
        try:
            manifest = llm.bundle.manifest
        except BundleError:  # made from an engine
            pass
        else:
            n_params = sum(math.prod(tensor.shape) for tensor in manifest.tensors.values())
            meta |= {"n_params": n_params, "recipe": manifest.recipe, "weight_bytes": manifest.weight_bytes}
        sees = llm.pictures is not None
        return {
            "id": name,
            "object": "model",
            "created": self._service.created,
            "owned_by": "edgeglm",
            "max_model_len": info.max_context,
            "capabilities": ["completion", *["vision"] * sees],
            "architecture": {"input_modalities": ["text", *["image"] * sees], "output_modalities": ["text"]},
            "meta": meta,
        }

    def _pictures(self, llm: LLM) -> JsonBody | None:
        """What the page has to know of pictures: how many a conversation may have (0: any number), and how large."""
        if llm.pictures is None:
            return None
        most = (self._service.max_body_bytes - ROOM_FOR_TEXT) // 4 * 3
        return {"most": llm.pictures.spec.max_pictures, "max_bytes": max(most, 0)}


@dataclass(frozen=True, slots=True)
class Call:
    """An endpoint that answers a body at once, in a worker thread."""

    path: str
    function: Callable[[JsonObject, LLM], JsonBody]


class Calling:
    """An ASGI application for one `Call`."""

    def __init__(self, call: Call, service: Service) -> None:
        self._call, self._service = call, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        settings = self._service.settings
        with self._service.bodies.taking() as taken:
            raw = await read_body(
                Headers(scope=scope),
                receive,
                max_bytes=self._service.max_body_bytes,
                timeout_s=settings.body_timeout_s,
                grown=taken.grown,
            )
            llm = self._service.llm
            body = await self._service.in_thread(lambda: self._call.function(read_json(raw), llm))
        await JSONResponse(body)(scope, receive, send)


class ReadDocument:
    """An ASGI application that returns the text of a file, as `edge run --file` reads it."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        settings, request = self._service.settings, Request(scope)
        name = request.query_params.get("name", "")
        if not name or len(name) > _MAX_NAME:
            raise RequestError(
                "name is missing or too long; send the file's name as ?name=report.pdf",
                code="missing_required_parameter",
                param="name",
            )
        raw = await read_body(
            Headers(scope=scope),
            receive,
            max_bytes=settings.max_document_bytes,
            timeout_s=settings.body_timeout_s,
            content_type=BYTES,
        )
        llm = self._service.llm
        body = await self._service.in_thread(lambda: _read(name, raw, llm))
        await JSONResponse(body)(scope, receive, send)


def forget(_: JsonObject, llm: LLM) -> JsonBody:
    """Drop what is kept of finished answers, keys and values included: a kiosk's visitor has left."""
    llm.clear_cache()
    return {}


def _read(name: str, raw: bytes, llm: LLM) -> JsonBody:
    """Return a document's text. Raises RequestError for what cannot be read, or does not fit the context."""
    from edge.documents.reader import printable_name
    from edge.documents.room import Room

    shown = printable_name(name.replace("\\", "/").rsplit("/", 1)[-1])
    with tempfile.TemporaryDirectory(prefix="edge-page-") as folder:
        path = Path(folder) / f"document{Path(shown).suffix[:16]}"
        path.write_bytes(raw)
        try:
            fitted = Room(llm, 0).read(path, shown)
        except ContextLengthError as error:
            raise RequestError(str(error), code="context_length_exceeded", param="name") from error
        except (DocumentError, MissingPackageError, PromptError) as error:
            raise RequestError(str(error), code="invalid_value", param="name") from error
    text = fitted.document.text
    return {"name": shown, "text": text, "tokens": fitted.tokens, "characters": len(text)}
