"""Where MLflow's store lies, and how it survives being moved."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from classifier.lineage import project_root

DATABASE = "mlflow.db"  # in the project's root
ARTIFACTS = "mlartifacts"  # beside it


def store_uri() -> str:
    """Where runs are recorded: MLFLOW_TRACKING_URI, else the database in the project's root."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project_root() / DATABASE}"


def relocate(database: Path, artifacts: Path) -> None:
    """Point a store that was moved or copied at its own artifacts: MLflow stores their absolute addresses."""
    address = artifacts.as_uri()
    columns = {
        "experiments": ["artifact_location"],
        "runs": ["artifact_uri"],
        "logged_models": ["artifact_location"],
        "model_versions": ["source", "storage_location"],
    }
    with closing(sqlite3.connect(database)) as store, store:
        try:
            found = store.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
        except sqlite3.OperationalError:
            return  # a database without tables: MLflow is about to make them
        for (old,) in found:
            if not old or old == address or not old.endswith(f"/{ARTIFACTS}"):
                continue
            for table, names in columns.items():
                for name in names:
                    store.execute(
                        f"UPDATE {table} SET {name} = ? || substr({name}, ?) WHERE {name} = ? OR {name} LIKE ?",  # noqa: S608
                        (address, len(old) + 1, old, f"{old}/%"),
                    )
