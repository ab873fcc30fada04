"""The model directory, `models/classifier/`: all that evaluation and serving need, and no pickle.

- `weights.safetensors`: the network's parameters, float32.
- `meta.json`: `ModelMeta`.
- `replicas/seed-<seed>.safetensors`: the weights of every replica, where several were trained.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save

from classifier.dataset import DatasetMeta
from classifier.files import sha256, write_atomic, write_json
from classifier.model import Classifier, LeNet5


class ModelMeta(BaseModel):
    """What meta.json holds; mean and std per channel, on pixels scaled to 0..1."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    architecture: str
    channels: int = Field(ge=1, le=64)
    class_names: list[str] = Field(min_length=2, max_length=10_000)
    mean: list[float]
    std: list[float]
    dataset: str
    seed: int  # of these weights
    replicas: dict[str, str]  # seed -> SHA-256 of every replica's weights; these are the median one on validation
    weights_sha256: str


def build(meta: DatasetMeta | ModelMeta, seed: int = 0) -> Classifier:
    """A new classifier for this data: PyTorch's own initialization, a function of `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = LeNet5(meta.channels, len(meta.class_names))
    return Classifier(network, meta.mean, meta.std)


def write_model(folder: Path, replicas: Mapping[int, Classifier], chosen: int, data: DatasetMeta) -> ModelMeta:
    """Write the classifier of the seed `chosen` and meta.json, and all `replicas` where there are several.

    The same classifiers give the same bytes.
    """
    weights = {seed: _bytes_of(classifier) for seed, classifier in replicas.items()}
    several = weights if len(weights) > 1 else {}
    meta = ModelMeta(
        architecture="lenet5",
        channels=data.channels,
        class_names=data.class_names,
        mean=data.mean,
        std=data.std,
        dataset=data.name,
        seed=chosen,
        replicas={str(seed): sha256(content) for seed, content in several.items()},
        weights_sha256=sha256(weights[chosen]),
    )
    shutil.rmtree(folder / "replicas", ignore_errors=True)  # of an earlier training
    write_atomic(folder / "weights.safetensors", weights[chosen])
    for seed, content in several.items():
        write_atomic(_replica(folder, seed), content)
    write_json(folder / "meta.json", meta.model_dump())
    return meta


def _replica(folder: Path, seed: int | str) -> Path:
    return folder / "replicas" / f"seed-{seed}.safetensors"


def _bytes_of(classifier: Classifier) -> bytes:
    return save({name: value.detach().cpu().contiguous() for name, value in classifier.network.state_dict().items()})


def read_model_meta(folder: Path) -> ModelMeta:
    """ValueError when meta.json is not what write_model wrote, FileNotFoundError when it is missing."""
    path = folder / "meta.json"
    try:
        return ModelMeta.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist: run dvc repro train") from None
    except ValidationError as error:
        raise ValueError(f"{path} is damaged ({error.error_count()} problems): run dvc repro -f train") from None


def read_model(folder: Path) -> Classifier:
    """The classifier in evaluation mode, after hash, names, shapes and finiteness of its weights were verified."""
    meta = read_model_meta(folder)
    return _read_weights(folder / "weights.safetensors", meta.weights_sha256, folder, meta)


def read_replicas(folder: Path) -> dict[int, Classifier]:
    """Every replica by its seed, verified as `read_model` does; empty when a single model was trained."""
    meta = read_model_meta(folder)
    return {
        int(seed): _read_weights(_replica(folder, seed), known, folder, meta) for seed, known in meta.replicas.items()
    }


def _read_weights(path: Path, known: str, folder: Path, meta: ModelMeta) -> Classifier:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist: run dvc repro train") from None
    if (found := sha256(content)) != known:
        raise ValueError(f"{path} has SHA-256 {found}, meta.json says {known}: run dvc repro -f train")
    if meta.architecture != "lenet5":
        raise ValueError(f"{folder / 'meta.json'} names the architecture {meta.architecture!r}: allowed is 'lenet5'")
    if not len(meta.mean) == len(meta.std) == meta.channels:
        raise ValueError(f"{folder / 'meta.json'} has {len(meta.mean)} means for {meta.channels} channels")
    classifier = build(meta)
    try:
        state = load(content)
        classifier.network.load_state_dict(state)
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{path} does not hold LeNet-5's weights: {' '.join(str(error).split())}") from None
    if broken := [name for name, value in state.items() if not value.isfinite().all()]:
        raise ValueError(f"{path} holds NaN or Inf in {', '.join(broken)}: run dvc repro -f train")
    return classifier.eval()
