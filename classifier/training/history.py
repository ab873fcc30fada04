"""The training history, `reports/train/history.csv`: a row at each window's and at each epoch's end.

As in the classic tutorial a window of the running loss starts anew with each epoch, and is dropped where the epoch ends
before it is full. The epoch's last row holds its training loss and the validation curves. What a row lacks is empty.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from operator import attrgetter
from pathlib import Path

from classifier.errors import UserError
from classifier.project.files import read_file, write_atomic

LARGEST = 1 << 30  # bytes


@dataclass(frozen=True)
class Row:
    """What the training loop reports at the end of a window, of an epoch, or of both at once."""

    step: int  # optimizer steps since the start of training
    epoch: int  # from 1
    images: int  # training images seen since the start
    learning_rate: float  # of this step
    running_loss: float | None = None  # mean over the window's steps
    train_loss: float | None = None  # mean over the epoch's images
    validation_loss: float | None = None
    validation_accuracy: float | None = None  # 0..1


COLUMNS = [field.name for field in fields(Row)]
BEST = {"validation_loss": min, "validation_accuracy": max}  # column -> which of its values is the best


def best_rows(rows: Sequence[Row]) -> dict[str, Row]:
    """Where each column of `BEST` was best, the first of equals; a column without values is left out."""
    full = {name: [row for row in rows if getattr(row, name) is not None] for name in BEST}
    return {name: BEST[name](found, key=attrgetter(name)) for name, found in full.items() if found}


def write_history(path: Path, rows: Sequence[Row]) -> None:
    """Numbers are written with the shortest digits that give the same float64 back."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_atomic(path, text.getvalue().encode())


def read_history(path: Path) -> list[Row]:
    """UserError names the line that is not a row; the first is the header, and at least one follows."""
    try:
        lines = read_file(path, LARGEST).decode("ascii", "replace").removesuffix("\n").split("\n")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist: run dvc repro train") from None
    if lines[0] != ",".join(COLUMNS) or len(lines) == 1:
        raise UserError(f"{path} is not a history, it starts with {lines[0][:200]!r}: run dvc repro -f train")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        try:
            values = dict(zip(COLUMNS, line.split(","), strict=True))
            step, epoch, images = (int(values[name]) for name in COLUMNS[:3])
            rate = float(values["learning_rate"])
            results = {name: float(values[name]) if values[name] else None for name in COLUMNS[4:]}
            if not all(math.isfinite(value) for value in (rate, *results.values()) if value is not None):
                raise UserError("a value is not finite")
        except ValueError as error:
            raise UserError(
                f"{path} line {number} is not a row of the history ({error!s:.200}): run dvc repro -f train"
            ) from None
        row = Row(step, epoch, images, rate, **results)
        rows.append(row)
    return rows
