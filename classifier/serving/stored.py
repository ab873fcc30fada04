"""The part of serving that uses MLflow: models of runs and of the registry, and the run of a model directory."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow
from mlflow.entities import LoggedModel, Run
from mlflow.exceptions import MlflowException

from classifier.errors import UserError
from classifier.project.files import replacing, write_atomic
from classifier.project.lineage import project_root
from classifier.recording.tags import EVALUATED_TAG, WEIGHTS_TAG, upgraded_tags
from classifier.runs.promotion import LOGGED, model_of
from classifier.runs.reading import find_run, no_runs
from classifier.serving.references import DIRECTORY, FORMS, LATEST
from classifier.tracking.connection import open_store, runs_with_tag

ONNX = "model.onnx"  # among the files of a logged model


@dataclass(frozen=True)
class Source:
    """A model: its directory, and its run and logged model in MLflow, if any."""

    folder: Path
    run: Run | None
    model: LoggedModel | None


def find(reference: str) -> Source:
    """Find the model of a reference (`references.FORMS`). Raises UserError if there is none."""
    experiment = open_store()
    if (folder := Path(reference)).is_dir():
        from classifier.networks.model_dir import read_model_meta  # slow: torch

        run = run_of_weights(experiment, read_model_meta(folder).weights_sha256)
        return Source(folder, run, model_of(run) if run else None)
    model = logged_model(reference, experiment)
    run = mlflow.get_run(model.source_run_id) if model.source_run_id else None
    return Source(downloaded(model), run, model)


def logged_model(reference: str, experiment: str) -> LoggedModel:
    """The logged model of a run or of a registered version."""
    if not reference.startswith("models:/"):
        if "/" in reference:
            raise UserError(f"{reference} is not a model directory: dvc repro trains a model into {DIRECTORY}")
        run = newest_run(experiment) if reference == LATEST else find_run(reference)
        if (found := model_of(run)) is None:
            raise UserError(f"run {run.info.run_id} has no model in MLflow, or it was deleted there")
        return found
    client, name = mlflow.MlflowClient(), reference.removeprefix("models:/")
    try:
        if name.startswith("m-"):
            return client.get_logged_model(name)
        if "@" in name:
            version = client.get_model_version_by_alias(*name.split("@", 1))
        else:
            version = client.get_model_version(*name.split("/", 1))
        model_id = (version.source or "").removeprefix("models:/")  # MLflow's stores do not keep the version's model_id
        if not model_id.startswith("m-"):
            raise UserError(f"{reference} was not registered by classifier promote")
        return client.get_logged_model(model_id)
    except (MlflowException, TypeError) as error:
        if name.endswith("@champion") and "not found" in str(error):
            raise UserError(f"there is no {reference} yet: classifier promote latest") from None
        reason = "" if isinstance(error, TypeError) else f" ({str(error).splitlines()[0][:200]})"
        raise UserError(f"{reference} is not a model{reason}: allowed is {FORMS}") from None


def newest_run(experiment: str) -> Run:
    """The newest evaluated run. Raises UserError if there is none."""
    if found := runs_with_tag(experiment, EVALUATED_TAG, "true"):
        return found[0]
    raise UserError(no_runs(experiment))


def run_of_weights(experiment: str, weights: str) -> Run | None:
    """The newest evaluated run with these weights."""
    found = runs_with_tag(experiment, WEIGHTS_TAG, weights)
    return next((run for run in found if upgraded_tags(run.data.tags).get(EVALUATED_TAG) == "true"), None)


def downloaded(model: LoggedModel) -> Path:
    """Download the model directory of a logged model to `.pipeline/models/`, once: a logged model never changes."""
    folder = project_root() / ".pipeline/models" / model.model_id
    if not (folder / "meta.json").is_file():
        with TemporaryDirectory() as temporary, replacing(folder) as new:
            files = Path(mlflow.artifacts.download_artifacts(f"{model.artifact_location}/{LOGGED}", dst_path=temporary))
            for name in ("weights.safetensors", "meta.json"):
                write_atomic(new / name, (files / name).read_bytes())
    return folder


def attached(model: LoggedModel) -> bytes | None:
    """The content of a logged model's ONNX file; None if it has none."""
    with TemporaryDirectory() as folder, suppress(MlflowException, OSError):
        uri = f"{model.artifact_location}/{ONNX}"
        return Path(mlflow.artifacts.download_artifacts(uri, dst_path=folder)).read_bytes()
    return None


def attach(model: LoggedModel, content: bytes) -> None:
    """Upload the ONNX file to a logged model, so that its run and its registered versions show it."""
    with TemporaryDirectory() as folder:
        (Path(folder) / ONNX).write_bytes(content)
        mlflow.MlflowClient().log_model_artifact(model.model_id, f"{folder}/{ONNX}")
