"""Where MLflow's store is: the store's address, the folder of its artifacts, and the note of where it was last used.

A store is a server, a database server or a SQLite file. Only a SQLite file has artifacts on this machine by default: in
`mlartifacts` of the project that holds the file, or beside a file that no project holds. MLflow stores absolute
addresses of artifacts, so a note beside the file (`mlflow.db.home`) says in which folder they were last right.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from classifier.project.lineage import find_root, project_root

DATABASE = "mlflow.db"  # in the project's root
ARTIFACTS = "mlartifacts"
EXPERIMENT = "classifier"  # unless MLFLOW_EXPERIMENT_NAME says otherwise
SQLITE = "sqlite:///"


def store_uri() -> str:
    """The address of the store: MLFLOW_TRACKING_URI, else the database in the project's root.

    A relative path counts from that root: an experiment's working folder is a temporary one.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return default_uri()
    if database := database_of(uri):
        _, separator, options = uri.partition("?")
        return f"{sqlite_uri(database)}{separator}{options}"
    if ":" not in uri and not uri.startswith("databricks"):  # a folder, MLflow's old kind of store
        return (project_root() / uri).as_uri()
    return _normalized(uri)


def default_uri() -> str:
    """The address of the database in the project's root."""
    return sqlite_uri(project_root() / DATABASE)


def sqlite_uri(path: Path) -> str:
    """The address of an absolute path's SQLite database.

    SQLAlchemy decodes the path. MLflow does not before it creates the folder of the database: with every `/` behind the
    first decisive character encoded too, the folder that it sees is one that exists.
    """
    first = re.search(r"[%?#]", str(path))
    plain = str(path)[: str(path).rfind("/", 0, first.start()) + 1] if first else str(path)
    return f"{SQLITE}{plain}{quote(str(path)[len(plain) :], safe='')}"


def database_of(uri: str) -> Path | None:
    """The absolute path of a SQLite database; None for every other store."""
    scheme, separator, path = uri.partition(":///")
    path = unquote(path.partition("?")[0])
    if not separator or scheme.partition("+")[0] != "sqlite" or path in ("", ":memory:"):
        return None
    return Path(os.path.normpath(project_root() / path))


def artifacts_of(database: Path) -> str:
    """The address of the folder that holds a SQLite database's artifacts."""
    return (home_of(database) / ARTIFACTS).as_uri()


def home_of(database: Path) -> Path:
    """What is moved or copied together with a SQLite database: the project that holds it, else its folder."""
    root = project_root()
    return find_root(database.parent) or (root if database.is_relative_to(root) else database.parent)


def note_of(database: Path) -> Path:
    """The file that says where a SQLite database's home was when its artifacts' addresses were last right."""
    return database.with_name(f"{database.name}.home")


def shown_uri() -> str:
    """The store's address without a user's name and password."""
    return without_passwords(store_uri())


def known_store() -> str:
    """The store as a journal names it: a database in the project by its path from the root, so that both may move."""
    database, root = database_of(store_uri()), project_root()
    if database and database.is_relative_to(root):
        return f"{SQLITE}./{database.relative_to(root)}"
    return shown_uri()


def is_known_store(name: str) -> bool:
    """Whether a journal's name of its store means the store in use."""
    return _normalized(name) == known_store()


def without_passwords(text: str) -> str:
    """`text` with `https://host` in place of `https://user:password@host`."""
    return re.sub(r"(?<=://)[^/@\s]*@", "", text)


def _normalized(uri: str) -> str:
    """A server's address in one form: the host in lower case, no slash at the end."""
    if not uri.lower().startswith(("http://", "https://")):
        return uri
    parts = urlsplit(uri)
    user, separator, host = parts.netloc.rpartition("@")
    return urlunsplit((parts.scheme, f"{user}{separator}{host.lower()}", parts.path.rstrip("/"), parts.query, ""))
