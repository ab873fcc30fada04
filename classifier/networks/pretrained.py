"""Pretrained weights: `data/pretrained/`, which the stage pretrained writes and train reads.

- `manifest.json`: `classifier.networks.manifest`, with a checksum
- `weights.safetensors`: the weights, unless train.pretrained is null

This is the only module that reads .pth files, which are pickles: PyTorch's restricted unpickler accepts only tensors
and the containers around them, and runs no code.
"""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from classifier.data.dataset import DatasetMeta
from classifier.errors import UserError, lacks_memory
from classifier.networks.manifest import MANIFEST, Kind, PretrainedManifest
from classifier.networks.model import Classifier, head_of
from classifier.networks.model_dir import read_model_meta, some
from classifier.networks.registry import NetworkSpec, build, specify
from classifier.networks.zoo import Published, fitting_positions, statistics_of
from classifier.project.checksummed import read_checksummed, read_known, write_checksummed
from classifier.project.files import read_file, sha256, write_atomic

LARGEST = 1 << 32  # bytes of weights
WEIGHTS = "weights.safetensors"
Statistics = tuple[list[float] | None, list[float] | None]  # mean and std


def write_published(folder: Path, network: str, published: Published, content: bytes, own_statistics: bool) -> None:
    """Write the weights of torchvision's file with this content. `own_statistics`: params set mean and std."""
    statistics = (None, None) if own_statistics else statistics_of(network)
    weights = published.converted(plain_tensors(content, published.name))
    _write(folder, network, "imagenet", published.address, content, weights, statistics)


def write_file(folder: Path, network: str, path: Path, own_statistics: bool) -> None:
    """Write the weights of a user's file, .safetensors or .pth.

    If they belong to a model of this project, they expect the mean and std of the meta.json beside them; otherwise
    those of the weights that torchvision or timm publish for the network.
    """
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise UserError(f"train.pretrained_file: {path}: allowed are files named .safetensors, .pth or .pt")
    try:
        content = read_file(path, LARGEST)
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"train.pretrained_file: {path} is not a file: copy it there, or name another path") from None
    weights = safe_tensors(content, path.name) if path.suffix == ".safetensors" else plain_tensors(content, path.name)
    statistics: Statistics = (None, None)
    if not own_statistics and path.name == WEIGHTS and (path.parent / "meta.json").is_file():
        meta = read_model_meta(path.parent)  # a model of this project
        statistics = (meta.mean, meta.std)
    elif not own_statistics:
        statistics = statistics_of(network)
    _write(folder, network, "file", path.name, content, weights, statistics)


def _write(
    folder: Path,
    network: str,
    kind: Kind,
    source: str,
    content: bytes,
    weights: Mapping[str, Tensor],
    statistics: Statistics,
) -> None:
    written = save({name: tensor.contiguous().clone() for name, tensor in weights.items()})
    write_atomic(folder / WEIGHTS, written)
    manifest = PretrainedManifest(
        network=network,
        pretrained=kind,
        source=source,
        source_sha256=sha256(content),
        sha256=sha256(written),
        mean=statistics[0],
        std=statistics[1],
    )
    write_checksummed(folder / MANIFEST, manifest)


def plain_tensors(content: bytes, name: str) -> dict[str, Tensor]:
    """The tensors of a .pth file, by name. Raises UserError for a file with anything else, and runs no code in it."""
    try:
        found = torch.load(BytesIO(content), map_location="cpu", weights_only=True)  # noqa: TID251
    except Exception as error:  # PyTorch raises many types for files that it cannot read
        if lacks_memory(error):
            raise
        reason = " ".join(str(error).split())
        raise UserError(
            f"{name} does not hold plain tensors: save its state_dict as safetensors ({reason:.200})"
        ) from None
    if not isinstance(found, dict) or not found:
        raise UserError(f"{name} holds {type(found).__name__}: allowed is a state_dict, tensors by name")
    if wrong := [key for key, value in found.items() if not isinstance(key, str) or not isinstance(value, Tensor)]:
        raise UserError(f"{name} holds {wrong[0]!r:.80} that is not a tensor: allowed is a state_dict, tensors by name")
    return found


def safe_tensors(content: bytes, name: str) -> dict[str, Tensor]:
    try:
        return load(content)
    except SafetensorError as error:
        raise UserError(f"{name} is not a safetensors file: {error}") from None


class Initial:
    """The start of a training: the network's specification, and pretrained weights if there are any."""

    def __init__(self, spec: NetworkSpec, weights: Mapping[str, Tensor] | None = None) -> None:
        self.spec, self.weights = spec, weights

    def classifier(self, seed: int) -> Classifier:
        """A new classifier; weights that are not pretrained depend only on the seed."""
        classifier = build(self.spec, seed)
        if self.weights is not None:
            load_pretrained(classifier.network, self.weights, self.spec)
        return classifier


def initial(data: DatasetMeta, network: str, pretrained: Kind | None, folder: Path | None) -> Initial:
    """Begin with `network`, and with the weights in `folder` unless `pretrained` is None."""
    spec = specify(data, network)
    if pretrained is None:
        return Initial(spec)
    if folder is None:
        raise UserError(f"train.pretrained: {pretrained} needs the output of the stage pretrained: run dvc repro")
    manifest = read_checksummed(folder / MANIFEST, PretrainedManifest, "pretrained")
    if (manifest.network, manifest.pretrained) != (network, pretrained):
        raise UserError(
            f"{folder} was made for {manifest.network} and train.pretrained: {manifest.pretrained}, not for {network} "
            f"and {pretrained}: run dvc repro"
        )
    path = folder / WEIGHTS
    content = read_known(path, manifest.sha256, LARGEST, MANIFEST, "pretrained")
    values: dict[str, object] = {"pretrained": f"{manifest.source}, SHA-256 {manifest.source_sha256}"}
    if manifest.mean is not None and len(spec.mean) == len(manifest.mean):
        values |= {"mean": manifest.mean, "std": manifest.std}
    return Initial(NetworkSpec.model_validate(dict(spec) | values), safe_tensors(content, str(path)))


@torch.no_grad()
def load_pretrained(network: nn.Module, weights: Mapping[str, Tensor], spec: NetworkSpec) -> None:
    """Copy the weights. Those of the head may be missing or belong to other classes: then it keeps its initial ones.

    Raises UserError, naming them, for other weights that are missing, unexpected, or of another shape.
    """
    own, head = network.state_dict(), head_of(network)
    weights = fitting_positions(spec.architecture, weights, own)
    other = {name for name in own if name in weights and weights[name].shape != own[name].shape}
    counters = {name for name in own if name.endswith("num_batches_tracked")}  # old files have none
    missing = sorted(own.keys() - weights.keys() - head - counters)
    wrong = {
        "missing:": missing,
        "unexpected:": sorted(weights.keys() - own.keys()),
        "other shapes:": sorted(other - head),
    }
    if any(wrong.values()):
        said = "; ".join(f"{what} {some(names)}" for what, names in wrong.items() if names)
        raise UserError(f"the pretrained weights do not fit {spec.architecture}: {said}")
    for name, tensor in own.items():
        if name in weights and name not in other:
            tensor.copy_(weights[name])
