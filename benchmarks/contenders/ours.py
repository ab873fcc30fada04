"""The train stage as a user runs it, everything switched on: MLflow, system metrics, history, progress, model logged.

    python -m benchmarks.contenders.ours PARAMS DATA MODEL REPORTS

The loop is the stage's whole call of `fit`, what it reports included. `report_s` is the share of it that goes into
reporting, as far as the loop waits for it; `loop_peak_mib` is the peak at the loop's end, before the model is logged.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from copy import deepcopy
from resource import RUSAGE_SELF, getrusage
from typing import Any

from benchmarks.contenders import stage
from benchmarks.contenders.stopwatch import WARM_UP, loop_seconds, say
from benchmarks.process import MIB
from classifier.dataset import Split
from classifier.training import fit


def warm_up(classifier: Any, train: Split, params: Any, device: Any) -> None:
    """A few steps on a copy, which leave no trace in training: its randomness comes from the seed alone."""
    count = WARM_UP * params.batch_size
    head, nothing = Split(train.images[:count], train.labels[:count]), Split(train.images[:0], train.labels[:0])
    fit(deepcopy(classifier), head, nothing, params.model_copy(update={"epochs": 1}), device, lambda row: None)


def main() -> None:
    figures: dict[str, float] = {}

    def timed(clock: stage.Clock) -> Callable[..., None]:
        def reporting() -> float:
            return clock.seconds["report"] + clock.seconds["mlflow"]

        def timed_fit(
            classifier: Any, train: Any, validation: Any, params: Any, device: Any, report: Any, checkpoints: Any
        ) -> None:
            warm_up(classifier, train, params, device)
            before = reporting()
            arguments = (classifier, train, validation, params, device, clock.timed(report, "report"), checkpoints)
            figures["loop_s"] = loop_seconds(lambda: fit(*arguments), device)
            figures["report_s"] = reporting() - before
            figures["loop_peak_mib"] = getrusage(RUSAGE_SELF).ru_maxrss / MIB

        return timed_fit

    parts = stage.run("train", sys.argv[1:], timed)
    say(**parts, **figures)


if __name__ == "__main__":
    main()
