"""uvicorn's HTTP/1.1 with limits that it lacks: time and size of a request's headers, and number of connections."""

from __future__ import annotations

import asyncio
import json

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

SLOWEST_HEADERS_S = 10.0  # from the connection, or from the first byte of a later request, to the end of the headers
LARGEST_HEADERS = 64 << 10  # bytes
MOST_PIPELINED = 100  # waiting requests of one connection
MOST_CONNECTIONS = 512  # a process may open 1,024 files on most systems


def refusal(status: str, reason: str, *headers: str) -> bytes:
    """The response to a request that does not reach the application."""
    body = json.dumps({"error": reason})
    head = [f"HTTP/1.1 {status}", "Content-Type: application/json", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*head, "Connection: close", "", body]).encode()


class Protocol(HttpToolsProtocol):
    """One connection. It is closed if a request's headers are late or too large."""

    deadline: asyncio.TimerHandle | None = None
    headers_size = 0  # bytes of the request so far: headers, and trailers and framing that exceed the size of the body

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            reason = f"the server has {MOST_CONNECTIONS} connections: try again"
            transport.write(refusal("503 Service Unavailable", reason, "Retry-After: 1"))
            transport.close()
        self._expect_headers()

    def data_received(self, data: bytes) -> None:
        self.headers_size += len(data)
        super().data_received(data)
        if self.headers_size > LARGEST_HEADERS:
            self.send_400_response(f"the headers are larger than {LARGEST_HEADERS:,} bytes")
        elif self.cycle is None or self.cycle.response_complete:
            self._expect_headers()
        else:
            self._has_headers()

    def send_400_response(self, msg: str) -> None:
        self.transport.write(refusal("400 Bad Request", msg))
        self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if len(self.pipeline) >= MOST_PIPELINED:
            raise ValueError("too many waiting requests of one connection")  # uvicorn responds with 400

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
