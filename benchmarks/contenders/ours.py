"""The train stage as a user runs it, everything switched on: MLflow, system metrics, history, checkpoints, progress.

    python -m benchmarks.contenders.ours PARAMS DATA MODEL REPORTS

The loop is the stage's whole call of `fit`. Of it `waited_s` goes into reports and checkpoints, as far as the loop
waits for them; `recorder_s` is what the recorder's process uses of the processor meanwhile, and `loop_peak_mib` the
peak at the loop's end.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
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


def run(arguments: list[str]) -> tuple[dict[str, float], Callable[[], float]]:
    """The stage's figures, and what measures the same loop once more with neither reports nor checkpoints."""
    figures: dict[str, float] = {}
    unrecorded: list[Callable[[], float]] = []

    def timed(clock: stage.Clock, fit: stage.Function) -> stage.Function:
        def timed_fit(
            classifier: Any, train: Any, validation: Any, params: Any, device: Any, report: Any, checkpoints: Any
        ) -> None:
            warm_up(fit, classifier, train, params, device)
            data = (train, validation, params, device)
            untrained = deepcopy(classifier)
            unrecorded.append(lambda: loop_seconds(lambda: fit(untrained, *data, lambda row: None), device))
            waited, recorder = sum(map(clock.seconds.__getitem__, WAITED)), children_seconds()
            report = clock.timed(report, "report")
            figures["loop_s"] = loop_seconds(lambda: fit(classifier, *data, report, checkpoints), device)
            figures["waited_s"] = sum(map(clock.seconds.__getitem__, WAITED)) - waited
            figures["recorder_s"] = children_seconds() - recorder
            figures["loop_peak_mib"] = getrusage(RUSAGE_SELF).ru_maxrss / MIB

        return timed_fit

    parts = stage.run("train", arguments, timed)
    return {**parts, **figures}, unrecorded[0]


def children_seconds() -> float:
    """Processor time of the processes that this one has started."""
    times = [child.cpu_times() for child in psutil.Process().children()]
    return sum(time.user + time.system for time in times)


def main() -> None:
    figures, _ = run(sys.argv[1:])
    say(**figures)


if __name__ == "__main__":
    main()
