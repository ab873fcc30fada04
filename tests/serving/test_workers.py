"""The threads behind the event loop, and their bounded queue."""

import asyncio
import time
from functools import partial
from threading import Event

import pytest

from classifier.serving.refusal import RefusedError
from classifier.serving.workers import LONGEST_BATCH_S, Workers


def test_results_come_in_the_order_of_the_works_and_exceptions_where_they_were_asked_for():
    async def main():
        workers = Workers(2, 100)
        slow_first = [partial(lambda n: time.sleep(0.02 - n / 1000) or n, n) for n in range(20)]
        assert await workers.run(slow_first) == list(range(20))
        with pytest.raises(ZeroDivisionError):
            await workers.run([lambda: 1, lambda: 1 // 0])
        assert await workers.run([lambda: 2]) == [2]
        assert workers.waiting == 0
        workers.stop()

    asyncio.run(main())


def test_what_does_not_fit_into_the_queue_is_refused_at_once_and_the_rest_is_done():
    async def main():
        workers, go = Workers(1, 3), Event()
        first = asyncio.create_task(workers.run([lambda: go.wait(10), lambda: "second"]))
        await asyncio.sleep(0)
        with pytest.raises(RefusedError) as refused:
            await workers.run([lambda: 1, lambda: 2])
        assert (refused.value.status, refused.value.headers) == (503, {"Retry-After": "1"})
        third = asyncio.create_task(workers.run([lambda: "third"]))
        await asyncio.sleep(0)
        go.set()
        assert await first == [True, "second"]
        assert await third == ["third"]
        assert workers.waiting == 0
        workers.stop()

    asyncio.run(main())


def test_a_finished_answer_waits_for_others_of_its_batch_two_milliseconds_at_most():
    """A thread that always finds the next work hands over what it has finished."""

    async def main():
        workers, handed = Workers(1, 1000), []
        settle = workers._settle
        workers._settle = lambda finished: (handed.append((time.monotonic(), len(finished))), settle(finished))
        start = time.monotonic()
        await workers.run([partial(time.sleep, LONGEST_BATCH_S / 10)] * 100)
        workers.stop()
        assert len(handed) > 3
        assert max(size for _, size in handed) > 1
        assert handed[0][0] - start < 0.5 * (handed[-1][0] - start)

    asyncio.run(main())
