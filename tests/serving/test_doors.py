"""Every door agrees with `predictions.parquet` on the original files of the test images, and with `decode` on any file.

Where PyTorch computes (Python, command line, MLflow) the bits are equal; where onnxruntime does (HTTP, ONNX) classes
are the same and probabilities differ by 1e-5 at most.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pandas as pd
import pytest
import requests
from safetensors.numpy import load_file

from classifier.commands.application import call
from classifier.data.dataset import known_preprocessing
from classifier.data.pixels import BadImageError, TooLargeError, decode
from classifier.device import pick_device
from classifier.networks.inference import probabilities_of
from classifier.networks.model_dir import build, read_model, write_model
from classifier.networks.registry import NetworkSpec
from classifier.serving.bodies import MOST_IMAGES
from classifier.serving.card import same_answer
from classifier.serving.export import card_of, to_onnx
from classifier.serving.files import Answer, Named
from classifier.serving.prediction import Predictor
from classifier.serving.runtime import Model
from classifier.workers import threads
from tests import difficult
from tests.data.test_difficult import REFUSED
from tests.projects import Project
from tests.samples import DIGITS, ROOT
from tests.serving.conftest import png, running

SHARED = ROOT / "../shared/data"
FILES = {  # what a recipe needs -> where it lies in the project
    "mnist": {
        f"mnist/{part}-ubyte.gz": "mirror"
        for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    },
    "cifar10-folder": {"cifar10/cifar10-jpeg-folder.zip": "images"},
    "clothing": {
        "clothing/clothing-folder.zip": "images",
        "weights/mobilenet_v2-imagenet-features.safetensors": "weights",
    },
}

BY_PYTORCH = """
from pathlib import Path
from classifier.arithmetic import use
from classifier.params import load_params
use(load_params(Path("params.yaml")).evaluate.arithmetic)
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
    """The files of the test images, in the order of `predictions.parquet`: the user's, or a PNG of each known image."""
    folder = project.folder / "originals"
    folder.mkdir()
    paths = pd.read_parquet(project.folder / "reports/evaluate/predictions.parquet")["path"]
    if paths.notna().all():
        (archive,) = (ZipFile(path) for path in (project.folder / "images").glob("*.zip"))
        names = {name.partition("/")[2]: name for name in archive.namelist()} | {n: n for n in archive.namelist()}
        contents = ((Path(path).suffix, archive.read(names[path])) for path in paths[:count])
    else:
        images = load_file(project.folder / "data/normalized/test.safetensors")["images"][:count]
        contents = ((".png", png(image)) for image in images)
    for number, (suffix, content) in enumerate(contents):
        (folder / f"{number:05d}{suffix}").write_bytes(content)
    return sorted(folder.iterdir())


def stored(project: Project, count: int | None) -> np.ndarray:
    table = pd.read_parquet(project.folder / "reports/evaluate/predictions.parquet").filter(regex=r"^p_\d")
    return table.to_numpy(np.float32)[:count]


def by_http(address: str, files: list[Path], classes: list[str]) -> np.ndarray:
    found = []
    with requests.Session() as session:
        for start in range(0, len(files), MOST_IMAGES):
            form = [("image", (file.name, file.read_bytes())) for file in files[start : start + MOST_IMAGES]]
            answer = session.post(f"{address}/predict?top={len(classes)}", files=form, timeout=60)
            assert answer.status_code == 200, answer.text
            found += [in_order(prediction["top"], classes) for prediction in answer.json()["predictions"]]
    return np.array(found, np.float32)


def in_order(top: list[dict[str, Any]], classes: list[str]) -> list[float]:
    """The probabilities of an answer, most probable first, in the order of the classes."""
    of = {each["class"]: each["probability"] for each in top}
    return [of[name] for name in classes]


def all_doors_agree(project: Project, count: int | None) -> None:
    files, expected = write_originals(project, count), stored(project, count)
    assert len(files) == len(expected)
    environment = {"PYTHONPATH": str(project.folder)}
    project.run("python", "-c", BY_PYTORCH, env=environment)
    project.run("classifier", "predict", "originals", "--csv", "cli.csv", env=environment)
    doors = load_file(project.folder / "doors.safetensors")
    table = pd.read_csv(project.folder / "cli.csv")
    model = Model.read(project.folder / "model.onnx")
    doors["cli"] = table[model.card.class_names].to_numpy(np.float32)
    assert table["file"].tolist() == [f"originals/{file.name}" for file in files]
    for door, found in doors.items():
        assert np.array_equal(found, expected), door
    images = load_file(project.folder / "data/normalized/test.safetensors")["images"][:count]
    onnx = np.stack([model.probabilities(image) for image in images])
    assert same_answer(onnx, expected)
    with running(project.folder / "model.onnx") as address:
        http = by_http(address, files, model.card.class_names)
    assert np.array_equal(http, onnx)


def test_the_doors_agree(served, tmp_path):
    all_doors_agree(served.copy(tmp_path / "project"), 60)


@pytest.mark.slow
@pytest.mark.mnist
@pytest.mark.parametrize(("recipe", "count"), [("mnist", 10_000), ("cifar10-folder", 10_000), ("clothing", 372)])
def test_the_doors_agree_on_a_whole_set(recipe, count, tmp_path):
    """With a network that was trained for an epoch; photos at 64 pixels."""
    if not all((SHARED / name).is_file() for name in FILES[recipe]):
        pytest.skip(f"no {', '.join(FILES[recipe])} in {SHARED}")
    project = Project(tmp_path / "project")
    for name, place in FILES[recipe].items():
        (project.folder / place).mkdir(exist_ok=True)
        shutil.copy(SHARED / name, project.folder / place)
    environment = {"DATA_MIRROR": str(project.folder / "mirror"), "PYTHONPATH": str(project.folder)}
    project.run("classifier", "recipe", recipe, env=environment)
    lines = (project.folder / "params.yaml").read_text()
    for name, value in (("epochs", "1"), ("batch_size", "64"), *[("image_size", "64")] * (recipe == "clothing")):
        lines = re.sub(rf"^  {name}: \d+", f"  {name}: {value}", lines, count=1, flags=re.MULTILINE)
    (project.folder / "params.yaml").write_text(lines)
    assert "evaluate" in project.repro(env=environment)
    project.run("classifier", "export", "model.onnx", env=environment)
    all_doors_agree(project, None)
    assert len(list((project.folder / "originals").iterdir())) == count


@pytest.fixture(params=[1, 3], ids=["gray", "colour"])
def untrained(request: pytest.FixtureRequest, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model directory of a LeNet-5 in an own project, with its export, `model.onnx`."""
    monkeypatch.setattr("classifier.arithmetic.use", lambda arithmetic: None)  # it stays that of the tests
    shutil.copy(ROOT / "params.yaml", workspace)
    channels, folder = request.param, workspace / "models/classifier"
    spec = NetworkSpec(
        architecture="lenet5",
        pretrained=None,
        dataset="photos",
        channels=channels,
        class_names=DIGITS,
        preprocessing=known_preprocessing(channels),
        mean=[0.5] * channels,
        std=[0.25] * channels,
    )
    meta = write_model(folder, {0: build(spec)}, 0, spec)
    classifier = read_model(folder)
    with threads(1):
        (workspace / "model.onnx").write_bytes(to_onnx(classifier, card_of(meta, classifier, None)))
    return folder


def test_every_kind_of_file_gets_the_pixels_or_the_refusal_of_decode_at_every_door(untrained, capsys):
    predictor, onnx = Predictor(untrained, pick_device("auto", "device")), Model.read(Path("model.onnx"))
    contents = dict(difficult.files(len(difficult.KINDS)))
    images, refusals = {}, {}
    Path("files").mkdir()
    for name, content in contents.items():
        Path("files", name).write_bytes(content)
        try:
            images[name] = decode(content, predictor.meta.preprocessing)
        except BadImageError as error:
            refusals[name] = error
    assert {name[5:] for name in refusals} == REFUSED

    with threads(1):
        probabilities = probabilities_of(predictor.classifier, np.stack(list(images.values()))).tolist()
    expected = dict(zip(images, probabilities, strict=True)) | {name: str(error) for name, error in refusals.items()}
    answers = predictor.answers([Named(name, Path("files", name)) for name in contents])
    in_python = {
        each.file.name: each.probabilities.tolist() if isinstance(each, Answer) else each.reason for each in answers
    }
    assert in_python == expected
    with pytest.raises(SystemExit):
        call(["predict", "files", "--json", "--top", "10"])
    told = json.loads(capsys.readouterr().out)
    by_command = {each["file"]: in_order(each["top"], DIGITS) for each in told["predictions"]}
    by_command |= {each["file"]: each["reason"] for each in told["unreadable"]}
    assert by_command == {f"files/{name}": outcome for name, outcome in expected.items()}

    with running(Path("model.onnx")) as address, requests.Session() as session:
        for name, content in contents.items():
            of_body = {"data": content, "headers": {"Content-Type": "image/png"}}
            predicted = session.post(f"{address}/predict?top=10", timeout=60, **of_body)
            encoded = {"inputs": [base64.b64encode(content).decode()]}
            invoked = session.post(f"{address}/invocations", timeout=60, json=encoded)
            if name in images:
                expected[name] = onnx.probabilities(images[name]).tolist()
                assert in_order(predicted.json()["predictions"][0]["top"], DIGITS) == expected[name], name
                assert [invoked.json()["predictions"][0][digit] for digit in DIGITS] == expected[name], name
            else:
                status = 413 if isinstance(refusals[name], TooLargeError) else 422
                assert (predicted.status_code, predicted.json()) == (status, {"error": f"the body: {refusals[name]}"})
                assert (invoked.status_code, invoked.json()["message"]) == (400, expected[name])
