"""MLflow's side of the pipeline: one run per execution, begun by train and completed by evaluate.

The only module that imports mlflow. DVC's outputs know nothing of runs: evaluate finds its run by the hash of the
weights, and makes one from params and history when there is none (weights from the cache, a deleted store).
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from filelock import FileLock
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param
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
SYSTEM_METRICS_S = 2  # seconds between two samples of processor and memory use
FLUSH_S = 5.0  # seconds between two sendings of metrics, so that curves can be watched
SERVING_PACKAGES = ["numpy", "pandas", "pydantic", "ruamel.yaml", "safetensors", "torch"]
ROW_METRICS = {  # history.csv's column -> MLflow's name
    "running_loss": "train/running_loss",
    "learning_rate": "train/learning_rate",
    "train_loss": "train/loss",
    "validation_loss": "validation/loss",
    "validation_accuracy": "validation/accuracy",
}


class Run:
    """The active MLflow run. Metrics wait in memory and travel in batches: one call each would cost 4 to 50 ms."""

    def __init__(self, run_id: str) -> None:
        self.id = run_id
        self.client = mlflow.MlflowClient()
        self.waiting: list[Metric] = []
        self.sent_at = time.monotonic()
        self.replica_params: dict[str, object] = {}  # where several seeds are trained
        self.children: dict[int, Run] = {}  # their runs, by seed

    def of_seed(self, seed: int) -> Run:
        """The nested run of one replica, or this run where there is a single seed."""
        if not self.replica_params:
            return self
        if seed not in self.children:
            info = self.client.get_run(self.id).info
            tags = {"mlflow.parentRunId": self.id, "mlflow.user": info.user_id}
            child = self.client.create_run(info.experiment_id, tags=tags, run_name=f"{info.run_name}, seed {seed}")
            self.children[seed] = Run(child.info.run_id)
            values = self.replica_params | {"train.seed": seed, "train.replicas": 1}
            self.client.log_batch(child.info.run_id, params=[Param(key, str(value)) for key, value in values.items()])
        return self.children[seed]

    def log_row(self, row: Row) -> None:
        """The window's values against the global step."""
        now = round(time.time() * 1000)
        values = {name: getattr(row, column) for column, name in ROW_METRICS.items()}
        self.waiting += [Metric(name, value, now, row.step) for name, value in values.items() if value is not None]
        if time.monotonic() - self.sent_at > FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Send what waits, in batches of the 1,000 that MLflow takes at once."""
        while self.waiting:
            self.client.log_batch(self.id, metrics=self.waiting[:1000])
            del self.waiting[:1000]
        self.sent_at = time.monotonic()

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
        tags = experiment_tags()
        if state := git_state():
            tags |= {"git.commit": state.commit, "git.dirty": str(state.dirty).lower()}
            if state.dirty:
                with tempfile.TemporaryDirectory() as folder:
                    patch = Path(folder) / "uncommitted.diff"
                    patch.write_bytes(state.diff)
                    mlflow.log_artifact(str(patch), "code")
        if tags:
            mlflow.set_tags(tags)

    def log_console(self, text: str) -> None:
        """What train printed."""
        mlflow.log_text(text, "logs/train.txt")

    def log_training(self, model: Path, meta: ModelMeta, reports: Path, histories: Mapping[int, Sequence[Row]]) -> None:
        """What train wrote: the reports, and the model (loaded by `classifier.serving`) with its hash as the mark.

        Of several replicas the run carries the chosen one's curves, and mean, deviation and interval over all.
        """
        if self.replica_params:
            for row in histories[meta.seed]:
                self.log_row(row)
            spreads = {name.replace("_", "/", 1): value for name, value in replica_metrics(histories).items()}
            self._log_values(spreads, histories[meta.seed][-1].step)
            mlflow.set_tag("replicas.chosen_seed", str(meta.seed))
        self.flush()
        mlflow.log_artifacts(str(reports), "train")
        images = np.zeros((2, meta.channels, SIZE, SIZE), np.uint8)
        inputs = Schema([TensorSpec(images.dtype, (-1, *images.shape[1:]))])
        outputs = [("predicted", DataType.string), *((name, DataType.double) for name in meta.class_names)]
        mlflow.pyfunc.log_model(
            name="classifier",
            loader_module="classifier.serving",
            data_path=str(model),
            code_paths=[str(Path(__file__).parent)],
            signature=ModelSignature(inputs, Schema([ColSpec(kind, name) for name, kind in outputs])),
            input_example=images,
            pip_requirements=[f"{package}=={version(package)}" for package in SERVING_PACKAGES],
        )
        mlflow.set_tag(WEIGHTS_TAG, meta.weights_sha256)

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

    def log_text(self, text: str, name: str) -> None:
        mlflow.log_text(text, name)

    def log_test(self, metrics: Mapping[str, float]) -> None:
        """Test metrics; those that an evaluation that was killed has already sent are left as they are."""
        known = self.client.get_run(self.id).data.metrics
        values = {f"test/{name}": value for name, value in metrics.items() if f"test/{name}" not in known}
        self._log_values(values, 0)
        self.flush()

    def _log_values(self, values: Mapping[str, float], step: int) -> None:
        now = round(time.time() * 1000)
        self.waiting += [Metric(name, value, now, step) for name, value in values.items()]


@contextmanager
def training_run(params: Params) -> Iterator[Run]:
    """A new run with the params of all stages up to train, lineage, and system metrics while it lasts."""
    experiment = open_store()
    mlflow.set_system_metrics_sampling_interval(SYSTEM_METRICS_S)  # type: ignore[no-untyped-call]
    with _active_run(experiment_id=experiment, log_system_metrics=True) as run:
        mlflow.log_params({key: value for key, value in params.flat().items() if not key.startswith("evaluate.")})
        run.log_lineage()
        run.replica_params = _replica_params(params)
        yield run


@contextmanager
def evaluation_run(
    params: Params, data: Path, data_meta: DatasetMeta, model: Path, meta: ModelMeta, reports: Path
) -> Iterator[Run]:
    """The run that trained these weights and awaits its evaluation, else one made from params and `reports`."""
    experiment = open_store()
    wanted = {key: str(value) for key, value in params.flat().items()}
    found = _find_unevaluated(experiment, meta.weights_sha256, wanted)
    with _active_run(experiment_id=experiment, run_id=found) as run:
        run.replica_params = _replica_params(params)
        if found:
            run.children = _find_children(experiment, found)
        else:
            mlflow.log_params({key: value for key, value in wanted.items() if not key.startswith("evaluate.")})
            mlflow.set_tag("train.restored", "true")  # the curves come from history.csv, not from training just now
            run.log_lineage()
            run.log_data(data, data_meta)
            seeds = [int(seed) for seed in meta.replicas]
            histories = read_histories(reports, seeds) or {meta.seed: read_history(reports / "history.csv")}
            for seed, rows in histories.items():
                for row in rows:
                    run.of_seed(seed).log_row(row)
            run.log_training(model, meta, reports, histories)
        mlflow.log_params({key: value for key, value in wanted.items() if key.startswith("evaluate.")})
        yield run


def _find_unevaluated(experiment: str, weights: str, params: Mapping[str, str]) -> str | None:
    """The newest run of this pipeline execution: same weights, same params, same DVC experiment, not evaluated."""
    runs = mlflow.MlflowClient().search_runs(
        [experiment], f"tags.`{WEIGHTS_TAG}` = '{weights}'", order_by=["attributes.start_time DESC"]
    )
    name = experiment_tags().get("dvc.exp.name")
    for run in runs:
        same_params = all(params.get(key) == value for key, value in run.data.params.items())
        if same_params and EVALUATED_TAG not in run.data.tags and run.data.tags.get("dvc.exp.name") == name:
            return str(run.info.run_id)
    return None


def _find_children(experiment: str, parent: str) -> dict[int, Run]:
    runs = mlflow.MlflowClient().search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    return {int(run.data.params["train.seed"]): Run(run.info.run_id) for run in runs}


def _replica_params(params: Params) -> dict[str, object]:
    """What each replica's run has as params; empty where a single model is trained."""
    if params.train.replicas == 1:
        return {}
    return {key: value for key, value in params.flat().items() if not key.startswith("evaluate.")}


@contextmanager
def _active_run(**arguments: Any) -> Iterator[Run]:
    """Start or resume a run; it ends FINISHED, KILLED (a signal) or FAILED with the error as a tag."""
    run = Run(mlflow.start_run(run_name=os.environ.get("DVC_EXP_NAME"), **arguments).info.run_id)
    status = "FINISHED"
    try:
        yield run
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    except BaseException as error:
        status = "FAILED"
        mlflow.set_tag("error", f"{type(error).__name__}: {error}"[:5000])
        raise
    finally:
        for child in run.children.values():
            child.flush()
            run.client.set_terminated(child.id, status)
        run.flush()
        mlflow.end_run(status)


def open_store() -> str:
    """Make sure that the store and the experiment exist, and return the experiment's id.

    MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME take the place of `mlflow.db` in the project's root.
    """
    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
    root = project_root()
    database = root / DATABASE
    uri = store_uri()
    mlflow.set_tracking_uri(uri)  # which sets MLFLOW_TRACKING_URI too
    if uri != f"sqlite:///{database}":
        return str(mlflow.set_experiment(name).experiment_id)
    # Processes that start together on a fresh database crash in its migrations; one at a time they do not.
    with FileLock(root / f"{DATABASE}.lock"):
        if database.exists():
            relocate(database, root / ARTIFACTS)
        if experiment := mlflow.get_experiment_by_name(name):
            return str(experiment.experiment_id)
        # Without the kind the UI opens on pages for language models.
        kind = {"mlflow.experimentKind": "custom_model_development"}
        return str(mlflow.create_experiment(name, artifact_location=(root / ARTIFACTS).as_uri(), tags=kind))
