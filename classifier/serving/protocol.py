"""HTTP/1.1 by uvicorn, with what it lacks: limits of a request's headers in time and size, and of connections."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

SLOWEST_HEADERS_S = 10.0  # from the connection, or from the first byte of a later request, to the end of the headers
LARGEST_HEADERS = 64 << 10  # bytes
MOST_PIPELINED = 100  # requests of one connection that wait for the answers before theirs
MOST_CONNECTIONS = 512  # a process may open 1,024 files on most systems
TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Type: application/json\r\nContent-Length: 57\r\n"
    b'Connection: close\r\n\r\n{"error": "the server has 512 connections: try it again"}'
)


class Protocol(HttpToolsProtocol):
    """One connection. It is closed if a request's headers do not arrive in time, or do not end."""

    deadline: asyncio.TimerHandle | None = None
    headers_size = 0  # bytes of the request so far: headers, and trailers and framing beyond the size of the body

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.write(TOO_MANY)
            transport.close()
        self._expect_headers()

    def data_received(self, data: bytes) -> None:
        self.headers_size += len(data)
        super().data_received(data)
        if self.headers_size > LARGEST_HEADERS:
            self.send_400_response(f"The headers are larger than {LARGEST_HEADERS:,} bytes.")
        elif self.cycle is None or self.cycle.response_complete:
            self._expect_headers()
        else:
            self._has_headers()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if len(self.pipeline) >= MOST_PIPELINED:
            raise ValueError("too many requests of one connection wait")  # answered with 400, by uvicorn

    def on_body(self, body: bytes) -> None:
        self.headers_size -= 2 * len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self.headers_size = 0
        super().on_message_complete()

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
