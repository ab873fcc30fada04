"""All uses of MLflow beyond its documented interface: its tables, databases and monitor.

Tests check each of these uses, and name MLflow's version if one of them changes.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import mlflow
from mlflow.store.db.db_types import DATABASE_ENGINES
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from sqlalchemy import create_engine

from classifier.project.files import write_atomic
from classifier.recording.store import ARTIFACTS, home_of, note_of

ADDRESSES = [  # tables and columns that hold addresses of artifacts
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
]


def relocate(database: Path) -> None:
    """Update the artifact addresses of a SQLite store that was moved or copied with its home, and note the new home.

    Addresses outside the home are not changed. Addresses that are already correct are not changed either: a process may
    have been killed before it noted the new home, and the new home may be inside the old one.
    """
    home, note = home_of(database).as_uri(), note_of(database)
    if not database.exists():
        note.unlink(missing_ok=True)  # the note of a database that was deleted
        return
    noted = _noted(database)
    if noted in (None, home):
        return
    correct = home if home.startswith(f"{noted}/") else ""
    with closing(sqlite3.connect(database)) as store, store:
        for table, column in ADDRESSES:
            store.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?)"  # noqa: S608
                f" WHERE ({column} = ? OR substr({column}, 1, ?) = ?) AND substr({column} || '/', 1, ?) <> ?",
                (home, len(noted) + 1, noted, len(noted) + 1, f"{noted}/", len(correct) + 1, f"{correct}/"),
            )
    write_atomic(note, home.encode())


def note_home(database: Path) -> None:
    """Note the home of a SQLite store that has no note, because its addresses are correct now."""
    if not note_of(database).exists():
        write_atomic(note_of(database), home_of(database).as_uri().encode())


def _noted(database: Path) -> str | None:
    """The address of the home where the store was last used."""
    if (note := note_of(database)).exists():
        return note.read_text(encoding="utf-8")
    old = (
        home_of(database) / ARTIFACTS / "address.txt"
    )  # version 1 of this pipeline noted the address of the artifacts here
    return old.read_text(encoding="utf-8").removesuffix(f"/{ARTIFACTS}") if old.exists() else None


def is_known_schema(revision: str) -> bool:
    """Whether this MLflow knows the schema and can upgrade it; a newer MLflow's schema is unknown."""
    return any((Path(mlflow.__file__).parent / "store/db_migrations/versions").glob(f"{revision}_*.py"))


def is_database(uri: str) -> bool:
    """Whether the address is that of a database rather than a tracking server."""
    return uri.partition(":")[0].partition("+")[0] in DATABASE_ENGINES


def connect(uri: str) -> None:
    """Connect to a database without retries; MLflow itself would try ten times in 100 s."""
    engine = create_engine(uri)
    try:
        engine.connect().close()
    finally:
        engine.dispose()


class SystemMetrics:
    """Samples CPU and memory use and logs it to a run, in a thread."""

    def __init__(self, run_id: str, interval_s: float, *, resumed: bool) -> None:
        self.monitor = SystemMetricsMonitor(  # type: ignore[no-untyped-call]
            run_id, sampling_interval=interval_s, resume_logging=resumed
        )
        self.monitor.start()  # type: ignore[no-untyped-call]

    def stop(self) -> None:
        """Stop, and log the last samples; otherwise a short training would have none."""
        self.monitor.finish()  # type: ignore[no-untyped-call]
        self.monitor.publish_metrics(self.monitor.aggregate_metrics())  # type: ignore[no-untyped-call]
        self.monitor.mlflow_logger.flush()  # type: ignore[no-untyped-call]
