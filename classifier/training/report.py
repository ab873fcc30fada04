"""The files of `reports/train/` and their formats.

- `history.csv`: the model's history (`classifier.training.history`)
- `layers.csv`: the network's layers and what each costs (`classifier.networks.layers`)
- `metrics.json`: the values of the epoch whose weights are kept, under MLflow's names; no times, which would differ
  from run to run
- `summary.json`: the network's costs (`COSTS`), and kept_epoch, whose weights the model has
- `augmented.png`: the first images after augmentation (`classifier.training.picture`), unless nothing is augmented
- where several seeds were trained, `replicas.csv`: seed, train_loss, validation_loss, validation_accuracy; and
  `replicas/seed-<seed>.csv`: the history of each seed
- `manifest.json`: the SHA-256 of every other file, with a checksum (`classifier.project.checksummed`)
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from classifier.errors import UserError
from classifier.project.checksummed import Checksummed, read_checksummed, write_checksummed
from classifier.project.files import replacing, sha256_of, write_atomic, write_json
from classifier.training.history import HistoryRow, kept_row, read_history, write_history
from classifier.training.summary import summarize

if TYPE_CHECKING:  # torch, which takes 2 s to import, is not needed here
    from classifier.networks.layers import Costs

MANIFEST = "manifest.json"
COSTS = ("parameters", "multiply_adds", "weights_bytes", "activations_bytes")

SUMMARIZED = ["train_loss", "validation_loss", "validation_accuracy"]


class ReportManifest(Checksummed):
    """The fields of manifest.json."""

    # Path within the folder -> SHA-256.
    files: dict[
        Annotated[str, Field(pattern=r"^(replicas/)?\w[\w.-]*$")], Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    ]


def write_training(
    folder: Path,
    histories: Mapping[int, list[HistoryRow]],
    chosen: int,
    costs: Costs,
    keep: str = "last",
    picture: bytes | None = None,
) -> None:
    """Write the files of the seed `chosen`, and those of all seeds if there are several.

    `keep` is `train.keep.weights`, `picture` that of augmented images.
    """
    rows = histories[chosen]
    with replacing(folder, "replicas") as new:
        write_history(new / "history.csv", rows)
        write_atomic(new / "layers.csv", costs.table())
        write_json(new / "metrics.json", _metrics(rows, keep) | summary_metrics(histories, keep))
        write_json(new / "summary.json", costs.summary() | {"kept_epoch": kept_row(rows, keep).epoch})
        if picture:
            write_atomic(new / "augmented.png", picture)
        if len(histories) > 1:
            text = io.StringIO(newline="")
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(["seed", *SUMMARIZED])
            for seed, history in histories.items():
                writer.writerow([seed, *(getattr(kept_row(history, keep), column) for column in SUMMARIZED)])
                write_history(_of_seed(new, seed), history)
            write_atomic(new / "replicas.csv", text.getvalue().encode())
        files = {path.relative_to(new).as_posix(): sha256_of(path) for path in new.rglob("*") if path.is_file()}
        write_checksummed(new / MANIFEST, ReportManifest(files=files))


def verify_training(folder: Path) -> None:
    """Raises FileNotFoundError for a missing file, UserError for one that `write_training` did not write."""
    for name, known in read_checksummed(folder / MANIFEST, ReportManifest, "train").files.items():
        path = folder / name
        try:
            found = sha256_of(path)
        except FileNotFoundError:
            raise FileNotFoundError(f"{path} does not exist: run dvc repro train") from None
        if found != known:
            raise UserError(f"{path} has SHA-256 {found}, {MANIFEST} says {known}: run dvc repro -f train")


def read_costs(folder: Path) -> dict[str, int]:
    """The network's costs. Earlier versions wrote them to metrics.json, the earliest only the parameters."""
    path = folder / "summary.json"
    found = json.loads((path if path.exists() else folder / "metrics.json").read_bytes())
    return {name: int(found[name]) for name in COSTS if name in found}


def read_layers(folder: Path) -> list[dict[str, str]]:
    """The rows of layers.csv."""
    with (folder / "layers.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_histories(folder: Path, seeds: list[int]) -> dict[int, list[HistoryRow]]:
    """The histories of several seeds."""
    return {seed: read_history(_of_seed(folder, seed)) for seed in seeds}


def summary_metrics(histories: Mapping[int, Sequence[HistoryRow]], keep: str = "last") -> dict[str, float]:
    """`<metric>_mean`, `_std`, `_low`, `_high` (`classifier.training.summary`) of the kept rows; empty for one seed."""
    if len(histories) == 1:
        return {}
    metrics: dict[str, float] = {}
    for column in SUMMARIZED:
        values = [getattr(kept_row(history, keep), column) for history in histories.values()]
        if None not in values:
            highest = 1 if column.endswith("accuracy") else math.inf
            metrics |= {f"{named(column)}_{name}": value for name, value in summarize(values, highest).items()}
    return metrics


def named(column: str) -> str:
    """The name of a history's column in metrics.json and in MLflow."""
    return column.replace("_", "/", 1)


def _of_seed(folder: Path, seed: int) -> Path:
    return folder / "replicas" / f"seed-{seed}.csv"


def _metrics(rows: list[HistoryRow], keep: str) -> dict[str, float | None]:
    kept = kept_row(rows, keep)
    return {
        "train/running_loss": next(row.running_loss for row in reversed(rows) if row.running_loss is not None),
        **{named(column): getattr(kept, column) for column in SUMMARIZED},
    }
