"""MLflow's side of the pipeline: puts journals into the store, each event once, however often it has to try.

A run is known by the tag `run.key`, a metric's point by its step, so that whatever arrived before a connection broke,
or before a training was killed and resumed, is not sent again.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections import defaultdict
from http import HTTPStatus
from importlib.metadata import version
from tempfile import TemporaryDirectory

import mlflow
import numpy as np
from filelock import FileLock
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelOutput, LoggedModelStatus, Metric, Param, RunTag
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.store.db.db_types import DATABASE_ENGINES
from mlflow.types import ColSpec, DataType, Schema
from sqlalchemy import create_engine
from sqlalchemy.exc import SQLAlchemyError

from classifier.data.dataset import SIZE
from classifier.errors import UserError
from classifier.params import upgraded
from classifier.project.checksummed import newer_format
from classifier.project.lineage import project_root
from classifier.project.ownership import claim
from classifier.recording.journal import FORMAT, Event, Journal, waiting_journals
from classifier.recording.store import (
    ARTIFACTS,
    DATABASE,
    EXPERIMENT,
    known_store,
    relocate,
    shown_uri,
    store_uri,
    without_passwords,
)

KEY_TAG = "run.key"  # of the journal that made the run
EVALUATION_TAG = "evaluation.key"  # of the journal that evaluates it
WEIGHTS_TAG = "model.weights_sha256"
EVALUATED_TAG = "evaluated"  # the run is complete
SEED_TAG = "replica.seed"
REQUEST_TIMEOUT_S = 10  # unless MLFLOW_HTTP_REQUEST_TIMEOUT says otherwise; MLflow's own 120 s, 8 times, is for ever
SERVING_PACKAGES = ["numpy", "pandas", "pydantic", "safetensors", "torch"]


class Delivery:
    """Puts one journal's events into the store, from the first on."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.offset = 0  # in the journal, in bytes: what lies before it has arrived
        self.run_id = ""
        self.made_here = False  # the run was made by this journal
        self.seeds: dict[int, str] = {}  # the nested runs' ids
        self.described: set[int] = set()  # nested runs whose params have arrived
        self.waiting: dict[str, list[Metric]] = defaultdict(list)  # by run id
        self.known: dict[tuple[str, str], set[int]] = {}  # (run id, metric) -> steps that the store has
        self.resumed = False  # the run was there before
        self.held: dict[str, set[str]] = {}  # run id -> metrics of which the store had points then
        self.overtaken = False  # this stage's part of the run is done, by this journal or a later one
        self.ended = False

    def advance(self) -> None:
        """Deliver what was written since the last time."""
        events, offset = self.journal.read(self.offset)
        for event in events:
            if not self.run_id and event["do"] != "begin":
                continue  # of a stage that ended before it began its run
            if not event.get("restored") or self.made_here:
                getattr(self, f"_{event['do']}")(event)
        self._flush()
        self.offset = offset

    def _begin(self, event: Event) -> None:
        if (number := event.get("format", 1)) > FORMAT:
            raise UserError(f"it {newer_format(number, FORMAT)}")
        self.experiment = open_store(event["experiment"])
        self.client = mlflow.MlflowClient()
        found = self._find(event)
        self.resumed = found is not None
        if found is None:
            tags = event["tags"] | {
                KEY_TAG: event["key"],
                "mlflow.user": event["user"],
                "mlflow.source.name": f"stages/{event['stage']}.py",
                "mlflow.source.type": "LOCAL",
            }
            found = self.client.create_run(self.experiment, event["time"], tags, event["name"])
        elif found.info.status == "FINISHED" and (event["stage"] == "train" or EVALUATED_TAG in found.data.tags):
            self.overtaken = True
        elif found.info.status != "RUNNING":
            self.client.update_run(found.info.run_id, status="RUNNING")
        self.run = found
        self.run_id = found.info.run_id
        self.params = event["params"]
        self.made_here = found.data.tags.get(KEY_TAG) == event["key"]
        self._log_params(self.run_id, self.params if self.made_here else {})
        if event["stage"] == "evaluate":
            self.client.set_tag(self.run_id, EVALUATION_TAG, event["key"])
        nested = self._search(f"tags.`mlflow.parentRunId` = '{self.run_id}'") if self.resumed else []
        self.seeds = {int(run.data.tags[SEED_TAG]): run.info.run_id for run in nested if SEED_TAG in run.data.tags}
        self.held = {run.info.run_id: set(run.data.metrics) for run in (found, *nested)}

    def _find(self, event: Event) -> MlflowRun | None:
        """The run that this journal has begun before, else the newest one that awaits the evaluation of its weights."""
        key = event["key"]
        for tag in (KEY_TAG, EVALUATION_TAG):
            if runs := self._search(f"tags.`{tag}` = '{key}'"):
                return runs[0]
        if event["weights"]:
            for run in self._search(f"tags.`{WEIGHTS_TAG}` = '{event['weights']}'"):
                names = ("dvc.exp.name", "mlflow.parentRunId")  # two people's sweeps have experiments of the same name
                same_experiment = all(run.data.tags.get(name) == event["tags"].get(name) for name in names)
                same_params = upgraded(run.data.params) == upgraded(event["params"])
                if same_params and same_experiment and EVALUATED_TAG not in run.data.tags:
                    return run
        return None

    def _search(self, filter_string: str) -> list[MlflowRun]:
        order = ["attributes.start_time DESC"]
        return list(self.client.search_runs([self.experiment], filter_string, max_results=5000, order_by=order))

    def _log_params(self, run_id: str, params: dict[str, str]) -> None:
        values = [Param(name, value) for name, value in params.items()]
        for start in range(0, len(values), 100):  # what MLflow takes at once
            self.client.log_batch(run_id, params=values[start : start + 100])

    def _metrics(self, event: Event) -> None:
        run_id = self.run_id if event["seed"] is None else self._nested(event["seed"], event["time"])
        for name, value in event["values"].items():
            if event["step"] not in self._known(run_id, name):
                self._known(run_id, name).add(event["step"])
                self.waiting[run_id].append(Metric(name, value, event["time"], event["step"]))
        if len(self.waiting[run_id]) >= 1000:
            self._flush()

    def _known(self, run_id: str, name: str) -> set[int]:
        """The steps of this metric's points; asked for once, and only where there are some."""
        if (run_id, name) not in self.known:
            held = name in self.held.get(run_id, ())
            points = self.client.get_metric_history(run_id, name) if held else []
            self.known[run_id, name] = {point.step for point in points}
        return self.known[run_id, name]

    def _nested(self, seed: int, time_ms: int) -> str:
        """The nested run of one replica."""
        if seed not in self.seeds:
            tags = {
                "mlflow.parentRunId": self.run_id,
                "mlflow.user": self.run.info.user_id,
                SEED_TAG: str(seed),
                KEY_TAG: f"{self.run_id}-{seed}",
            }
            child = self.client.create_run(self.experiment, time_ms, tags, f"{self.run.info.run_name}, seed {seed}")
            self.seeds[seed] = child.info.run_id
        if seed not in self.described:
            self._log_params(self.seeds[seed], self.params | {"train.seed": str(seed), "train.seeds": "1"})
            self.described.add(seed)
        return self.seeds[seed]

    def _flush(self) -> None:
        """Metrics travel in batches of the 1,000 that MLflow takes at once: a call each would cost 4 to 50 ms."""
        for run_id, metrics in self.waiting.items():
            while metrics:
                self.client.log_batch(run_id, metrics=metrics[:1000])
                del metrics[:1000]

    def _tags(self, event: Event) -> None:
        self.client.log_batch(self.run_id, tags=[RunTag(name, value) for name, value in event["tags"].items()])

    def _data(self, event: Event) -> None:
        dataset = Dataset(event["name"], event["digest"], "http", event["source"], profile=event["profile"])
        self.client.log_inputs(self.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])

    def _files(self, event: Event) -> None:
        self.client.log_artifacts(self.run_id, str(self.journal.folder / "files" / event["path"]), event["path"])

    def _model(self, event: Event) -> None:
        """Once: one that was broken off is completed, or the run would list both."""
        filter_string = f"source_run_id = '{self.run_id}'"
        found = list(self.client.search_logged_models([self.experiment], filter_string))
        name, params = "classifier", {name: str(value) for name, value in self.params.items()}
        model = (
            found[0] if found else self.client.create_logged_model(self.experiment, name, self.run_id, params=params)
        )
        if model.status == LoggedModelStatus.READY:
            return
        files = self.journal.folder / "files"
        images = np.zeros((2, event["channels"], SIZE, SIZE), np.uint8)
        columns = [("predicted", DataType.string), *((name, DataType.double) for name in event["class_names"])]
        with TemporaryDirectory(dir=self.journal.folder) as folder:  # which goes with it, should this be killed
            mlflow.pyfunc.save_model(
                f"{folder}/model",
                mlflow_model=Model(model.artifact_location, self.run_id, model_id=model.model_id),
                loader_module="classifier.serving.pyfunc",
                data_path=str(files / event["path"]),
                code_paths=[str(files / event["code"])],
                # Inputs without a schema: MLflow would cast JSON to the schema's type before `predict` can refuse it.
                signature=ModelSignature(outputs=Schema([ColSpec(kind, name) for name, kind in columns])),
                input_example=images,
                pip_requirements=[f"{package}=={version(package)}" for package in SERVING_PACKAGES],
            )
            self.client.log_model_artifacts(model.model_id, f"{folder}/model")
        outputs = self.client.get_run(self.run_id).outputs
        if not (outputs and outputs.model_outputs):
            self.client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, step=0)])
        self.client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)

    def _end(self, event: Event) -> None:
        self._flush()
        self.ended = True
        if self.overtaken:
            return
        if event["error"]:
            self.client.set_tag(self.run_id, "error", event["error"])
        elif "error" in self.run.data.tags:  # of an earlier try
            self.client.delete_tag(self.run_id, "error")
        for run_id in (*self.seeds.values(), self.run_id):
            self.client.set_terminated(run_id, event["status"], event["time"])


class StoreError(OSError):
    """MLflow's store cannot be reached."""


class EarlierJournalError(OSError):
    """A journal that has to go first is not delivered yet."""


def deliver_waiting(without: Journal | None = None) -> tuple[list[str], list[str]]:
    """Deliver every journal of this store that nobody is at any more: a line for each that went, and that did not.

    What a killed process began ends as KILLED. One that cannot be delivered does not hold up the others. StoreError
    when the store cannot be reached.
    """
    delivered, left = [], []
    for waiting in waiting_journals():
        begin = _begin_of(waiting)
        if without and waiting.folder == without.folder:
            continue
        if begin and begin["store"] != known_store():
            left.append(f"{waiting.folder}: it is for the store {begin['store']}")
        elif (handle := claim(waiting.folder)) is None:
            left.append(f"{waiting.folder}: its stage still runs, or another process delivers it")
        else:
            journal = Journal(waiting.folder, handle)
            try:
                if run_id := deliver(journal):
                    delivered.append(f"{begin['stage'] if begin else 'a stage'}, run {run_id}")
            except StoreError:
                raise
            except Exception as error:  # whatever MLflow, a database's or an artifact store's client raises
                left.append(f"{waiting.folder}: {first_line(error)}")
            finally:
                journal.release()
    return delivered, left


def deliver(journal: Journal) -> str:
    """Deliver a journal whose writer is gone, remove it, and return its run's id; empty when nothing was begun."""
    delivery = Delivery(journal)
    let_go_first(journal)
    delivery.advance()
    return close(delivery)


def _begin_of(journal: Journal) -> Event | None:
    return next((event for event in journal.read()[0] if event["do"] == "begin"), None)


def let_go_first(journal: Journal) -> None:
    """EarlierJournalError while an older journal of the same run is not delivered: their events have an order.

    One for another store is of another run.
    """
    begin = _begin_of(journal)
    for earlier in waiting_journals():
        if not begin or earlier.folder.name >= journal.folder.name:
            continue
        events, _ = earlier.read()
        weights = [event["tags"].get(WEIGHTS_TAG) for event in events if event["do"] == "tags"]
        begins = [event for event in events if event["do"] == "begin" and event["store"] == begin["store"]]
        same = any(event["key"] == begin["key"] for event in begins)
        if same or (begins and begin["weights"] and begin["weights"] in weights):
            raise EarlierJournalError(f"{earlier.folder}, of the same run, goes first: classifier sync")


def close(delivery: Delivery) -> str:
    """A journal without an end gets one: its writer is gone."""
    if delivery.run_id and not delivery.ended:
        delivery.journal.append(
            "end", status="KILLED", error="its process ended without a word: killed, or out of memory"
        )
        delivery.advance()
    delivery.journal.remove()
    return delivery.run_id


def open_store(name: str | None = None) -> str:
    """Make sure that the store and the experiment exist, and return the experiment's id.

    MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME take the place of `mlflow.db` in the project's root. StoreError when
    it cannot be reached.
    """
    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(REQUEST_TIMEOUT_S))
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # the next delivery is the retry
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"  # no model of ours is one
    os.environ.setdefault("PGCONNECT_TIMEOUT", str(REQUEST_TIMEOUT_S))
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # a server's, when a run ends
    uri, root = store_uri(), project_root()
    mlflow.set_tracking_uri(uri)  # which sets MLFLOW_TRACKING_URI too
    name = name or os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
    try:
        if uri.startswith("http"):
            return _experiment(name, None)  # a server knows where its artifacts go
        # Processes that start together on a fresh database crash in its migrations; one at a time they do not.
        with FileLock(root / f"{DATABASE}.lock"):
            relocate(root)
            _connect(uri)
            return _experiment(name, (root / ARTIFACTS).as_uri())  # elsewhere they would go to the current folder
    except (MlflowException, SQLAlchemyError, sqlite3.Error) as error:
        status = error.get_http_status_code() if isinstance(error, MlflowException) else None  # type: ignore[no-untyped-call]
        if status == HTTPStatus.UNAUTHORIZED:
            raise StoreError(
                f"MLflow's store {shown_uri()} does not accept this user and password (401); "
                "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            ) from None
        raise StoreError(
            f"MLflow's store {shown_uri()} cannot be used: {first_line(error)}; "
            "start it, or unset MLFLOW_TRACKING_URI to use mlflow.db in the project's root"
        ) from None


def _connect(uri: str) -> None:
    """To a database, once: MLflow would try ten times in 100 s."""
    if uri.partition(":")[0].partition("+")[0] not in DATABASE_ENGINES:
        return
    engine = create_engine(uri)
    try:
        engine.connect().close()
    finally:
        engine.dispose()


def _experiment(name: str, artifacts: str | None) -> str:
    if experiment := mlflow.get_experiment_by_name(name):
        return str(experiment.experiment_id)
    # Without the kind the UI opens on pages for language models.
    tags = {"mlflow.experimentKind": "custom_model_development"}
    try:
        return str(mlflow.create_experiment(name, artifact_location=artifacts, tags=tags))
    except MlflowException:
        if experiment := mlflow.get_experiment_by_name(name):  # another machine was quicker
            return str(experiment.experiment_id)
        raise


def first_line(error: Exception) -> str:
    """What happened and why, without the HTTP library's own words between the two."""
    line, _, cause = (str(error).splitlines() or [type(error).__name__])[0].partition(" (Caused by ")
    said = f"{line.partition(' failed with exception ')[0]}: {cause.rstrip(')')}" if cause else line
    return without_passwords(said[:300])
