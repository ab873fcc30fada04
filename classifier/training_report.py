"""Training as files: the formats of `reports/train/`.

- `history.csv`: the model's history (`classifier.history`)
- `metrics.json`: how training ended, without times, which would differ from run to run
- where several replicas were trained, `replicas.csv`: seed, train_loss, validation_loss, validation_accuracy; and
  `replicas/seed-<seed>.csv`: each one's history
"""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from classifier.files import write_atomic, write_json
from classifier.history import Row, read_history, write_history
from classifier.spread import spread

REPLICA_COLUMNS = ["train_loss", "validation_loss", "validation_accuracy"]


def write_training(folder: Path, histories: Mapping[int, list[Row]], chosen: int, parameters: int) -> None:
    """Write the files for the seed `chosen`, and those of all seeds where there are several."""
    shutil.rmtree(folder / "replicas", ignore_errors=True)  # of an earlier training
    (folder / "replicas.csv").unlink(missing_ok=True)
    rows = histories[chosen]
    write_history(folder / "history.csv", rows)
    write_json(folder / "metrics.json", _summary(rows, parameters) | replica_metrics(histories))
    if len(histories) == 1:
        return
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["seed", *REPLICA_COLUMNS])
    for seed, history in histories.items():
        writer.writerow([seed, *(getattr(history[-1], column) for column in REPLICA_COLUMNS)])
        write_history(_replica(folder, seed), history)
    write_atomic(folder / "replicas.csv", text.getvalue().encode())


def read_histories(folder: Path, seeds: list[int]) -> dict[int, list[Row]]:
    """The replicas' histories by seed."""
    return {seed: read_history(_replica(folder, seed)) for seed in seeds}


def replica_metrics(histories: Mapping[int, Sequence[Row]]) -> dict[str, float]:
    """`<column>_mean`, `_std`, `_low`, `_high` (`classifier.spread`) of how training ended; empty for one seed."""
    if len(histories) == 1:
        return {}
    metrics: dict[str, float] = {}
    for column in REPLICA_COLUMNS:
        values = [getattr(history[-1], column) for history in histories.values()]
        if None not in values:
            metrics |= {f"{column}_{name}": value for name, value in spread(values).items()}
    return metrics


def _replica(folder: Path, seed: int) -> Path:
    return folder / "replicas" / f"seed-{seed}.csv"


def _summary(rows: list[Row], parameters: int) -> dict[str, int | float | None]:
    last = rows[-1]
    return {
        "steps": last.step,
        "images": last.images,
        "parameters": parameters,
        "running_loss": next(row.running_loss for row in reversed(rows) if row.running_loss is not None),
        "train_loss": last.train_loss,
        "validation_loss": last.validation_loss,
        "validation_accuracy": last.validation_accuracy,
    }
