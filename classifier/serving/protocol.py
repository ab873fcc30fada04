"""HTTP/1.1 by uvicorn, with what it lacks: a deadline for a request's headers and a friendly limit of connections."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

SLOWEST_HEADERS_S = 10.0  # from the connection, or from the first byte of a later request, to the end of the headers
MOST_CONNECTIONS = 512  # a process may open 1,024 files on most systems
TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Type: application/json\r\nContent-Length: 57\r\n"
    b'Connection: close\r\n\r\n{"error": "the server has 512 connections: try it again"}'
)


class Protocol(H11Protocol):
    """One connection. It is closed if a request's headers do not arrive in time."""

    deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.write(TOO_MANY)
            transport.close()
        self._expect_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._expect_headers()
        else:
            self._has_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._has_headers()
        super().connection_lost(exc)

    def _expect_headers(self) -> None:
        if self.deadline is None:
            self.deadline = self.loop.call_later(SLOWEST_HEADERS_S, self.transport.close)

    def _has_headers(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None
