"""The location of MLflow's store: its address, the folder of its artifacts, and a note of its last place.

A store is a tracking server, a database server or a SQLite file. By default, only a SQLite file has its artifacts on
this machine: in `mlartifacts` of the project that contains the file, or next to a file outside of projects. MLflow
stores absolute artifact addresses; a note next to the file (`mlflow.db.home`) names the folder they are right for.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from classifier.project.addresses import without_passwords
from classifier.project.lineage import find_root, project_root

DATABASE = "mlflow.db"  # in the project's root
ARTIFACTS = "mlartifacts"
EXPERIMENT = "classifier"  # unless MLFLOW_EXPERIMENT_NAME says otherwise
SQLITE = "sqlite:///"


def store_uri() -> str:
    """The address of the store: MLFLOW_TRACKING_URI or, by default, the database in the project's root.

    Relative paths are relative to that root, because an experiment's working folder is temporary.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return default_uri()
    if database := database_of(uri):
        _, separator, options = uri.partition("?")
        return f"{sqlite_uri(database)}{separator}{options}"
    if ":" not in uri and not uri.startswith("databricks"):  # a folder, the store of earlier versions of MLflow
        return (project_root() / uri).as_uri()
    return _normalized(uri)


def experiment_name() -> str:
    """The name of the experiment: MLFLOW_EXPERIMENT_NAME, unless it is unset or empty."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT


def default_uri() -> str:
    """The address of the database in the project's root."""
    return sqlite_uri(project_root() / DATABASE)


def sqlite_uri(path: Path) -> str:
    """The address of the SQLite database at an absolute path.

    SQLAlchemy decodes the path, but MLflow does not before it creates the database's folder. Every `/` after the first
    special character is encoded too, so that the folder that MLflow sees exists.
    """
    first = re.search(r"[%?#]", str(path))
    plain = str(path)[: str(path).rfind("/", 0, first.start()) + 1] if first else str(path)
    return f"{SQLITE}{plain}{quote(str(path)[len(plain) :], safe='')}"


def database_of(uri: str) -> Path | None:
    """The absolute path of a SQLite database; None for other stores."""
    scheme, separator, path = uri.partition(":///")
    path = unquote(path.partition("?")[0])
    if not separator or scheme.partition("+")[0] != "sqlite" or path in ("", ":memory:"):
        return None
    return Path(os.path.normpath(project_root() / path))


def artifacts_of(database: Path) -> str:
    """The address of the folder with a SQLite database's artifacts."""
    return (home_of(database) / ARTIFACTS).as_uri()


def home_of(database: Path) -> Path:
    """The folder that is moved or copied together with a SQLite database: its project, or the folder it is in."""
    root = project_root()
    return find_root(database.parent) or (root if database.is_relative_to(root) else database.parent)


def note_of(database: Path) -> Path:
    """The note that names the home for which a SQLite database's artifact addresses are correct."""
    return database.with_name(f"{database.name}.home")


def shown_uri() -> str:
    """The store's address without user name and password."""
    return without_passwords(store_uri())


def known_store() -> str:
    """The store's name in journals; a database in the project is relative to the root, so that both can be moved."""
    database, root = database_of(store_uri()), project_root()
    if database and database.is_relative_to(root):
        return f"{SQLITE}./{database.relative_to(root)}"
    return shown_uri()


def is_known_store(name: str) -> bool:
    """Whether the store's name in a journal refers to the store in use."""
    return _normalized(name) == known_store()


def _normalized(uri: str) -> str:
    """Normalize a server's address: host in lower case, no trailing slash."""
    if not uri.lower().startswith(("http://", "https://")):
        return uri
    parts = urlsplit(uri)
    user, separator, host = parts.netloc.rpartition("@")
    return urlunsplit((parts.scheme, f"{user}{separator}{host.lower()}", parts.path.rstrip("/"), parts.query, ""))
