"""What a stage says: plain lines, a progress bar for training on a terminal, and a copy for the record."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from types import TracebackType

from classifier.params import TrainParams
from classifier.training.history import Row

REFRESHES = 2  # of the bar in a second; each takes a millisecond of a core that is for training


class Console(AbstractContextManager["Console"]):
    """The classic tutorial's lines of a training, which are appended to `lines` too."""

    def __init__(self, params: TrainParams, steps_per_epoch: int, lines: list[str]) -> None:
        self.steps_per_epoch = steps_per_epoch
        self.several = params.seeds > 1
        self.steps: dict[int, int] = {}  # by seed
        self.lines = lines
        self.bar = None
        if sys.stdout.isatty():
            from rich.progress import Progress  # for terminals alone: it takes 0.1 s

            self.bar = Progress(transient=True, refresh_per_second=REFRESHES)
            self.task = self.bar.add_task("training", total=params.seeds * params.epochs * steps_per_epoch)
            self.bar.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()

    def say(self, line: str) -> None:
        self.lines.append(line)
        if self.bar:
            self.bar.console.print(line, markup=False, highlight=False)
        else:
            print(line, flush=True)

    def show(self, seed: int, row: Row) -> None:
        """`[epoch, step in the epoch] loss: running loss`, and the validation curves when the epoch ends.

        Lines of several replicas begin with the seed.
        """
        who = f"seed {seed} " if self.several else ""
        step = row.step - (row.epoch - 1) * self.steps_per_epoch
        if row.running_loss is not None:
            self.say(f"{who}[{row.epoch}, {step:5d}] loss: {row.running_loss:.3f}")
        if row.validation_loss is not None:
            accuracy = f"{row.validation_accuracy:.2%}"
            self.say(f"{who}[{row.epoch}] validation loss: {row.validation_loss:.3f} accuracy: {accuracy}")
        if self.bar:
            self.steps[seed] = row.step
            self.bar.update(self.task, completed=sum(self.steps.values()))
