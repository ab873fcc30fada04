"""The train stage as a user runs it, with MLflow, system metrics, history, checkpoints and progress.

    python -m benchmarks.contenders.ours PARAMS DATA PRETRAINED MODEL REPORTS

Standard output must be a terminal, because progress is shown only there. The loop is the stage's whole call of `fit`;
`loop_peak_mib` is the peak memory at its end.
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
    """Run a few steps on a copy. They do not affect training, whose randomness depends only on the seed."""
    from classifier.data.dataset import Split

    count = WARM_UP * params.batch_size
    head, nothing = Split(train.images[:count], train.labels[:count]), Split(train.images[:0], train.labels[:0])
    fit(deepcopy(classifier), head, nothing, params.model_copy(update={"epochs": 1}), device, lambda seed, row: None)


def run(arguments: list[str], with_unrecorded: bool = False) -> dict[str, float]:
    """Return the stage's figures; `with_unrecorded` adds those of recording (`benchmarks.contenders.unrecorded`)."""
    figures: dict[str, float] = {}
    assert sys.stdout.isatty(), "standard output is not a terminal: the stage would show no progress"

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
    """Cost of recording so far: seconds that the loop's thread waited, and CPU time of other threads and processes."""
    others = [thread.ident for thread in threading.enumerate() if thread.ident and thread.ident != clock.thread]
    times = [child.cpu_times() for child in psutil.Process().children()]
    return {
        "waited_s": sum(map(clock.seconds.__getitem__, WAITED)),
        "threads_s": sum(time.clock_gettime(time.pthread_getcpuclockid(ident)) for ident in others),
        "recorder_s": sum(spent.user + spent.system for spent in times),
    }


@contextmanager
def nothing_beside() -> Iterator[None]:
    """Hide the progress bar and suspend the recorder during the block."""
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
