"""A request that is refused."""

from __future__ import annotations


class RefusedError(Exception):
    """A request that gets an error: its HTTP status, one reason, and the headers that go with them."""

    def __init__(self, status: int, reason: str, *, unread: bool = False) -> None:
        """`unread`: the body was not read to its end, so that the connection cannot carry another request."""
        super().__init__(reason)
        self.status, self.reason = status, reason
        again = {"Retry-After": "1"} if status == 503 else {}  # seconds
        self.headers = again | ({"Connection": "close"} if unread else {})
