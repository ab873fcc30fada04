"""A run's model in MLflow: the model directory, with the code that loads it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow
import numpy as np
from mlflow.entities import LoggedModelOutput, LoggedModelStatus
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, Schema

from classifier.data.dataset import SIZE
from classifier.recording.journal import Event

NAME = "classifier"  # of the logged model
PACKAGES = ["numpy", "pandas", "pillow", "pydantic", "safetensors", "torch"]


def log_model(
    client: mlflow.MlflowClient, experiment: str, run_id: str, event: Event, folder: Path, params: Mapping[str, str]
) -> None:
    """Log the model of the event `model` of the journal in `folder`, once.

    An interrupted upload is completed, so that the run does not list two models.
    """
    found = list(client.search_logged_models([experiment], f"source_run_id = '{run_id}'"))
    model = found[0] if found else client.create_logged_model(experiment, NAME, run_id, params=dict(params))
    if model.status == LoggedModelStatus.READY:
        return
    files = folder / "files"
    size = event.get("size", SIZE)  # pixels; missing in journals of earlier versions
    images = np.zeros((2, event["channels"], size, size), np.uint8)
    code = [event["code"]] if isinstance(event["code"], str) else event["code"]  # one path in earlier versions
    columns = [("predicted", DataType.string), *((name, DataType.double) for name in event["class_names"])]
    with TemporaryDirectory(dir=folder) as place:  # removed with the journal if this process is killed
        mlflow.pyfunc.save_model(
            f"{place}/model",
            mlflow_model=Model(model.artifact_location, run_id, model_id=model.model_id),
            loader_module="classifier.serving",
            data_path=str(files / event["path"]),
            code_paths=[str(files / path) for path in code],
            # No input schema: MLflow would cast JSON to its type before `predict` can refuse it.
            signature=ModelSignature(outputs=Schema([ColSpec(kind, name) for name, kind in columns])),
            input_example=images,
            pip_requirements=[f"{name}=={version(name)}" for name in (*PACKAGES, *event.get("packages", ()))],
        )
        client.log_model_artifacts(model.model_id, f"{place}/model")
    outputs = client.get_run(run_id).outputs
    if not (outputs and outputs.model_outputs):
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
