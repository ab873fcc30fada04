"""Formats errors of MLflow's store as one line, with a remedy for each kind of failure."""

from __future__ import annotations

import errno
import re
import shlex
import shutil
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

from mlflow.exceptions import MlflowException

from classifier.project.addresses import without_passwords
from classifier.project.files import NoSpaceError
from classifier.project.lineage import project_root
from classifier.recording.store import database_of, default_uri, shown_uri, store_uri
from classifier.tracking.internals import is_known_schema

LONGEST = 300  # characters of MLflow's message
FULL = (errno.ENOSPC, errno.EDQUOT)  # a full disk, a used-up quota


class StoreError(OSError):
    """MLflow's store cannot be used; the message contains the remedy."""


class ExperimentError(OSError):
    """The store can be used, but not this experiment; the message contains the remedy."""


def unusable(error: Exception) -> StoreError:
    """The error to raise if the store cannot be opened."""
    return StoreError(f"MLflow's store {shown_uri()} cannot be used: {explained(error, opening=True)}")


def explained(error: Exception, *, opening: bool = False) -> str:
    """Describe the error and its remedy, if known, in one line. `opening`: the store could not be opened."""
    if isinstance(error, StoreError | ExperimentError):
        return str(error)
    if isinstance(error, MlflowException) and error.get_http_status_code() == HTTPStatus.UNAUTHORIZED:  # type: ignore[no-untyped-call]
        return (
            "it does not accept this user and password (401): set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    if full := _full_disk(error):
        return f"{full}; free some space"
    remedy = _remedy(error, opening)
    return f"{first_line(error)}; {remedy}" if remedy else first_line(error)


@contextmanager
def reported() -> Iterator[None]:
    """Convert errors of MLflow to OSError with a one-line message."""
    try:
        yield
    except MlflowException as error:
        raise OSError(f"MLflow: {explained(error)}") from None


def first_line(error: Exception) -> str:
    """Describe the error and its cause, without the HTTP library's text between them."""
    line, _, cause = (str(error).splitlines() or [type(error).__name__])[0].partition(" (Caused by ")
    said = f"{line.partition(' failed with exception ')[0]}: {cause.rstrip(')')}" if cause else line
    return without_passwords(shortened(said))


def shortened(text: str) -> str:
    """Truncate to LONGEST characters at a word boundary."""
    return textwrap.shorten(text, LONGEST, placeholder=" ...") if len(text) > LONGEST else text


def _full_disk(error: Exception) -> NoSpaceError | None:
    """The error of a full disk of this machine, in any form in which MLflow passes it on; None for other errors."""
    database = database_of(store_uri())
    if database and re.search("database or disk is full", str(error)):
        return NoSpaceError(database, None, errno.ENOSPC)
    copies = error.args[0] if isinstance(error, shutil.Error) and error.args else []
    for _, target, reason in copies if isinstance(copies, list) else []:  # of a folder of artifacts
        if number := next((number for number in FULL if f"[Errno {number}]" in str(reason)), None):
            return NoSpaceError(Path(target), None, number)
    if isinstance(error, NoSpaceError):
        return error
    if isinstance(error, OSError) and error.errno in FULL:
        return NoSpaceError(Path(error.filename2 or error.filename or project_root()), None, error.errno)
    return None


def _remedy(error: Exception, opening: bool) -> str:
    """The remedy, chosen by the error's text: MLflow, databases and the HTTP library do not identify it otherwise.

    Errors of connections and addresses concern the store itself while it is opened, or if the text says so. Otherwise
    they may concern something else: a server also passes on errors of its artifact store.
    """
    text, uri = str(error), store_uri()
    database = database_of(uri)
    if found := re.search(r"out-of-date database schema \(found version (\w+)", text):
        return _OLDER.format(uri=shlex.quote(uri)) if is_known_schema(found[1]) else _NEWER
    own = opening or re.match(r"API request to |\(\w+\.OperationalError\)", text)
    remedies = (_DATABASE if database else _SERVER | (_CONNECTION if own else {})).items()
    remedy = next((remedy for pattern, remedy in remedies if re.search(pattern, text)), "")
    names = {
        "uri": shlex.quote(uri),
        "path": shlex.quote(str(database)),
        "damaged": shlex.quote(f"{database}.damaged"),
        "host": urlsplit(uri).hostname,
        "unset": "" if uri == default_uri() else ", or unset MLFLOW_TRACKING_URI to record in the project's mlflow.db",
    }
    return without_passwords(remedy.format(**names))


_OLDER = "an older MLflow created it; back it up, then: mlflow db upgrade {uri}"
_NEWER = "a newer MLflow created it: install that version"
_DATABASE = {
    r"file is not a database|disk image is malformed|malformed database schema": (
        "the file is corrupt: mv {path} {damaged}; then classifier sync and classifier record create a new one with "
        "the data that is not yet uploaded and the workspace's outputs"
    ),
    r"unable to open database file|readonly database": (
        "{path} and its folder must be a file and a folder that you may write"
    ),
    r"database is locked": "another process writes to it: run the command again",
}
_SERVER = {
    r"error code 403|PERMISSION_DENIED": "this user may not do that: ask the server's administrator for the permission",
    r"No module named '([^']+)'": "its driver is not installed: pip install the package that provides it",
}
_CONNECTION = {
    r"CERTIFICATE_VERIFY_FAILED|certificate verify failed": (
        "set MLFLOW_TRACKING_SERVER_CERT_PATH to the file of the authority's certificate (PEM)"
    ),
    r"ProxyError|Unable to connect to proxy|Proxy Authentication|error code 407": (
        "the proxy cannot be used: set NO_PROXY={host} to bypass it"
    ),
    r"password authentication failed|no password supplied": "set PGUSER and PGPASSWORD",
    r"Max retries exceeded|Connection refused|timed out|Connection aborted|could not translate host name|"
    r"Connection reset|error code 5\d\d|server closed the connection": (
        "start it, or correct MLFLOW_TRACKING_URI{unset}"
    ),
    r"error code 404|Expecting value|not in a valid JSON format|Could not parse|NoSuchModuleError|Can't load plugin": (
        "no tracking server is at this address: correct MLFLOW_TRACKING_URI{unset}"
    ),
}
