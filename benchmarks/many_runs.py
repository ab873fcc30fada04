"""Fill a store with realistic runs: copies of one run, each with its own params, code and results.

    python -m benchmarks.many_runs COUNT

MLflow's client takes minutes for 1,000 runs with 300,000 metric values, so this copies rows within the SQLite file, and
copies the artifacts that commands read. Groups of five seeds share a learning rate, and each run has slightly different
predictions. The runs are divided into twenty code states: two commits, each alternately clean and with a different
uncommitted change.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlparse
from uuid import UUID

import numpy as np
import pandas as pd

from benchmarks.project import AUTHOR
from classifier.repository.code import GitState, git_state

SEEDS = 5
COPIED = {  # table -> its columns other than run_uuid
    "params": "key, value",
    "tags": "key, value",
    "metrics": "key, value, timestamp, step, is_nan",
    "latest_metrics": "key, value, timestamp, step, is_nan",
}
ARTIFACTS = ("evaluate/per_class.csv", "evaluate/metrics.json", "train/summary.json", "code/environment.json")
PREDICTIONS, PATCH = "evaluate/predictions.parquet", "code/uncommitted.diff"
MISTAKES = 0.05  # maximum fraction of test images that a copy predicts differently
CHANGED = Path("classifier/training/summary.py")  # gets comments appended
CHANGES = 5  # uncommitted changes per commit


def code_states() -> list[GitState]:
    """Return the states of two commits, the current and a new one, alternately clean and with a different change."""
    states = []
    for commit in range(2):
        code = CHANGED.read_text(encoding="utf-8")
        for number in range(CHANGES):
            states.append(git_state())
            CHANGED.write_text(f"{code}# change {commit}.{number}\n", encoding="utf-8")
            states.append(git_state())
            CHANGED.write_text(code, encoding="utf-8")
        if not commit:
            CHANGED.write_text(f"{code}# committed\n", encoding="utf-8")
            subprocess.run(["git", *AUTHOR, "commit", "-q", "-m", "more", CHANGED], check=True)  # noqa: S603, S607
    return states


def other_predictions(table: pd.DataFrame, chance: random.Random) -> pd.DataFrame:
    """Swap the most probable class of some images with another one, in the table written by evaluate."""
    most = max(1, int(len(table) * MISTAKES))
    table, images = table.copy(), np.array(chance.sample(range(len(table)), chance.randint(1, most)))
    probabilities = table.filter(regex=r"^p_\d+$")
    values, predicted = probabilities.to_numpy(copy=True), table["predicted"].to_numpy(copy=True)
    before = predicted[images]
    after = (before + chance.randrange(1, values.shape[1])) % values.shape[1]
    values[images, before], values[images, after] = values[images, after], values[images, before]
    predicted[images] = after
    table[probabilities.columns] = values
    return table.assign(predicted=predicted)


def fill(database: Path, count: int) -> None:
    """Copy the newest run until the store holds `count` finished runs, with the same ids every time.

    The current folder must be the project's git repository; a commit is added to it.
    """
    chance = random.Random(0)  # noqa: S311
    with closing(sqlite3.connect(database)) as store, store:
        columns = [name for _, name, *_ in store.execute("PRAGMA table_info(runs)") if name != "run_uuid"]
        (template, address), *_ = store.execute(
            "SELECT run_uuid, artifact_uri FROM runs WHERE status = 'FINISHED' ORDER BY start_time DESC"
        )
        (existing,) = store.execute("SELECT count(*) FROM runs WHERE status = 'FINISHED'").fetchone()
        artifacts = Path(unquote(urlparse(address).path))
        predictions, states = pd.read_parquet(artifacts / PREDICTIONS), code_states()
        for number in range(copies := count - existing):
            state = states[number * len(states) // copies]
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
            if state.diff:
                (own / PATCH).write_bytes(state.diff)
            others = other_predictions(predictions, chance)
            others.to_parquet(own / PREDICTIONS, index=False)
            accuracy = float((others["predicted"] == others["label"]).mean())
            change = {
                "params": {"train.seed": number % SEEDS, "train.learning_rate": f"{0.01 + number // SEEDS / 1e4:.4f}"},
                "tags": {
                    "git.commit": state.commit,
                    "git.dirty": str(state.dirty).lower(),
                    "mlflow.classifier.code": state.code,
                },
                "metrics": {"test/accuracy": accuracy},
                "latest_metrics": {"test/accuracy": accuracy},
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
