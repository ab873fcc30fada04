"""Every door agrees with `predictions.parquet` on the original files of the test images.

Where PyTorch computes (Python, command line, MLflow) the bits are equal; where onnxruntime does (HTTP, ONNX) classes
are the same and probabilities differ by 1e-5 at most.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import requests
from safetensors.numpy import load_file

from classifier.serving.bodies import MOST_IMAGES
from classifier.serving.card import same_answer
from classifier.serving.runtime import Model
from tests.projects import Project
from tests.serving.conftest import png, running

BY_PYTORCH = """
from classifier.arithmetic import use
use("portable")
from pathlib import Path
import sys
import mlflow, numpy as np, torch
from safetensors.numpy import save_file
from classifier.serving.files import below, typed
from classifier.serving.prediction import Predictor
from classifier.tracking.delivery import open_store

files = list(below(typed("originals")))
answers = Predictor(Path("models/classifier"), torch.device("cpu")).answers(files)
python = np.stack([answer.probabilities for answer in answers])
(model,) = mlflow.search_logged_models([open_store()], output_format="list")
loaded = mlflow.pyfunc.load_model(f"models:/{model.model_id}")
table = loaded.predict([file.path.read_bytes() for file in files])
by_mlflow = table.drop(columns="predicted").to_numpy(np.float32, copy=True)
save_file({"python": python, "mlflow": np.ascontiguousarray(by_mlflow)}, "doors.safetensors")
"""


def write_originals(project: Project, count: int | None) -> list[Path]:
    folder = project.folder / "originals"
    folder.mkdir()
    images = load_file(project.folder / "data/normalized/test.safetensors")["images"][:count]
    for number, image in enumerate(images):
        (folder / f"{number:05d}.png").write_bytes(png(image))
    return sorted(folder.iterdir())


def stored(project: Project, count: int | None) -> np.ndarray:
    table = pd.read_parquet(project.folder / "reports/evaluate/predictions.parquet").filter(regex=r"^p_\d")
    return table.to_numpy(np.float32)[:count]


def by_http(address: str, files: list[Path]) -> np.ndarray:
    found = []
    with requests.Session() as session:
        for start in range(0, len(files), MOST_IMAGES):
            form = [("image", (file.name, file.read_bytes())) for file in files[start : start + MOST_IMAGES]]
            answer = session.post(f"{address}/predict?top=10", files=form, timeout=60)
            assert answer.status_code == 200, answer.text
            for prediction in answer.json()["predictions"]:
                of = {each["class"]: each["probability"] for each in prediction["top"]}
                found.append([of[name] for name in sorted(of)])
    return np.array(found, np.float32)


def all_doors_agree(project: Project, count: int | None) -> None:
    files, expected = write_originals(project, count), stored(project, count)
    assert len(files) == len(expected)
    environment = {"PYTHONPATH": str(project.folder)}
    project.run("python", "-c", BY_PYTORCH, env=environment)
    project.run("classifier", "predict", "originals", "--csv", "cli.csv", env=environment)
    doors = load_file(project.folder / "doors.safetensors")
    table = pd.read_csv(project.folder / "cli.csv")
    doors["cli"] = table[list("0123456789")].to_numpy(np.float32)
    assert table["file"].tolist() == [f"originals/{file.name}" for file in files]
    for door, found in doors.items():
        assert np.array_equal(found, expected), door
    model = Model.read(project.folder / "model.onnx")
    images = load_file(project.folder / "data/normalized/test.safetensors")["images"][:count]
    onnx = np.stack([model.probabilities(image) for image in images])
    assert same_answer(onnx, expected)
    with running(project.folder / "model.onnx") as address:
        http = by_http(address, files)
    assert np.array_equal(http, onnx)


def test_the_doors_agree(served, tmp_path):
    all_doors_agree(served.copy(tmp_path / "project"), 60)


@pytest.mark.slow
@pytest.mark.mnist
def test_the_doors_agree_on_mnists_10_000_test_images(reproduced, mnist_folder, tmp_path):
    project = reproduced.copy(tmp_path / "project")
    environment = {"DATA_MIRROR": str(mnist_folder), "PYTHONPATH": str(project.folder), "MLFLOW_TRACKING_URI": ""}
    project.run("classifier", "recipe", "mnist", env=environment)
    params = (project.folder / "params.yaml").read_text()
    epochs = next(line for line in params.splitlines() if line.strip().startswith("epochs:"))
    project.edit_params(epochs, "  epochs: 1")
    for name in ("mlflow.db", "mlflow.db.home"):
        (project.folder / name).unlink(missing_ok=True)
    assert "evaluate" in project.repro(env=environment)
    project.run("classifier", "export", "model.onnx", env=environment)
    all_doors_agree(project, None)
    assert len(list((project.folder / "originals").iterdir())) == 10_000
