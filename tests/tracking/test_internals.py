"""What we know of MLflow beyond its public interface, tried on the installed version, which a failure names."""

import sqlite3
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from classifier.recording.tags import HIDDEN
from classifier.serving.pyfunc import BAD_REQUEST
from classifier.tracking import internals
from classifier.tracking.connection import open_store
from classifier.tracking.view import _chart, view
from tests.recorded import Workspace, get_run
from tests.tried import changed

pytestmark = pytest.mark.usefixtures("workspace")


def test_these_columns_and_no_others_hold_addresses_of_artifacts(workspace):
    """In a store with everything that the pipeline puts there."""
    outputs = Workspace()
    run_id = outputs.train()
    outputs.evaluate()
    (output,) = get_run(run_id).outputs.model_outputs
    mlflow.register_model(f"models:/{output.model_id}", "classifier")
    found = set()
    with closing(sqlite3.connect("mlflow.db")) as store:
        for (table,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for column in [row[1] for row in store.execute(f"PRAGMA table_info('{table}')")]:
                query = f'SELECT count(*) FROM "{table}" WHERE instr("{column}", ?)'
                if store.execute(query, (str(workspace),)).fetchone()[0]:
                    found.add((table, column))
    assert found == set(internals.ADDRESSES) - MODELS_BY_ID, changed("mlflow", "where the addresses of artifacts are")


MODELS_BY_ID = {("model_versions", "source")}  # `models:/m-...`, of a logged model; an address of one that is not


def test_a_version_that_was_registered_by_its_address_is_kept_by_address(workspace):
    run_id = Workspace().train()
    (output,) = get_run(run_id).outputs.model_outputs
    client = mlflow.MlflowClient()
    client.create_registered_model("by address")
    client.create_model_version("by address", client.get_logged_model(output.model_id).artifact_location)
    with closing(sqlite3.connect("mlflow.db")) as store:
        ((source,),) = store.execute("SELECT source FROM model_versions").fetchall()
    assert source.startswith(workspace.as_uri()), changed("mlflow", "where the addresses of artifacts are")


def test_schemas_are_known_by_the_names_of_mlflows_migrations():
    open_store()
    with closing(sqlite3.connect("mlflow.db")) as store:
        ((revision,),) = store.execute("SELECT version_num FROM alembic_version").fetchall()
    assert internals.is_known_schema(revision), changed("mlflow", "the names of its migrations")
    assert not internals.is_known_schema("fffffffffffff")


def test_a_database_is_told_from_a_server():
    databases = ["sqlite:///a.db", "postgresql://host/db", "postgresql+psycopg2://host/db", "mysql://host/db"]
    servers = ["https://host", "file:///a", "databricks"]
    found = [internals.is_database(uri) for uri in [*databases, *servers]]
    assert found == [True] * 4 + [False] * 3, changed("mlflow", "the kinds of database that it takes")


def test_the_monitor_logs_what_it_has_sampled_when_it_stops():
    run_id = Workspace().train()
    internals.SystemMetrics(run_id, 60, resumed=False).stop()
    names = {name for name in get_run(run_id).data.metrics if name.startswith("system/")}
    assert "system/cpu_utilization_percentage" in names, changed("mlflow", "the monitor of system metrics")


def test_the_scoring_server_answers_a_bad_request_with_status_400():
    found = MlflowException("pixels", error_code=BAD_REQUEST).get_http_status_code()
    assert found == 400, changed("mlflow", "the status of BAD_REQUEST")


def test_the_pages_of_the_ui_read_shared_views_and_hide_reserved_tags():
    """`classifier.tracking.view` writes a view; `classifier.recording.tags.HIDDEN` begins like MLflow's own tags."""
    scripts = (Path(mlflow.__file__).parent / "server/js/build/static/js").glob("main.*.js")
    text = "".join(path.read_text() for path in scripts)
    known = ["mlflow.sharedViewState.", "viewStateShareKey", *view([]), *_chart("loss", "LINE", "log")]
    assert [name for name in known if name not in text] == [], changed("mlflow", "the views of its UI")
    assert '="mlflow.",' in text, changed("mlflow", "which tags its UI hides")
    assert HIDDEN.startswith("mlflow.")
