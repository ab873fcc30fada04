"""What training prints: the tutorial's lines; on a terminal a live line and a line per epoch instead."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from types import TracebackType

from classifier.params import TrainParams
from classifier.training.checkpoint import NO_WORK, Work
from classifier.training.history import HistoryRow
from classifier.training.summary import summarize

PER_EPOCH = 8  # of the tutorial's lines at most; history.csv and MLflow have every window
COUNTED = ("step", "images")  # columns of the history
REFRESHES = 2  # of the live line per second; each takes 1 ms of a core that could train


class Console(AbstractContextManager["Console"]):
    """Shows the progress of a training, of one seed or several. `lines` gets the tutorial's lines in any case.

    Rows that a resumed training reports again are in `lines`, but are not printed.
    """

    def __init__(
        self, params: TrainParams, steps_per_epoch: int, lines: list[str], work: Work = NO_WORK, *, live: bool = True
    ) -> None:
        self.params, self.steps_per_epoch, self.lines, self.work = params, steps_per_epoch, lines, work
        self.last: dict[int, HistoryRow] = {}  # by seed
        self.first: dict[int, HistoryRow] = {}  # where this process began, by seed
        self.ended: dict[int, HistoryRow] = {}  # the end of the last epoch, by seed
        self.best: dict[int, HistoryRow] = {}  # the last row with a validation, by seed
        self.running_loss: float | None = None  # the last one
        self.losses: dict[int, list[float]] = {}  # of windows that were not printed yet, by seed
        windows = max(1, steps_per_epoch // min(params.log_every, steps_per_epoch))
        self.every = -(-windows // PER_EPOCH)  # windows per line
        self.live = None
        if live and sys.stdout.isatty():
            from rich.live import Live  # imported for terminals only: it takes 0.1 s
            from rich.text import Text

            def line() -> Text:
                return Text(self._progress(), style="dim", no_wrap=True, overflow="ellipsis")

            self.live = Live(transient=True, refresh_per_second=REFRESHES, get_renderable=line)
            self.live.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()
        if isinstance(error, KeyboardInterrupt | SystemExit):
            step = self.work.saved_step()
            print(f"stopped; dvc repro {f'resumes from step {step}' if step else 'starts again'}", file=sys.stderr)
        elif error is None and (told := self._summary()):
            self.say(told)

    def say(self, line: str) -> None:
        """Print a line, and keep it for the record."""
        self.lines.append(line)
        self._print(line)

    def show(self, seed: int, row: HistoryRow) -> None:
        """Show the end of a window or of an epoch: `[epoch, step in the epoch] loss: running loss`."""
        who = f"seed {seed} " if self.params.seeds > 1 else ""
        self.last[seed] = row
        self.running_loss = self.running_loss if row.running_loss is None else row.running_loss
        if row.again:
            self.first[seed] = self.ended[seed] = row
        if row.validation_loss is not None:
            self.best[seed] = row
        for line in self._tutorial(seed, row):
            self.lines.append(who + line)
            if not row.again and not self.live:
                self._print(who + line)
        if self.live and not row.again and row.train_loss is not None:
            if self.params.seeds == 1:
                self._print(self._epoch(row, row.train_loss))
            elif row.epoch == self.params.epochs:
                self._print(f"seed {seed}  {_results(row, row.train_loss)}")
            self.ended[seed] = row

    def _tutorial(self, seed: int, row: HistoryRow) -> list[str]:
        """The line of a window, or of several windows if an epoch has many, and the line of an epoch's end."""
        lines, step = [], row.step - (row.epoch - 1) * self.steps_per_epoch
        losses = self.losses.setdefault(seed, [])
        if row.running_loss is not None:
            losses.append(row.running_loss)
            if len(losses) == self.every:
                lines.append(f"[{row.epoch}, {step:5d}] loss: {sum(losses) / len(losses):.3f}")
                losses.clear()
        if row.train_loss is not None:
            losses.clear()
        if row.validation_loss is not None:
            accuracy = f"{row.validation_accuracy:.2%}"
            lines.append(f"[{row.epoch}] validation loss: {row.validation_loss:.3f} accuracy: {accuracy}")
        return lines

    def _epoch(self, row: HistoryRow, loss: float) -> str:
        """The line of an epoch that stays on a terminal, at most 80 characters."""
        epochs = self.params.epochs
        epoch = f"epoch {row.epoch:{len(str(epochs))}}/{epochs}"
        images = self._speed(self.ended)[1]  # per second, of this epoch alone
        return f"{epoch}  {_results(row, loss)}  rate {row.learning_rate:<8.3g}  {images:,.0f} images/s"

    def _progress(self) -> str:
        """The live line."""
        if not self.last:
            return "training starts"
        row = max(self.last.values(), key=lambda row: row.seconds or 0)
        total = self.params.epochs * self.steps_per_epoch  # steps of a seed
        done = sum(row.step for row in self.last.values())
        if self.params.seeds == 1:
            parts = [f"epoch {row.epoch}/{self.params.epochs}", f"step {row.step:,}"]
        else:
            ended = sum(row.step == total for row in self.last.values())
            parts = [f"{ended} of {self.params.seeds} seeds done", f"{done / (self.params.seeds * total):.0%}"]
        if self.running_loss is not None:
            parts.append(f"loss {self.running_loss:.3f}")
        steps, images = self._speed(self.first)
        if steps:
            left = (self.params.seeds * total - done) / steps
            parts += [f"rate {row.learning_rate:.3g}", f"{images:,.0f} images/s", f"{_duration(left)} left"]
        return "  ".join(parts)

    def _speed(self, since: dict[int, HistoryRow]) -> tuple[float, float]:
        """Steps and images per second since these rows, or the start; of seeds trained at the same time, together."""
        nothing = HistoryRow(0, 0, 0, 0.0, seconds=0.0)
        begun = [(since.get(seed, nothing), row) for seed, row in self.last.items()]
        seconds = max(((row.seconds or 0) - (first.seconds or 0) for first, row in begun), default=0.0)
        if seconds <= 0:
            return 0.0, 0.0
        steps, images = (sum(getattr(row, name) - getattr(first, name) for first, row in begun) for name in COUNTED)
        return steps / seconds, images / seconds

    def _summary(self) -> str | None:
        """The mean validation accuracy of several seeds."""
        found = [row.validation_accuracy for row in self.best.values() if row.validation_accuracy is not None]
        if len(found) < 2:
            return None
        known = summarize(found, 1)
        interval = f"95% interval {known['low']:.2%} to {known['high']:.2%}"
        return f"{len(found)} seeds: mean validation accuracy {known['mean']:.2%} ({interval})"

    def _print(self, line: str) -> None:
        if self.live:
            self.live.console.print(line, markup=False, highlight=False)
        else:
            print(line, flush=True)


def _results(row: HistoryRow, loss: float) -> str:
    """The losses and the accuracy at an epoch's end."""
    if row.validation_loss is None:
        return f"loss {loss:.3f}"
    return f"loss {loss:.3f}  validation {row.validation_loss:.3f} {row.validation_accuracy:7.2%}"


def _duration(seconds: float) -> str:
    """`42 s`, `12 min` or `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
