"""The application: the doors behind the gate, and every error as one line of JSON."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from uniresxx.errors import InputError
from uniresxx.segmenters.base import Segmenter
from uniresxx.serve import chat_door, segmentation_doors
from uniresxx.serve.gate import Gate, error_body
from uniresxx.serve.metrics import CONTENT_TYPE
from uniresxx.serve.schemas import Health, ModelEntry, Models
from uniresxx.serve.service import Service, first_line
from uniresxx.serve.settings import ServeSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Server:
    """The application and what stops it."""

    app: FastAPI
    gate: Gate  # the ASGI application to run: `app` behind the limits
    service: Service


def create_server(segmenter: Segmenter, settings: ServeSettings | None = None) -> Server:
    """A server of one model; nothing listens yet.

    Args:
        segmenter: any model; from now on it belongs to the server's thread.
        settings: limits; None: the defaults.
    """
    settings = settings or ServeSettings()
    service = Service(segmenter, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    from uniresxx import __version__

    app = FastAPI(
        title="uniresxx", version=__version__, description="Finds what words describe in photos, as masks.",
        lifespan=lifespan, docs_url=None, redoc_url=None,  # their pages load scripts from elsewhere
    )  # fmt: skip
    gate = Gate(app, settings, service.metrics)
    app.include_router(segmentation_doors.doors(service))
    app.include_router(chat_door.doors(service))
    app.include_router(_state_doors(service, gate))
    app.add_exception_handler(InputError, _input_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(Exception, _fault)
    return Server(app, gate, service)


def _state_doors(service: Service, gate: Gate) -> APIRouter:
    """What is served, and how the server is."""
    router = APIRouter()
    name, started = service.settings.model_name, int(time.time())

    @router.get("/v1/models")
    async def models() -> Models:
        """The one model, as OpenAI's clients list it."""
        return Models(data=[ModelEntry(id=name, created=started)])

    @router.get("/health", responses={503: {"model": Health, "description": "the server is stopping"}})
    async def health(response: Response) -> Health:
        """200 while requests are taken, 503 once the server stops."""
        response.status_code = 503 if gate.stopping else 200
        status = "stopping" if gate.stopping else "ok"
        return Health(status=status, model=name, waiting=service.questions)  # type: ignore[arg-type]

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Counters in the text format of Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    return router


def _error(status: int, message: str, headers: Any = None) -> JSONResponse:
    return JSONResponse(error_body(message, status), status, headers)


async def _input_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, InputError)
    return _error(400, first_line(error))


async def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, str(error.detail), error.headers)


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    """The first thing that does not fit the form of a request; what was sent is not repeated."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    inside = [str(part) for part in first["loc"] if part != "body"]
    place = ".".join(inside) if inside and first["type"] != "json_invalid" else "the request"
    return _error(400, f"{place[:200]}: {first['msg'][:200]}")


async def _fault(_: Request, error: Exception) -> JSONResponse:
    logger.error("a request failed", exc_info=error)
    return _error(500, "the server failed to answer; its log has the reason")
