"""The train stage as a user runs it, everything switched on: MLflow, system metrics, history, checkpoints, progress.

    python -m benchmarks.contenders.ours PARAMS DATA MODEL REPORTS

The loop is the stage's whole call of `fit`. Of it `waited_s` goes into reports and checkpoints, as far as the loop
waits for them; `writer_s` and `recorder_s` are what the thread that writes checkpoints and the recorder's process use
of the processor meanwhile, and `loop_peak_mib` is the peak at the loop's end.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from resource import RUSAGE_SELF, getrusage
from typing import Any

import psutil

from benchmarks.contenders import stage
from benchmarks.contenders.stopwatch import WARM_UP, loop_seconds, say
from benchmarks.process import MIB

WAITED = ("report", "journal", "checkpoints", "writing")


def warm_up(fit: stage.Function, classifier: Any, train: Any, params: Any, device: Any) -> None:
    """A few steps on a copy, which leave no trace in training: its randomness comes from the seed alone."""
    from classifier.dataset import Split

    count = WARM_UP * params.batch_size
    head, nothing = Split(train.images[:count], train.labels[:count]), Split(train.images[:0], train.labels[:0])
    fit(deepcopy(classifier), head, nothing, params.model_copy(update={"epochs": 1}), device, lambda row: None)


def run(arguments: list[str], with_unrecorded: bool = False) -> dict[str, float]:
    """The stage's figures; `unrecorded_s` is the mean of the same loop before and after it with nothing recorded."""
    figures: dict[str, float] = {}

    def timed(clock: stage.Clock, fit: stage.Function) -> stage.Function:
        def timed_fit(
            classifier: Any, train: Any, validation: Any, params: Any, device: Any, report: Any, checkpoints: Any
        ) -> None:
            data = (train, validation, params, device)
            untrained = deepcopy(classifier)

            def unrecorded() -> float:
                with suspended(psutil.Process().children()):
                    return loop_seconds(lambda: fit(deepcopy(untrained), *data, lambda row: None), device)

            warm_up(fit, classifier, train, params, device)
            before = unrecorded() if with_unrecorded else 0
            waited, recorder = sum(map(clock.seconds.__getitem__, WAITED)), children_seconds()
            report = clock.timed(report, "report")
            checkpoints._write, writer_seconds = thread_timed(checkpoints._write)
            figures["loop_s"] = loop_seconds(lambda: fit(classifier, *data, report, checkpoints), device)
            figures["waited_s"] = sum(map(clock.seconds.__getitem__, WAITED)) - waited
            figures["writer_s"] = sum(writer_seconds)
            figures["recorder_s"] = children_seconds() - recorder
            figures["loop_peak_mib"] = getrusage(RUSAGE_SELF).ru_maxrss / MIB
            if with_unrecorded:
                figures["unrecorded_s"] = (before + unrecorded()) / 2

        return timed_fit

    return stage.run("train", arguments, timed) | figures


@contextmanager
def suspended(processes: Sequence[psutil.Process]) -> Iterator[None]:
    """While the block runs these stand still."""
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


def thread_timed(function: stage.Function) -> tuple[stage.Function, list[float]]:
    """`function`, and the processor time of its thread in each call."""
    seconds = []

    def call(*arguments: Any) -> None:
        start = time.thread_time()
        function(*arguments)
        seconds.append(time.thread_time() - start)

    return call, seconds


def children_seconds() -> float:
    """Processor time of the processes that this one has started."""
    times = [child.cpu_times() for child in psutil.Process().children()]
    return sum(time.user + time.system for time in times)


def main() -> None:
    say(**run(sys.argv[1:]))


if __name__ == "__main__":
    main()
