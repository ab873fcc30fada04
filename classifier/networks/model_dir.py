"""The model directory, `models/classifier/`: everything that evaluation and serving need, without pickles.

- `weights.safetensors`: the network's parameters, float32.
- `meta.json`: `ModelMeta`, with a checksum (`classifier.project.checksummed`).
- `replicas/seed-<seed>.safetensors`: the weights of every seed, if several were trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load, save

from classifier.data.dataset import DatasetMeta, PixelStatistics, Sha256
from classifier.errors import UserError
from classifier.networks.model import Classifier, LeNet5
from classifier.project.checksummed import read_checksummed, write_checksummed
from classifier.project.files import read_file, replacing, sha256, write_atomic

LARGEST = 1 << 28  # bytes of weights
NETWORK = "lenet5"


class ModelMeta(PixelStatistics):
    """The fields of meta.json."""

    architecture: str  # NETWORK
    dataset: str
    seed: int  # of weights.safetensors, the median of the seeds on validation
    # Seed -> SHA-256 of its weights, if several were trained.
    replicas: dict[Annotated[str, Field(pattern=r"^[0-9]{1,10}$")], Sha256]
    weights_sha256: Sha256


def build(meta: DatasetMeta | ModelMeta, seed: int = 0) -> Classifier:
    """A new classifier for this data with PyTorch's default initialization, which depends only on `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = LeNet5(meta.channels, len(meta.class_names))
    return Classifier(network, meta.mean, meta.std)


def write_model(folder: Path, models: Mapping[int, Classifier], chosen: int, data: DatasetMeta) -> ModelMeta:
    """Write meta.json and the model of the seed `chosen`, and the models of all seeds if there are several.

    Equal models give equal bytes.
    """
    weights = {seed: _bytes_of(classifier) for seed, classifier in models.items()}
    several = weights if len(weights) > 1 else {}
    meta = ModelMeta(
        architecture=NETWORK,
        channels=data.channels,
        class_names=data.class_names,
        mean=data.mean,
        std=data.std,
        dataset=data.name,
        seed=chosen,
        replicas={str(seed): sha256(content) for seed, content in several.items()},
        weights_sha256=sha256(weights[chosen]),
    )
    with replacing(folder, "replicas") as new:
        write_atomic(new / "weights.safetensors", weights[chosen])
        for seed, content in several.items():
            write_atomic(_of_seed(new, seed), content)
        write_checksummed(new / "meta.json", meta)
    return meta


def _of_seed(folder: Path, seed: int | str) -> Path:
    return folder / "replicas" / f"seed-{seed}.safetensors"


def _bytes_of(classifier: Classifier) -> bytes:
    return save({name: value.detach().cpu().contiguous() for name, value in classifier.network.state_dict().items()})


def read_model_meta(folder: Path) -> ModelMeta:
    """Read meta.json. Raises FileNotFoundError if it is missing, UserError unless `write_model` wrote it."""
    path = folder / "meta.json"
    meta = read_checksummed(path, ModelMeta, "train")
    if meta.architecture != NETWORK:
        raise UserError(
            f"{path} describes a {meta.architecture!r:.80} network, which this version of the project does not have "
            f"(it has {NETWORK}): update the project, or run dvc repro -f train"
        )
    return meta


def read_model(folder: Path) -> Classifier:
    """Read the classifier, in evaluation mode. Verifies the weights' hash, names, shapes, types and finiteness."""
    meta = read_model_meta(folder)
    return _read_weights(folder / "weights.safetensors", meta.weights_sha256, meta)


def read_models(folder: Path) -> dict[int, Classifier]:
    """Read the models of several seeds, verified as in `read_model`; empty if a single one was trained."""
    meta = read_model_meta(folder)
    return {int(seed): _read_weights(_of_seed(folder, seed), known, meta) for seed, known in meta.replicas.items()}


def _read_weights(path: Path, known: str, meta: ModelMeta) -> Classifier:
    try:
        content = read_file(path, LARGEST)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist: run dvc repro train") from None
    if (found := sha256(content)) != known:
        raise UserError(f"{path} has SHA-256 {found}, meta.json says {known}: run dvc repro -f train")
    classifier = build(meta)
    try:
        state = load(content)
        classifier.network.load_state_dict(state)
    except (SafetensorError, RuntimeError) as error:
        raise UserError(f"{path} does not hold LeNet-5's weights: {' '.join(str(error).split())}") from None
    if other := [name for name, value in state.items() if value.dtype != torch.float32]:
        raise UserError(f"{path} holds {', '.join(other)} not as float32: run dvc repro -f train")
    if broken := [name for name, value in state.items() if not value.isfinite().all()]:
        raise UserError(f"{path} holds NaN or Inf in {', '.join(broken)}: run dvc repro -f train")
    return classifier.eval()
