"""Runs the HTTP server: from an ONNX file, or from whatever `classifier.serving.fetch` brings."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from errno import EACCES, EADDRINUSE
from pathlib import Path

import uvicorn

from classifier.errors import UserError
from classifier.serving.application import application
from classifier.serving.protocol import Protocol
from classifier.serving.state import State

RESTART_S = 5.0  # before a watch that ended is started again
FINISH_S = 30  # for requests that run when the server is stopped


def serve(model: Path | str, host: str, port: int, *, watch: bool = False) -> None:
    """Serve until SIGTERM or SIGINT, then finish the requests that run.

    `model`: an ONNX file that `classifier export` wrote, or a reference that `classifier.serving.fetch` resolves in a
    process of its own; with `watch`, that process goes on and says when the reference means another model. Raises
    UserError if there is no model, OSError if the address is in use.
    """
    with listening(host, port) as listener:
        asyncio.run(Server(model, watch, listener).run())


def listening(host: str, port: int) -> socket.socket:
    """A socket at this address. Raises OSError, which names it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol, by which asyncio knows that it may turn off Nagle's algorithm: 40 ms for each answer otherwise.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        listener.close()
        other = f"--port {port % 65535 + 1}" if error.errno in (EADDRINUSE, EACCES) else "--host 127.0.0.1"
        raise OSError(f"{host}, port {port}: {error.strerror}; another one: {other}") from None
    return listener


class Server:
    """uvicorn, and beside it the task that brings the model."""

    def __init__(self, model: Path | str, watch: bool, listener: socket.socket) -> None:
        self.model, self.watch, self.listener = model, watch, listener
        self.problem: Exception | SystemExit | None = None
        for name in ("uvicorn.error", "python_multipart"):  # which warn of every malformed request
            logging.getLogger(name).setLevel(logging.ERROR)
        config = uvicorn.Config(
            application(self.bringing),
            http=Protocol,
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=FINISH_S,
        )
        self.uvicorn = uvicorn.Server(config)

    async def run(self) -> None:
        await self.uvicorn.serve([self.listener])
        if self.problem:
            raise self.problem

    @asynccontextmanager
    async def bringing(self, state: State) -> AsyncIterator[None]:
        """While the block runs, bring the model and those that follow it."""
        task = asyncio.create_task(self._bring(state))
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _bring(self, state: State) -> None:
        try:
            if isinstance(self.model, Path):
                await self._take(state, self.model)
            else:
                await self._follow(state, self.model)
        except (Exception, SystemExit) as error:  # raised again by `run`, after the server has ended
            self.problem = error
            self.uvicorn.should_exit = True

    async def _take(self, state: State, path: Path) -> None:
        await state.take(path)
        card = state.current.card
        host, port = self.listener.getsockname()[:2]
        address = f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
        run = f"run {card.run_id}" if card.run_id else "a model without a run"
        say(f"serving {run}, weights {card.weights_sha256[:12]}, at {address}")

    async def _follow(self, state: State, reference: str) -> None:
        """Take over what the fetching process names. The first model must come, later ones may fail."""
        while True:
            command = [sys.executable, "-m", "classifier.serving.fetch", reference, *["--watch"][: self.watch]]
            fetching = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
            try:
                assert fetching.stdout
                async for line in fetching.stdout:
                    await self._take_over(state, Path(json.loads(line)["path"]))
                await fetching.wait()
            finally:
                if fetching.returncode is None:
                    fetching.terminate()
                    await fetching.wait()
            if state.model is None:
                if fetching.returncode == 1:  # it has said why
                    raise SystemExit(1)
                raise UserError(f"the process that fetches {reference} was killed: try again")
            if not self.watch:
                return
            say(f"the watch of {reference} ended, another begins in {RESTART_S:g} s")
            await asyncio.sleep(RESTART_S)

    async def _take_over(self, state: State, path: Path) -> None:
        try:
            await self._take(state, path)
        except (UserError, OSError) as error:
            if state.model is None:
                raise
            say(f"{error}; the model before goes on")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
