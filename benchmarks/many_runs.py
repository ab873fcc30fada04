"""A store full of realistic runs: the copies of one that the pipeline made, each with its own parameters and results.

    python -m benchmarks.many_runs COUNT

Through MLflow's client 1,000 runs with their 300,000 points take minutes; rows are therefore copied within the SQLite
file, and the artifacts that commands read are copied as files. Groups of five seeds differ in their learning rate.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlparse
from uuid import UUID

SEEDS = 5
COPIED = {  # table -> its columns beside run_uuid
    "params": "key, value",
    "tags": "key, value",
    "metrics": "key, value, timestamp, step, is_nan",
    "latest_metrics": "key, value, timestamp, step, is_nan",
}
ARTIFACTS = ("evaluate/predictions.parquet", "evaluate/per_class.csv", "evaluate/metrics.json", "train/metrics.json")


def fill(database: Path, count: int) -> None:
    """Copy the newest run until the store holds `count` finished runs; the same ids every time."""
    chance = random.Random(0)  # noqa: S311
    with closing(sqlite3.connect(database)) as store, store:
        columns = [name for _, name, *_ in store.execute("PRAGMA table_info(runs)") if name != "run_uuid"]
        (template, address), *_ = store.execute(
            "SELECT run_uuid, artifact_uri FROM runs WHERE status = 'FINISHED' ORDER BY start_time DESC"
        )
        (existing,) = store.execute("SELECT count(*) FROM runs WHERE status = 'FINISHED'").fetchone()
        artifacts = Path(unquote(urlparse(address).path))
        for number in range(count - existing):
            run = UUID(int=chance.getrandbits(128), version=4).hex
            store.execute(
                f"INSERT INTO runs (run_uuid, {', '.join(columns)})"  # noqa: S608
                f" SELECT ?, {', '.join(columns)} FROM runs WHERE run_uuid = ?",
                (run, template),
            )
            for table, names in COPIED.items():
                store.execute(
                    f"INSERT INTO {table} (run_uuid, {names}) SELECT ?, {names} FROM {table} WHERE run_uuid = ?",  # noqa: S608
                    (run, template),
                )
            store.execute(
                "INSERT INTO inputs (input_uuid, source_type, source_id, destination_type, destination_id, step)"
                " SELECT ?, source_type, source_id, destination_type, ?, step FROM inputs"
                " WHERE destination_id = ? AND source_type = 'DATASET'",
                (UUID(int=chance.getrandbits(128), version=4).hex, run, template),
            )
            own = artifacts.parents[1] / run / "artifacts"
            for name in ARTIFACTS:
                (own / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(artifacts / name, own / name)
            change = {
                "params": {"train.seed": number % SEEDS, "train.learning_rate": f"{0.01 + number // SEEDS / 1e4:.4f}"},
                "latest_metrics": {"test/accuracy": 0.95 + 0.05 * chance.random()},
            }
            for table, values in change.items():
                for key, value in values.items():
                    store.execute(
                        f"UPDATE {table} SET value = ? WHERE run_uuid = ? AND key = ?",  # noqa: S608
                        (value, run, key),
                    )
            store.execute("UPDATE runs SET artifact_uri = ?, name = ? WHERE run_uuid = ?", (own.as_uri(), run[:8], run))


if __name__ == "__main__":
    fill(Path("mlflow.db"), int(sys.argv[1]))
