"""Listening: the address, the line that says where, and a stop that loses no accepted request."""

from __future__ import annotations

import socket
from types import FrameType

import uvicorn

from uniresxx.errors import InputError
from uniresxx.serve.app import Server

LOOPBACK = ("127.0.0.1", "::1", "localhost")


class _Listener(uvicorn.Server):
    """On the first signal, new requests get 503 and accepted ones are finished; on the second, it ends at once."""

    def __init__(self, config: uvicorn.Config, server: Server) -> None:
        super().__init__(config)
        self._server = server

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal arrived."""
        if self._server.gate.stopping:
            self.force_exit = self.should_exit = True
        self._server.gate.stopping = True

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to end."""
        if self._server.gate.stopping and not self._server.gate.active:
            self.should_exit = True
        return await super().on_tick(counter)


def open_socket(host: str, port: int) -> socket.socket:
    """A listening socket; InputError where the address cannot be used."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=256)
    except (OSError, OverflowError) as error:
        raise InputError(
            f"--host {host} --port {port}: cannot listen there ({error}); name another"
        ) from None


def listen(server: Server, opened: socket.socket) -> bool:
    """Serve until a signal comes; whether every accepted request was answered (no second signal came)."""
    # the gate is what is served; the lifespan of the application inside it passes through
    config = uvicorn.Config(
        server.gate, log_level="warning", access_log=False, timeout_keep_alive=30, server_header=False
    )
    listener = _Listener(config, server)
    listener.run(sockets=[opened])
    return not listener.force_exit
