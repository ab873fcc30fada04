"""Where MLflow's store lies, and how it survives being moved."""

from __future__ import annotations

import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path

from classifier.project.files import write_atomic
from classifier.project.lineage import project_root

DATABASE = "mlflow.db"  # in the project's root
ARTIFACTS = "mlartifacts"  # beside it
EXPERIMENT = "classifier"  # unless MLFLOW_EXPERIMENT_NAME says otherwise
PLACES = [  # tables and columns that hold addresses of artifacts
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
]


def store_uri() -> str:
    """Where runs are recorded: MLFLOW_TRACKING_URI, else the database in the project's root.

    A relative SQLite file is meant from that root: an experiment's working folder is a temporary one.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{DATABASE}"
    kind, separator, path = uri.partition("sqlite:///")
    if separator and not kind and not Path(path).is_absolute():
        return f"sqlite:///{project_root() / path}"
    return uri


def shown_uri() -> str:
    """The store's address without a user's name and password."""
    return without_passwords(store_uri())


def known_store() -> str:
    """The store as a journal names it: the project may be moved with it."""
    return shown_uri().replace(str(project_root()), ".")


def without_passwords(text: str) -> str:
    """`text` with `https://host` in place of `https://user:password@host`."""
    return re.sub(r"(?<=://)[^/@\s]*@", "", text)


def relocate(root: Path) -> None:
    """Point a store that was moved or copied with its project at its own artifacts: MLflow stores absolute addresses.

    A note beside the artifacts says at which address they were last used; addresses below that one are ours.
    """
    note, address = root / ARTIFACTS / "address.txt", (root / ARTIFACTS).as_uri()
    noted = note.read_text(encoding="utf-8") if note.exists() else None
    if noted == address:
        return
    if noted and (root / DATABASE).exists():
        with closing(sqlite3.connect(root / DATABASE)) as store, store:
            for table, column in PLACES:
                store.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?)"  # noqa: S608
                    f" WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (address, len(noted) + 1, noted, len(noted) + 1, f"{noted}/"),
                )
    write_atomic(note, address.encode())
