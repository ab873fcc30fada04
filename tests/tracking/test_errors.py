"""What is said when MLflow's store cannot be used: one line, with the remedy for that kind of failure."""

import errno
import os
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from classifier.tracking.connection import open_store
from classifier.tracking.errors import LONGEST, explained, shortened
from tests.loopback import closed_address, send
from tests.recorded import forget_store
from tests.sources.test_transfer import _certificate

pytestmark = pytest.mark.usefixtures("workspace")


@pytest.fixture
def said(monkeypatch):
    """`said(uri)` is what `open_store` says of the store there, or of the project's own."""

    def ask(uri=""):
        forget_store()
        if uri:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(OSError, match="cannot be used: ") as error:
            open_store()
        assert "\n" not in str(error.value)
        assert "secret" not in str(error.value)
        return str(error.value)

    return ask


@pytest.mark.parametrize(
    ("revision", "remedy"),
    [
        ("451aebb31d03", "an older MLflow created it; back it up, then: mlflow db upgrade sqlite:///{}/other.db"),
        ("fffffffffffff", "a newer MLflow created it: install that version"),
    ],
)
def test_a_database_of_an_older_mlflow_is_to_be_upgraded_and_one_of_a_newer_is_not(workspace, said, revision, remedy):
    open_store()
    shutil.copy("mlflow.db", "other.db")  # MLflow does not look again at a database that it has opened
    with closing(sqlite3.connect("other.db")) as store, store:
        store.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    assert said("sqlite:///other.db").endswith(f"; {remedy.format(workspace)}")


def test_a_damaged_file_is_moved_aside(workspace, said):
    Path("mlflow.db").write_bytes(b"damaged" * 1000)
    file = workspace / "mlflow.db"
    assert f"; the file is corrupt: mv {file} {file}.damaged; then classifier sync" in said()
    assert "unset" not in said()


def test_a_file_that_cannot_be_opened_is_named(workspace, said):
    Path("mlflow.db").unlink()
    Path("mlflow.db").mkdir()
    assert f"; {workspace}/mlflow.db and its folder must be a file and a folder that you may write" in said()


def test_a_server_that_is_away_is_to_be_started_and_the_variable_named_where_it_is_set(said):
    address = closed_address().rstrip("/")
    start = f"MLflow's store {address} cannot be used: "
    end = (
        "; start it, or correct MLFLOW_TRACKING_URI, or unset MLFLOW_TRACKING_URI to record in the project's mlflow.db"
    )
    answer = said(address.replace("//", "//ann:secret@"))
    assert answer.startswith(start)
    assert answer.endswith(end)


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        (401, "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        (403, "ask the server's administrator"),
        (404, "no tracking server is at this address: correct MLFLOW_TRACKING_URI"),
        (500, "start it, or correct MLFLOW_TRACKING_URI"),
    ],
)
def test_a_server_that_refuses_or_is_another_one(serve, said, status, remedy):
    server = serve(lambda request: send(request, b"no", status))
    assert remedy in said(server.address)


def test_a_certificate_that_nobody_vouches_for(serve, said, tmp_path, monkeypatch):
    context, authority = _certificate(tmp_path)
    server = serve(lambda request: send(request, b"no", 500), tls=context)
    assert "MLFLOW_TRACKING_SERVER_CERT_PATH" in said(server.address)
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(authority))
    assert "MLFLOW_TRACKING_SERVER_CERT_PATH" not in said(server.address)


def test_a_proxy_that_does_not_answer(said, monkeypatch):
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", closed_address())
    assert "; the proxy cannot be used: set NO_PROXY=tracking.example.org" in said("http://tracking.example.org/")


def test_a_database_whose_driver_is_not_installed(said):
    assert "; its driver is not installed" in said("mysql://ann:secret@127.0.0.1/mlflow")


FREE = r" cannot be written: the disk is full \([\d,]+ bytes free\); free some space"


def test_a_full_disk_is_named_with_the_database(workspace):
    error = MlflowException("(sqlite3.OperationalError) database or disk is full")
    assert re.fullmatch(re.escape(f"{workspace}/mlflow.db") + FREE, explained(error))


def test_a_full_disk_is_named_with_the_artifact(workspace):
    number, reason = errno.ENOSPC, os.strerror(errno.ENOSPC)
    copied = shutil.Error([("source/a", f"{workspace}/a", str(OSError(number, reason)))])  # as of shutil.copytree
    for error in (
        copied,
        OSError(number, reason, f"{workspace}/a"),
        OSError(number, reason, "b", None, f"{workspace}/a"),
    ):
        assert re.fullmatch(re.escape(f"{workspace}/a") + FREE, explained(error))
    assert explained(shutil.Error([("a", "b", "[Errno 13] Permission denied: 'b'")])).endswith(
        "Permission denied: 'b'\")]"
    )


def test_what_a_server_passes_on_or_refuses_is_not_taken_for_its_own_connection(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    for text in (
        "INTERNAL_ERROR: Connection refused by s3",
        "INVALID_PARAMETER_VALUE: 'abc' is not a valid metric name",
    ):
        assert explained(MlflowException(text)) == text
    lost = "API request to http://127.0.0.1:5000/api failed with exception Connection refused"
    assert "; start it, or correct MLFLOW_TRACKING_URI" in explained(MlflowException(lost))


def test_a_page_at_the_address_is_no_tracking_server(serve, said):
    server = serve(lambda request: send(request, b"<html>hello</html>"))
    assert "; no tracking server is at this address: correct MLFLOW_TRACKING_URI" in said(server.address)


def test_what_mlflow_says_is_cut_between_words_only():
    text = "abcdefg " * 100
    short = shortened(text)
    assert len(short) <= LONGEST
    assert set(short.split()) == {"abcdefg", "..."}
    assert shortened("short") == "short"
