"""The training history, `reports/train/history.csv`: a row for each window of the running loss.

The last row of an epoch also holds the epoch's training loss and the validation curves; elsewhere these are empty.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from classifier.files import write_atomic


@dataclass(frozen=True)
class Row:
    """What the training loop reports at the end of a window."""

    step: int  # optimizer steps since the start of training
    epoch: int  # from 1
    images: int  # training images seen since the start
    learning_rate: float  # of the window's last step
    running_loss: float  # mean over the window's steps
    train_loss: float | None = None  # mean over the epoch's images
    validation_loss: float | None = None
    validation_accuracy: float | None = None  # 0..1


COLUMNS = [field.name for field in fields(Row)]


def write_history(path: Path, rows: Sequence[Row]) -> None:
    """Numbers are written with the shortest digits that give the same float64 back."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_atomic(path, text.getvalue().encode())


def read_history(path: Path) -> list[Row]:
    """ValueError names the line that is not a row."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist: run dvc repro train") from None
    rows = []
    for number, values in enumerate(csv.DictReader(io.StringIO(text, newline="")), start=2):
        try:
            counts = [int(values[name]) for name in COLUMNS[:3]]
            always = [float(values[name]) for name in COLUMNS[3:5]]
            epoch_end = [float(values[name]) if values[name] else None for name in COLUMNS[5:]]
            if not all(map(math.isfinite, always)):
                raise ValueError(f"{always} are not finite")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} line {number} is not a row of the history ({error}): dvc repro -f train"
            ) from None
        row = Row(*counts, *always, *epoch_end)
        rows.append(row)
    return rows
