"""The train stage as a user runs it, everything switched on: MLflow, system metrics, history, checkpoints, progress.

    python -m benchmarks.contenders.ours PARAMS DATA MODEL REPORTS

Progress is shown on a terminal alone, so that standard output has to be one. The loop is the stage's whole call of
`fit`, and `loop_peak_mib` is the peak at its end.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
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
    from classifier.data.dataset import Split

    count = WARM_UP * params.batch_size
    head, nothing = Split(train.images[:count], train.labels[:count]), Split(train.images[:0], train.labels[:0])
    fit(deepcopy(classifier), head, nothing, params.model_copy(update={"epochs": 1}), device, lambda seed, row: None)


def run(arguments: list[str], with_unrecorded: bool = False) -> dict[str, float]:
    """The stage's figures, and with those of recording (`benchmarks.contenders.unrecorded`)."""
    figures: dict[str, float] = {}
    assert sys.stdout.isatty(), "without a terminal there is no progress"

    def timed(clock: stage.Clock, fit: stage.Function) -> stage.Function:
        def timed_fit(
            classifier: Any, train: Any, validation: Any, params: Any, device: Any, report: Any, checkpoints: Any
        ) -> None:
            data = (train, validation, params, device)
            untrained = deepcopy(classifier)

            def unrecorded() -> float:
                with nothing_beside():
                    return loop_seconds(lambda: fit(deepcopy(untrained), *data, lambda seed, row: None), device)

            warm_up(fit, classifier, train, params, device)
            before = unrecorded() if with_unrecorded else 0
            start = costs(clock) if with_unrecorded else {}
            report = clock.timed(report, "report")
            figures["loop_s"] = loop_seconds(lambda: fit(classifier, *data, report, checkpoints), device)
            figures["loop_peak_mib"] = getrusage(RUSAGE_SELF).ru_maxrss / MIB
            if with_unrecorded:
                figures.update({name: end - start[name] for name, end in costs(clock).items()})
                figures["unrecorded_s"] = (before + unrecorded()) / 2

        return timed_fit

    return stage.run("train", arguments, timed) | figures


def costs(clock: stage.Clock) -> dict[str, float]:
    """What recording has taken until now: seconds that its thread waited, and processor time of those beside it."""
    others = [thread.ident for thread in threading.enumerate() if thread.ident and thread.ident != clock.thread]
    times = [child.cpu_times() for child in psutil.Process().children()]
    return {
        "waited_s": sum(map(clock.seconds.__getitem__, WAITED)),
        "threads_s": sum(time.clock_gettime(time.pthread_getcpuclockid(ident)) for ident in others),
        "recorder_s": sum(spent.user + spent.system for spent in times),
    }


@contextmanager
def nothing_beside() -> Iterator[None]:
    """While the block runs the progress bar is away and the recorder stands still."""
    bars = [thread.live for thread in threading.enumerate() if hasattr(thread, "live")]  # rich's
    recorders = psutil.Process().children()
    for bar in bars:
        bar.stop()
    for recorder in recorders:
        recorder.suspend()
    try:
        yield
    finally:
        for recorder in recorders:
            recorder.resume()
        for bar in bars:
            bar.start()


def main() -> None:
    say(**run(sys.argv[1:]))


if __name__ == "__main__":
    main()
