"""Mirrors that abort, alter, redirect or delay files are refused before parsing, and the next mirror is tried."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler

import pytest

from classifier.sources.catalog import SourceFile
from classifier.sources.transfer import fetch
from tests.loopback import Answer, closed_address, reset, send
from tests.sources.test_transfer import _certificate

CONTENT = bytes(range(256)) * 1000
FILE = SourceFile("images.gz", f"md5:{hashlib.md5(CONTENT).hexdigest()}")
DEADLINE_S = 1.0
MARGIN_S = 4.0  # on a busy machine
HTML = (
    b"<!DOCTYPE html><p>Log in",
    b"\n <html>",
    b"<HTML><body>404",
    b"<!doctype html>" + bytes(300_000),
    CONTENT[:10] + b"<html>",
)


def flipped(bit: int) -> bytes:
    content = bytearray(CONTENT)
    content[bit // 8] ^= 1 << bit % 8
    return bytes(content)


def body(content: bytes, length: int | None = None) -> Answer:
    return lambda request: send(request, content, length=length)


def cut(percent: int, told: bool) -> Answer:
    """A truncated body, with the full Content-Length or without one."""
    return body(CONTENT[: len(CONTENT) * percent // 100], len(CONTENT) if told else -1)


def broken_after(size: int, request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Content-Length", str(len(CONTENT)))
    request.end_headers()
    request.wfile.write(CONTENT[:size])
    request.wfile.flush()
    reset(request)


def one_byte_a_second(start: int, request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.end_headers()
    request.wfile.write(CONTENT[:start])
    for byte in CONTENT[start : start + 5]:
        request.wfile.write(bytes((byte,)))
        request.wfile.flush()
        time.sleep(1)


def redirect(address: str, request: BaseHTTPRequestHandler) -> None:
    send(request, b"", status=302, Location=address)


def attacks(plain: str) -> list[tuple[str, Answer, bool, str]]:
    """100 attacks: name, answer, whether over TLS, and a part of the expected reason."""
    found: list[tuple[str, Answer, bool, str]] = []
    for percent in range(0, 100, 5):
        found.append((f"cut at {percent}%", cut(percent, True), False, "IncompleteRead"))
        found.append((f"cut at {percent}%, length not told", cut(percent, False), False, "wrong checksum"))
    for bit in range(0, 8 * len(CONTENT), 8 * len(CONTENT) // 20):
        found.append((f"bit {bit} flipped", body(flipped(bit)), False, "wrong checksum of 256,000 bytes"))
    for extra in (1, 2, 100, 4096, 200_000):
        found.append((f"{extra} bytes longer", body(CONTENT + bytes(extra)), False, "wrong checksum"))
        found.append((f"{extra} bytes shorter", body(CONTENT[:-extra]), False, "wrong checksum"))
    for content in HTML:
        found.append(
            (f"HTML {content[:12]!r}", body(content), False, "HTML page" if content.strip()[:1] == b"<" else "wrong")
        )
    for target in (plain, plain + "images.gz", plain.upper(), plain + "a?b=c", plain.replace("127.0.0.1", "localhost")):
        found.append((f"redirect to {target}", partial(redirect, target), True, "redirects from https to "))
    for start in (0, 1, 100, 65_536, 255_000):
        slow = partial(one_byte_a_second, start)
        found.append((f"a byte a second from {start}", slow, False, "longer than download.deadline_s"))
    for size in (0, 1, 1000, 65_536, 100_000, 200_000, 255_999):
        found.append((f"reset after {size} bytes", partial(broken_after, size), False, ""))
    for status in (204, 206, 301, 400, 403, 404, 500, 503):
        found.append((f"status {status}", partial(send, body=CONTENT, status=status), False, f"status {status}"))
    assert len(found) == 100, len(found)
    return found


def test_a_bad_mirror_is_refused_and_the_next_is_tried(attack, serve: Callable, tmp_path, monkeypatch, capsys):
    row = attack("download: cut, flipped, longer, shorter, HTML, redirect to http, a byte a second, reset")
    context, authority = _certificate(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority))
    monkeypatch.delenv("DVC_ROOT", raising=False)
    good = serve(body(CONTENT))
    for number, (name, answer, secure, reason) in enumerate(row.some(attacks(good.address))):
        bad, dead = serve(answer, tls=context if secure else None), closed_address()
        alone, helped = tmp_path / f"{number}-alone", tmp_path / f"{number}-helped"
        with row.case(name):
            good.asked.clear()
            started = time.monotonic()
            with pytest.raises(OSError, match=r"images\.gz could not be fetched") as caught:
                fetch(FILE, alone, [bad.address, dead], deadline_s=DEADLINE_S, retries=0)
            assert time.monotonic() - started < 2 * DEADLINE_S + MARGIN_S, "the deadline was exceeded"
            said = str(caught.value)
            assert reason in said, said
            assert "\n" not in said, said
            assert f"{dead}: Connection refused" in said, said
            assert not list(alone.iterdir()), "a file is left"
            assert good.asked == [], "the redirect was followed"
            assert fetch(FILE, helped, [bad.address, good.address], deadline_s=DEADLINE_S, retries=0) == good.address
            assert {path.name: path.read_bytes() for path in helped.iterdir()} == {"images.gz": CONTENT}
            assert reason in capsys.readouterr().err
    row.verdict()
