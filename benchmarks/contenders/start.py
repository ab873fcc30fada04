"""The train stage up to the end of its first step: reading the data, MLflow's run, the network, the epoch's plan.

    python -m benchmarks.contenders.start PARAMS DATA PRETRAINED MODEL REPORTS

Prints the seconds since the process started, as `loop_s`.
"""

from __future__ import annotations

import sys
import time
from typing import Any, NoReturn

import psutil

from benchmarks.contenders import stage
from benchmarks.contenders.stopwatch import say


def until_first_step(arguments: list[str]) -> float:
    """Run the stage, exit after its first step and return the seconds since the process started."""
    done: list[float] = []

    def stopping(clock: stage.Clock, fit: stage.Function) -> stage.Function:
        from classifier.training.engine import Engine

        step = Engine.step

        def first(self: Engine, *arguments: Any) -> NoReturn:
            step(self, *arguments)
            done.append(time.time())
            sys.exit(0)

        Engine.step = first  # type: ignore[method-assign]
        return fit

    try:
        stage.run("train", arguments, stopping)
    except SystemExit:
        if not done:
            raise
    return done[0] - psutil.Process().create_time()


def main() -> None:
    say(loop_s=until_first_step(sys.argv[1:]))


if __name__ == "__main__":
    main()
