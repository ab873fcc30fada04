"""Networks of other kinds go through the whole pipeline on a small folder of images."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from safetensors.torch import save_file
from torchvision import models

from tests.photos import image, write_files
from tests.projects import OUTPUTS, Project, sha256_of

NETWORKS = [  # each of another family of torchvision
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "mnasnet0_5", "mobilenet_v3_small"),
    *("regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t", "vit_b_32"),
]


def set_params(project: Project, **values: object) -> None:
    path = project.folder / "params.yaml"
    tree = YAML(typ="safe").load(path)
    for key, value in values.items():
        section, _, name = key.partition("__")
        tree[section][name] = value
    path.write_text(json.dumps(tree))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project of 24 photos of two classes, of which a step takes five."""
    project = Project(tmp_path_factory.mktemp("photos"))
    files = {
        f"{label}/{n}.png": image(100 * n + len(label), size=(70, 64)) for label in ("a", "bee") for n in range(12)
    }
    write_files(project.folder / "images", files)
    normalize = {"normalize__image_size": 64, "normalize__validation_fraction": 0.2}
    train = {"train__epochs": 1, "train__batch_size": 5, "train__learning_rate": 1e-4, "train__log_every": 1}
    set_params(project, download__dataset="folder", **normalize, **train)
    project.commit("photos")
    return project


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_each_family_is_trained_evaluated_and_recorded(photos: Project, network: str):
    set_params(photos, train__network=network)
    assert photos.repro()[-3:] == ["pretrained", "train", "evaluate"]
    for folder in ("models/classifier", "reports/train"):
        assert {path.name for path in (photos.folder / folder).iterdir()} == OUTPUTS[folder]
    meta = json.loads((photos.folder / "models/classifier/meta.json").read_text())
    assert (meta["architecture"], meta["class_names"]) == (network, ["a", "bee"])
    costs = json.loads((photos.folder / "reports/train/summary.json").read_text())
    built = models.get_model(network, num_classes=2, **({"image_size": 64} if network == "vit_b_32" else {}))
    assert costs["parameters"] == sum(parameter.numel() for parameter in built.parameters())
    assert costs["multiply_adds"] > 10**6


PREDICTION = """
import sys, json, numpy as np, mlflow
model = mlflow.pyfunc.load_model(sys.argv[1])
table = model.predict(np.zeros((2, 3, 64, 64), np.uint8))
import networks.example
print(json.dumps([list(table.columns), networks.example.__file__]))
"""


@pytest.mark.slow
def test_a_network_of_ones_own_is_trained_from_its_file_and_loaded_elsewhere(photos: Project, tmp_path: Path):
    """MLflow stores its code with the model; DVC and checkpoints notice when it changes."""
    set_params(photos, train__network="example:small", train__pretrained=None)
    photos.repro()
    first = sha256_of(photos.folder / "models/classifier/weights.safetensors")
    newest = max((photos.folder / "mlartifacts/models").glob("m-*/artifacts"), key=lambda path: path.stat().st_mtime)
    done = subprocess.run(
        [sys.executable, "-c", PREDICTION, str(newest)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    columns, code = json.loads(done.stdout.splitlines()[-1])
    assert columns == ["predicted", "a", "bee"]
    assert Path(code).is_relative_to(newest)
    path = photos.folder / "networks/example.py"
    text = path.read_text()
    path.write_text(text.replace("nn.Dropout(0.1)", "nn.Dropout(0.5)"))
    assert photos.repro() == ["train", "evaluate"]
    assert sha256_of(photos.folder / "models/classifier/weights.safetensors") != first
    path.write_text(text)


@pytest.mark.slow
def test_pretrained_weights_of_a_file_that_dvc_watches(photos: Project):
    weights = photos.folder / "weights/mine.safetensors"
    save_file(models.mobilenet_v2(num_classes=5).state_dict(), weights)
    set_params(photos, train__network="mobilenet_v2", train__pretrained="file", train__freeze=1)
    set_params(photos, train__pretrained_file="weights/mine.safetensors")
    photos.repro()
    meta = json.loads((photos.folder / "models/classifier/meta.json").read_text())
    assert meta["pretrained"] == f"mine.safetensors, SHA-256 {sha256_of(weights)}"
    assert meta["mean"] == [0.485, 0.456, 0.406]
    save_file(models.mobilenet_v2(num_classes=6).state_dict(), weights)
    assert photos.repro() == ["pretrained", "train", "evaluate"]
    assert photos.repro() == []
    set_params(photos, train__pretrained=None, train__freeze=0, train__pretrained_file="weights")
