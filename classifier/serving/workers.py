"""Worker threads that decode and classify images for the event loop, with a bounded queue."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from classifier.serving.refusal import RefusedError

LONGEST_BATCH_S = 0.002  # for which a finished result waits for others

Work = Callable[[], Any]


class Workers:
    """A thread per core, each passing its results of up to 2 ms to the event loop together.

    Waking up the event loop takes about as long as a small network takes for an image. Only the event loop's thread
    calls `run` and reads `waiting`.
    """

    def __init__(self, threads: int, capacity: int) -> None:
        self.capacity, self.waiting = capacity, 0
        self.queue: SimpleQueue[tuple[Work, asyncio.Future[Any]] | None] = SimpleQueue()
        self.loop = asyncio.get_running_loop()
        self.threads = [Thread(target=self._serve, name=f"worker {number}", daemon=True) for number in range(threads)]
        for thread in self.threads:
            thread.start()

    async def run(self, works: Sequence[Work]) -> list[Any]:
        """Run all and return the results in order, or raise the first exception. Raises RefusedError (503) if full."""
        if self.waiting + len(works) > self.capacity:
            raise RefusedError(503, "the queue is full: try again")
        self.waiting += len(works)
        futures: list[asyncio.Future[Any]] = [self.loop.create_future() for _ in works]
        for work, future in zip(works, futures, strict=True):
            self.queue.put((work, future))
        results = await asyncio.gather(*futures, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return results

    def stop(self) -> None:
        """End the threads after the waiting work."""
        for _ in self.threads:
            self.queue.put(None)

    def _serve(self) -> None:
        finished: list[tuple[asyncio.Future[Any], Any]] = []
        first = 0.0
        while True:
            try:
                item = self.queue.get_nowait()
            except Empty:
                self._hand_over(finished)
                finished = []
                item = self.queue.get()
            if item is None:
                self._hand_over(finished)
                return
            work, future = item
            try:
                result = work()
            except Exception as error:  # raised again in `run`
                result = error
            now = time.monotonic()
            first = first if finished else now
            finished.append((future, result))
            if now - first >= LONGEST_BATCH_S:
                self._hand_over(finished)
                finished = []

    def _hand_over(self, finished: list[tuple[asyncio.Future[Any], Any]]) -> None:
        if finished:
            self.loop.call_soon_threadsafe(self._settle, finished)

    def _settle(self, finished: list[tuple[asyncio.Future[Any], Any]]) -> None:
        self.waiting -= len(finished)
        for future, result in finished:
            if future.done():  # cancelled
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
