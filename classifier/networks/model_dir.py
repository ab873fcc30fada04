"""The model directory, `models/classifier/`: everything that evaluation and serving need, without pickles.

- `weights.safetensors`: the network's parameters, float32, and its buffers, each in its own type.
- `meta.json`: `ModelMeta`, with a checksum (`classifier.project.checksummed`).
- `replicas/seed-<seed>.safetensors`: the weights of every seed, if several were trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from classifier.data.dataset import DatasetMeta, Sha256, known_preprocessing
from classifier.errors import UserError
from classifier.networks.model import Classifier
from classifier.networks.registry import NetworkSpec, build, spec_of
from classifier.project.checksummed import read_checksummed, read_known, write_checksummed
from classifier.project.files import replacing, sha256, write_atomic

LARGEST = 1 << 32  # bytes of weights


def _with_preprocessing(values: dict[str, Any]) -> dict[str, Any]:
    """Upgrade from format 1, which had only LeNet-5, on images of 32x32 pixels."""
    preprocessing = known_preprocessing(values["channels"]).model_dump()
    return {**values, "pretrained": None, "preprocessing": preprocessing}


class ModelMeta(NetworkSpec):
    """The fields of meta.json."""

    UPGRADES = (_with_preprocessing,)

    seed: int  # of weights.safetensors; of several seeds the one with the median validation accuracy
    # Seed -> SHA-256 of its weights, if several were trained.
    replicas: dict[Annotated[str, Field(pattern=r"^[0-9]{1,10}$")], Sha256]
    weights_sha256: Sha256


def write_model(
    folder: Path, models: Mapping[int, Classifier], chosen: int, spec: DatasetMeta | NetworkSpec
) -> ModelMeta:
    """Write meta.json and the model of the seed `chosen`, and the models of all seeds if there are several.

    Equal models give equal bytes.
    """
    weights = {seed: weights_bytes(classifier) for seed, classifier in models.items()}
    several = weights if len(weights) > 1 else {}
    meta = ModelMeta(
        **dict(spec_of(spec)),
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


def weights_bytes(classifier: Classifier) -> bytes:
    """The content of a file of weights. Equal weights give equal bytes."""
    state = classifier.network.state_dict()
    # Cloned, because safetensors rejects tensors that share memory, as tied weights do.
    return save({name: value.detach().cpu().contiguous().clone() for name, value in state.items()})


@torch.no_grad()
def load_weights(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy weights that `weights_bytes` wrote into the network. Raises UserError if names or shapes differ.

    For some networks, `load_state_dict` needs the versions of modules, which safetensors does not store.
    """
    own = network.state_dict()
    if names := sorted(own.keys() ^ state.keys()):
        raise UserError(f"names differ: {some(names)}")
    if names := [name for name in own if own[name].shape != state[name].shape]:
        raise UserError(f"shapes differ: {some(names)}")
    for name, tensor in own.items():
        tensor.copy_(state[name])


def read_model_meta(folder: Path) -> ModelMeta:
    """Read meta.json. Raises FileNotFoundError if it is missing, UserError unless `write_model` wrote it."""
    return read_checksummed(folder / "meta.json", ModelMeta, "train")


def read_model(folder: Path) -> Classifier:
    """Read the classifier, in evaluation mode. Verifies the weights' hash, names, shapes, types and finiteness."""
    meta = read_model_meta(folder)
    return _read_weights(folder / "weights.safetensors", meta.weights_sha256, meta)


def read_models(folder: Path) -> dict[int, Classifier]:
    """Read the models of several seeds, verified as in `read_model`; empty if a single one was trained."""
    meta = read_model_meta(folder)
    return {int(seed): _read_weights(_of_seed(folder, seed), known, meta) for seed, known in meta.replicas.items()}


def _read_weights(path: Path, known: str, meta: ModelMeta) -> Classifier:
    content = read_known(path, known, LARGEST, "meta.json", "train")
    try:
        classifier = build(meta)
    except UserError as error:
        raise UserError(f"the network that meta.json beside {path} describes cannot be built: {error}") from None
    own = classifier.network.state_dict()
    finite = [name for name, value in own.items() if value.isfinite().all()]  # all except masks
    try:
        state = load(content)
        load_weights(classifier.network, state)
    except (SafetensorError, UserError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} does not hold the weights of {meta.architecture}: {reason:.1000}") from None
    if other := [name for name, value in state.items() if value.dtype != own[name].dtype]:
        raise UserError(f"{path} holds {some(other)}, which should be {own[other[0]].dtype}: run dvc repro -f train")
    if broken := [name for name in finite if not state[name].isfinite().all()]:
        raise UserError(f"{path} holds NaN or Inf in {some(broken)}: run dvc repro -f train")
    return classifier.eval()


def some(names: Sequence[str]) -> str:
    """The first five names."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
