"""The training history, `reports/train/history.csv`: a row at the end of each window and of each epoch.

As in the classic PyTorch tutorial, a window of the running loss restarts with each epoch, and is dropped if the epoch
ends before the window is full. The last row of an epoch holds its training loss and the validation values. A missing
value is empty.

The header is the format's version. A new column needs a default in `HistoryRow`, which is its value in older files.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from operator import attrgetter
from pathlib import Path

from classifier.errors import UserError
from classifier.project.files import read_file, write_atomic

LARGEST = 1 << 30  # bytes


@dataclass(frozen=True)
class HistoryRow:
    """What the training loop reports at the end of a window or of an epoch."""

    step: int  # optimizer steps since the start of training
    epoch: int  # from 1
    images: int  # training images seen since the start
    learning_rate: float  # of this step
    running_loss: float | None = None  # mean over the window's steps
    train_loss: float | None = None  # mean over the epoch's images
    validation_loss: float | None = None
    validation_accuracy: float | None = None  # 0..1
    # Training time so far, excluding the time between a kill and the resume. Not a result, so not a column of the file.
    seconds: float | None = field(default=None, compare=False)
    again: bool = field(default=False, compare=False)  # reported before the resume


COLUMNS = [column.name for column in fields(HistoryRow) if column.compare]
REQUIRED = [column.name for column in fields(HistoryRow) if column.default is MISSING]
COUNTS = ("step", "epoch", "images")
BEST = {"validation_loss": min, "validation_accuracy": max}  # column -> its best value


def best_rows(rows: Sequence[HistoryRow]) -> dict[str, HistoryRow]:
    """The row with the best value of each column of `BEST`, the first of ties; columns without values are omitted."""
    full = {name: [row for row in rows if getattr(row, name) is not None] for name in BEST}
    return {name: BEST[name](found, key=attrgetter(name)) for name, found in full.items() if found}


def kept_row(rows: Sequence[HistoryRow], keep: str) -> HistoryRow:
    """The last row of the epoch whose weights are kept: the last epoch, or the best by a column of `BEST`."""
    return rows[-1] if keep == "last" else best_rows(rows).get(keep, rows[-1])


def write_history(path: Path, rows: Sequence[HistoryRow]) -> None:
    """Write numbers with the fewest digits that read back as the same float64."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: getattr(row, name) for name in COLUMNS} for row in rows)
    write_atomic(path, text.getvalue().encode())


def read_history(path: Path) -> list[HistoryRow]:
    """The rows of a history that this version of the project or an earlier one wrote, at least one.

    Raises FileNotFoundError and UserError, which names the line that is not a row.
    """
    again = "run dvc repro -f train"
    try:
        lines = read_file(path, LARGEST).decode("ascii", "replace").removesuffix("\n").split("\n")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist: run dvc repro train") from None
    columns = lines[0].split(",")
    if not set(REQUIRED) <= set(columns) or len(set(columns)) < len(columns) or len(lines) == 1:
        raise UserError(f"{path} is not a history, it starts with {lines[0][:200]!r}: {again}")
    if unknown := ", ".join(name for name in columns if name not in COLUMNS):
        raise UserError(
            f"{path} was written by a newer version of this project, with columns that this version does not know "
            f"({unknown!a:.200}): update the project, or {again}"
        )
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        try:
            texts = dict(zip(columns, line.split(","), strict=True))
            rows.append(HistoryRow(**{name: _value(name, text) for name, text in texts.items()}))  # type: ignore[arg-type]
        except ValueError as error:
            raise UserError(f"{path} line {number} is not a row of the history ({error!s:.200}): {again}") from None
    return rows


def _value(column: str, text: str) -> int | float | None:
    if column in COUNTS:
        return int(text)
    if not text and column not in REQUIRED:
        return None
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{column} is not finite")
    return value
