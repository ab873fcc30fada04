"""The error for a refused request."""

from __future__ import annotations


class RefusedError(Exception):
    """A refused request: HTTP status, one reason, and response headers."""

    def __init__(self, status: int, reason: str, *, unread: bool = False) -> None:
        """`unread`: the body was not read completely, so the connection cannot be reused."""
        super().__init__(reason)
        self.status, self.reason = status, reason
        again = {"Retry-After": "1"} if status == 503 else {}  # seconds
        self.headers = again | ({"Connection": "close"} if unread else {})
