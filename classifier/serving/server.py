"""Runs the HTTP server, with an ONNX file or with the models that `classifier.serving.fetch` finds."""

from __future__ import annotations

import asyncio
import gc
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

RESTART_S = 5.0  # before a watching process that ended is restarted
FINISH_S = 30  # for running requests when the server is stopped


def serve(model: Path | str, host: str, port: int, *, watch: bool = False) -> None:
    """Serve until SIGTERM or SIGINT, then finish the running requests.

    `model`: an ONNX file written by `classifier export`, or a reference that `classifier.serving.fetch` resolves in
    another process; with `watch`, that process keeps running and reports when the reference resolves to another model.
    Raises UserError if there is no model, OSError if the address is in use.
    """
    gc.freeze()
    gc.enable()  # like `collect_garbage` of classifier.project, which the container does not have
    with listening(host, port) as listener:
        asyncio.run(Server(model, watch, listener).run())


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens at this address. Raises OSError, which names the address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns off Nagle's algorithm only if the protocol is given; with it, each response would take 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        listener.close()
        other = f"--port {port % 65535 + 1}" if error.errno in (EADDRINUSE, EACCES) else "--host 127.0.0.1"
        raise OSError(f"{host}, port {port}: {error.strerror}; try {other}") from None
    return listener


class Server:
    """uvicorn, and the task that loads the model."""

    def __init__(self, model: Path | str, watch: bool, listener: socket.socket) -> None:
        self.model, self.watch, self.listener = model, watch, listener
        self.problem: Exception | SystemExit | None = None
        for name in ("uvicorn.error", "python_multipart"):  # they warn of every malformed request
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
        """Load the model, and later ones, while the block runs."""
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
        """Load the models that the fetching process finds. Only an error with the first model ends the server."""
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
                if fetching.returncode == 1:  # it has printed the reason
                    raise SystemExit(1)
                raise UserError(f"the process that fetches {reference} was killed: try again")
            if not self.watch:
                return
            say(f"the process that watches {reference} ended and is restarted in {RESTART_S:g} s")
            await asyncio.sleep(RESTART_S)

    async def _take_over(self, state: State, path: Path) -> None:
        try:
            await self._take(state, path)
        except (UserError, OSError) as error:
            if state.model is None:
                raise
            say(f"{error}; still serving the previous model")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
