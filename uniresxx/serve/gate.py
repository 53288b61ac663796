"""What stands before every request: caps on its size, its time to arrive and the number of requests; the stop."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from time import perf_counter
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from uniresxx.serve.metrics import Metrics
from uniresxx.serve.refused import Refused
from uniresxx.serve.settings import ServeSettings

ALWAYS = ("/health", "/metrics")  # answered also while the server stops or is full


def error_body(message: str, status: int) -> dict[str, Any]:
    """An error as clients of OpenAI's API expect it."""
    kind = "invalid_request_error" if status < 500 and status != 429 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


class Gate:
    """ASGI middleware: lets a request in, or answers it with 408, 413, 429 or 503."""

    def __init__(self, app: ASGIApp, settings: ServeSettings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics
        self.stopping = False
        self.active = 0  # requests that were let in and are not answered
        self.held_bytes = 0  # of their bodies
        self._of_client = Counter[str]()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request (or the start and end of the server)."""
        if scope["type"] != "http" or scope["path"] in ALWAYS:
            await self.app(scope, receive, send)
            return
        start, status = perf_counter(), 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        client = scope["client"][0] if scope.get("client") else ""
        refusal = self._refusal(scope, client)
        if refusal is not None:
            await _answer(noting, refusal)
        else:
            self.active += 1
            self._of_client[client] += 1
            body = _Body(receive, self)
            try:
                await self.app(scope, body.receive, noting)
            finally:
                self.active -= 1
                self.held_bytes -= body.bytes
                self._of_client[client] -= 1
                if not self._of_client[client]:
                    del self._of_client[client]
        route = scope.get("route")
        path = route.path if route is not None else "other"
        self.metrics.requests.labels(path, str(status)).inc()
        self.metrics.seconds.labels(path).observe(perf_counter() - start)

    def _refusal(self, scope: Scope, client: str) -> Refused | None:
        """Why the request is not let in; None: it is."""
        settings = self.settings
        if self.stopping:
            return Refused(503, "the server is stopping", retry_after=1)
        if self.active >= settings.max_requests:
            return _full()
        if self._of_client[client] >= settings.per_client:
            return Refused(429, f"more than {settings.per_client} requests at a time: wait", retry_after=1)
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit():
            return Refused(400, "Content-Length is not a number")
        if int(length[:20]) > settings.max_body_bytes:
            return _too_large(settings)
        return None


class _Body:
    """The body of a request, which must arrive in time and within the cap."""

    def __init__(self, receive: Receive, gate: Gate) -> None:
        self._receive, self._gate = receive, gate
        self.bytes, self._complete = 0, False  # received so far
        self._end = asyncio.get_running_loop().time() + gate.settings.body_seconds

    async def receive(self) -> Message:
        if self._complete:  # the application waits for the client to leave
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._end):
                message = await self._receive()
        except TimeoutError:
            raise Refused(408, "the request did not arrive in time") from None
        size, settings = len(message.get("body", b"")), self._gate.settings
        self.bytes += size
        self._gate.held_bytes += size
        self._complete = not message.get("more_body", False)
        if self.bytes > settings.max_body_bytes:
            raise _too_large(settings)
        if self._gate.held_bytes > settings.held_body_bytes:
            raise _full()
        return message


def _full() -> Refused:
    return Refused(503, "the server is full: try again", retry_after=1)


def _too_large(settings: ServeSettings) -> Refused:
    return Refused(413, f"the request is over the cap of {settings.max_body_bytes} bytes")


async def _answer(send: Send, refused: Refused) -> None:
    """The answer to a request that is not let in; its body is not read, so the connection ends."""
    body = json.dumps(error_body(str(refused.detail), refused.status_code)).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    headers += [(name.lower().encode(), value.encode()) for name, value in (refused.headers or {}).items()]
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": refused.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": body})
