"""MLflow's side of the pipeline: one run per execution, begun by train and completed by evaluate.

The only module that imports mlflow. DVC's outputs know nothing of runs: evaluate finds its run by the hash of the
weights, and makes one from params and history when there is none (weights from the cache, a deleted store).
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import psutil
from filelock import FileLock
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema, TensorSpec

from classifier.dataset import SIZE, DatasetMeta
from classifier.history import Row, read_history
from classifier.lineage import dvc_hash, experiment_tags, git_state, project_root
from classifier.model_dir import ModelMeta
from classifier.params import Params
from classifier.store import ARTIFACTS, DATABASE, relocate, store_uri
from classifier.training_report import read_histories, replica_metrics

EXPERIMENT = "classifier"
WEIGHTS_TAG = "model.weights_sha256"
EVALUATED_TAG = "evaluated"  # the run is complete
PROCESS_TAG = "process"  # host, process id and its start, so that a process that was killed is noticed
SEED_TAG = "replica.seed"
SYSTEM_METRICS_S = 2  # seconds between two samples of processor and memory use
FLUSH_S = 5.0  # seconds between two sendings of metrics, so that curves can be watched
SERVING_PACKAGES = ["numpy", "pandas", "pydantic", "safetensors", "torch"]
ROW_METRICS = {  # history.csv's column -> MLflow's name
    "running_loss": "train/running_loss",
    "learning_rate": "train/learning_rate",
    "train_loss": "train/loss",
    "validation_loss": "validation/loss",
    "validation_accuracy": "validation/accuracy",
}


class Run:
    """The active MLflow run. Metrics wait in memory and travel in batches: one call each would cost 4 to 50 ms."""

    def __init__(self, run_id: str, params: Mapping[str, object], replicas: bool) -> None:
        self.id = run_id
        self.client = mlflow.MlflowClient()
        self.params = params
        self.replicas = replicas  # several seeds are trained, each with a nested run
        self.children: dict[int, Run] = {}  # by seed
        self.waiting: list[Metric] = []
        self.sent_at = time.monotonic()
        self.log: list[str] = []  # the console's lines

    def of_seed(self, seed: int) -> Run:
        """The nested run of one replica, or this run where there is a single seed."""
        if not self.replicas:
            return self
        if seed not in self.children:
            info = self.client.get_run(self.id).info
            tags = {"mlflow.parentRunId": self.id, "mlflow.user": info.user_id, SEED_TAG: str(seed)}
            child = self.client.create_run(info.experiment_id, tags=tags, run_name=f"{info.run_name}, seed {seed}")
            values = {**self.params, "train.seed": seed, "train.replicas": 1}
            self.client.log_batch(child.info.run_id, params=[Param(key, str(value)) for key, value in values.items()])
            self.children[seed] = Run(child.info.run_id, values, replicas=False)
        return self.children[seed]

    def log_row(self, row: Row) -> None:
        """The window's values against the global step. A store that cannot be reached now is tried again later."""
        values = {name: getattr(row, column) for column, name in ROW_METRICS.items()}
        self._wait({name: value for name, value in values.items() if value is not None}, row.step)
        if time.monotonic() - self.sent_at > FLUSH_S:
            try:
                self.flush()
            except MlflowException as error:
                print(f"MLflow: {_first_line(error)}; metrics wait for the end", file=sys.stderr)
            self.sent_at = time.monotonic()

    def flush(self) -> None:
        """Send what waits, in batches of the 1,000 that MLflow takes at once."""
        while self.waiting:
            self.client.log_batch(self.id, metrics=self.waiting[:1000])
            del self.waiting[:1000]

    def log_data(self, folder: Path, meta: DatasetMeta) -> None:
        """The data set as an input of the run: its name, its home and DVC's hash as the digest."""
        digest = dvc_hash(folder) or meta.sha256["train"][:32]
        dataset = Dataset(
            name=meta.name,
            digest=digest,
            source_type="http",
            source=json.dumps({"url": meta.source}),
            profile=json.dumps({split: sum(counts) for split, counts in meta.counts.items()}),
        )
        tag = InputTag("mlflow.data.context", "training")
        self.client.log_inputs(self.id, [DatasetInput(dataset, [tag])])
        mlflow.set_tag("dvc.data", digest)

    def log_lineage(self) -> None:
        """Commit, uncommitted changes and DVC's experiment."""
        tags, state = experiment_tags(), git_state()
        if state.commit:
            tags |= {"git.commit": state.commit, "git.dirty": str(bool(state.diff)).lower()}
        if state.problem:
            tags["git.problem"] = state.problem
        if state.diff:
            with tempfile.TemporaryDirectory() as folder:
                patch = Path(folder) / "uncommitted.diff"
                patch.write_bytes(state.diff)
                mlflow.log_artifact(str(patch), "code")
        mlflow.set_tags(tags)

    def log_training(self, model: Path, meta: ModelMeta, reports: Path, histories: Mapping[int, Sequence[Row]]) -> None:
        """What train wrote: the reports, and the model (loaded by `classifier.serving`) with its hash as the mark.

        Of several replicas the run carries the chosen one's curves, and mean, deviation and interval over all.
        """
        if self.replicas:
            for row in histories[meta.seed]:
                self.log_row(row)
            spreads = {name.replace("_", "/", 1): value for name, value in replica_metrics(histories).items()}
            self._wait(spreads, histories[meta.seed][-1].step)
            mlflow.set_tag("replicas.chosen_seed", str(meta.seed))
        self.flush()
        mlflow.log_artifacts(str(reports), "train")
        self._log_model(model, meta)
        mlflow.set_tag(WEIGHTS_TAG, meta.weights_sha256)

    def _log_model(self, model: Path, meta: ModelMeta) -> None:
        images = np.zeros((2, meta.channels, SIZE, SIZE), np.uint8)
        inputs = Schema([TensorSpec(images.dtype, (-1, *images.shape[1:]))])
        outputs = [("predicted", DataType.string), *((name, DataType.double) for name in meta.class_names)]
        with tempfile.TemporaryDirectory() as folder:  # without the other replicas
            served = Path(folder) / "classifier"
            served.mkdir()
            for name in ("weights.safetensors", "meta.json"):
                shutil.copyfile(model / name, served / name)
            mlflow.pyfunc.log_model(
                name="classifier",
                loader_module="classifier.serving",
                data_path=str(served),
                code_paths=[str(Path(__file__).parent)],
                signature=ModelSignature(inputs, Schema([ColSpec(kind, name) for name, kind in outputs])),
                input_example=images,
                pip_requirements=[f"{package}=={version(package)}" for package in SERVING_PACKAGES],
            )

    def log_evaluation(
        self,
        metrics: Mapping[str, float],
        of_replicas: Mapping[int, Mapping[str, float]],
        reports: Path,
        model: Path,
    ) -> None:
        """What evaluate wrote, each replica's test metrics, and DVC's hash of the model, which is known only now."""
        for seed, values in of_replicas.items():
            self.of_seed(seed).log_test(values)
        mlflow.log_artifacts(str(reports), "evaluate")
        self.log_test(metrics)
        mlflow.set_tags({EVALUATED_TAG: "true"} | ({"dvc.model": digest} if (digest := dvc_hash(model)) else {}))

    def log_test(self, metrics: Mapping[str, float]) -> None:
        """Test metrics; those that an evaluation that was killed has already sent are not sent again."""
        known = self.client.get_run(self.id).data.metrics
        named = {f"test/{name}": value for name, value in metrics.items()}
        self._wait({name: value for name, value in named.items() if known.get(name) != value}, 0)
        self.flush()

    def _wait(self, values: Mapping[str, float], step: int) -> None:
        now = round(time.time() * 1000)
        self.waiting += [Metric(name, value, now, step) for name, value in values.items()]


@contextmanager
def training_run(params: Params) -> Iterator[Run]:
    """A new run with all params, lineage, and system metrics while it lasts."""
    experiment = open_store()
    _end_dead_runs(experiment)
    mlflow.set_system_metrics_sampling_interval(SYSTEM_METRICS_S)  # type: ignore[no-untyped-call]
    several = params.train.replicas > 1
    with _active_run("train", params, several, experiment_id=experiment, log_system_metrics=True) as run:
        mlflow.log_params(dict(run.params))
        run.log_lineage()
        yield run


@contextmanager
def evaluation_run(
    params: Params, data: Path, data_meta: DatasetMeta, model: Path, meta: ModelMeta, reports: Path
) -> Iterator[Run]:
    """The run that trained these weights and awaits its evaluation, else one made from params and `reports`."""
    experiment = open_store()
    found = _find_unevaluated(experiment, meta.weights_sha256, params)
    with _active_run("evaluate", params, bool(meta.replicas), experiment_id=experiment, run_id=found) as run:
        if found:
            run.children = _find_children(experiment, run)
        else:
            mlflow.log_params(dict(run.params))
            mlflow.set_tag("train.restored", "true")  # the curves come from history.csv, not from training just now
            run.log_lineage()
            run.log_data(data, data_meta)
            seeds = [int(seed) for seed in meta.replicas]
            histories = read_histories(reports, seeds) or {meta.seed: read_history(reports / "history.csv")}
            for seed, rows in histories.items():
                for row in rows:
                    run.of_seed(seed).log_row(row)
            run.log_training(model, meta, reports, histories)
        yield run


def _find_unevaluated(experiment: str, weights: str, params: Params) -> str | None:
    """The newest run of this pipeline execution: same weights, same params, same DVC experiment, not evaluated."""
    wanted = {key: str(value) for key, value in params.flat().items()}
    name = experiment_tags().get("dvc.exp.name")
    for run in mlflow.MlflowClient().search_runs(
        [experiment], f"tags.`{WEIGHTS_TAG}` = '{weights}'", order_by=["attributes.start_time DESC"]
    ):
        tags = run.data.tags
        if run.data.params == wanted and EVALUATED_TAG not in tags and tags.get("dvc.exp.name") == name:
            return str(run.info.run_id)
    return None


def _find_children(experiment: str, parent: Run) -> dict[int, Run]:
    filter_string = f"tags.`mlflow.parentRunId` = '{parent.id}'"
    runs = parent.client.search_runs([experiment], filter_string, max_results=5000)
    return {int(run.data.tags[SEED_TAG]): Run(run.info.run_id, {}, replicas=False) for run in runs}


def _end_dead_runs(experiment: str) -> None:
    """Mark as FAILED what a process of this machine left RUNNING when it was killed or ran out of memory."""
    client = mlflow.MlflowClient()
    for run in client.search_runs([experiment], "attributes.status = 'RUNNING'", max_results=5000):
        host, _, process = run.data.tags.get(PROCESS_TAG, "").partition(":")
        if host != socket.gethostname() or _is_living(process):
            continue
        children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'")
        for each in (run, *children):
            client.set_tag(each.info.run_id, "error", "its process ended without a word: killed, or out of memory")
            client.set_terminated(each.info.run_id, "FAILED")


def _mark(process: psutil.Process) -> str:
    """A process id comes again; with the process's start it is one of a kind."""
    return f"{process.pid}:{process.create_time():.2f}"


def _is_living(mark: str) -> bool:
    try:
        return _mark(psutil.Process(int(mark.partition(":")[0]))) == mark
    except (psutil.Error, ValueError):
        return False


@contextmanager
def _active_run(stage: str, params: Params, replicas: bool, **arguments: Any) -> Iterator[Run]:
    """Start or resume a run; it ends FINISHED, KILLED (a signal) or FAILED, the last two with the error as a tag."""
    active = mlflow.start_run(run_name=os.environ.get("DVC_EXP_NAME"), **arguments)
    status, run = "FAILED", Run(active.info.run_id, params.flat(), replicas)
    try:
        mlflow.set_tag(PROCESS_TAG, f"{socket.gethostname()}:{_mark(psutil.Process())}")
        yield run
        for each in (*run.children.values(), run):
            each.flush()
        if "error" in active.data.tags:  # of an earlier try
            run.client.delete_tag(run.id, "error")
        status = "FINISHED"
    except BaseException as error:
        status = "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED"
        run.log += traceback.format_exception(error)
        for each in (*run.children.values(), run):
            each.flush()
        mlflow.set_tag("error", f"{type(error).__name__}: {error}"[:5000])
        raise
    finally:
        try:
            if run.log:
                mlflow.log_text("\n".join(run.log) + "\n", f"logs/{stage}.txt")
            for child in run.children.values():
                run.client.set_terminated(child.id, status)
        finally:
            mlflow.end_run(status)


def open_store() -> str:
    """Make sure that the store and the experiment exist, and return the experiment's id.

    MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME take the place of `mlflow.db` in the project's root. OSError when the
    store cannot be reached.
    """
    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    uri, root = store_uri(), project_root()
    mlflow.set_tracking_uri(uri)  # which sets MLFLOW_TRACKING_URI too
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
    try:
        # Processes that start together on a fresh database crash in its migrations; one at a time they do not.
        with FileLock(root / f"{DATABASE}.lock"):
            relocate(root)
            if experiment := mlflow.get_experiment_by_name(name):
                return str(experiment.experiment_id)
            # Without the kind the UI opens on pages for language models.
            tags = {"mlflow.experimentKind": "custom_model_development"}
            # A server knows where its artifacts go; elsewhere they would go to the current folder.
            location = None if uri.startswith("http") else (root / ARTIFACTS).as_uri()
            return str(mlflow.create_experiment(name, artifact_location=location, tags=tags))
    except MlflowException as error:
        raise OSError(
            f"MLflow's store {uri} cannot be used: {_first_line(error)}; "
            "start it, or unset MLFLOW_TRACKING_URI to use mlflow.db in the project's root"
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
