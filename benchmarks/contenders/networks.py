"""The loop of a general network, ours or a hand-written one, on images made from those of the data set.

    python -m benchmarks.contenders.networks DEVICE DATA NETWORK SIZE IMAGES channels_last|contiguous_format
    python -m benchmarks.contenders.networks DEVICE DATA NETWORK SIZE IMAGES PARAMS

The first is a hand-written loop with normalized images in memory. The second is our `fit` with PARAMS; streamed images
are read from several files.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import nn
from torch.nn.functional import cross_entropy
from torchvision import models

from benchmarks.contenders.stopwatch import BATCH, MOMENTUM, RATE, loop_seconds, say
from classifier.arithmetic import use
from classifier.data.dataset import Split, StoredSplit, read_meta, read_split, write_split
from classifier.device import be_deterministic, keep_freed_memory
from classifier.networks.model import Classifier
from classifier.params import TrainParams, load_params
from classifier.training.loop import fit
from networks.cifar import resnet9

WARM_UP = 2  # steps
FILES = 4


def main() -> None:
    device, data, name, size, count = torch.device(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:6]
    layout = getattr(torch, sys.argv[6], None)
    params = None if layout else load_params(Path(sys.argv[6])).train
    if params:
        use(params.arithmetic)  # before torch computes
    split = enlarged(read_split(data, "train", read_meta(data)), int(size), int(count))
    torch.manual_seed(0)
    network = resnet9(3, 10, int(size)) if name == "resnet9" else models.get_model(name, num_classes=10)
    if params:
        ours(Classifier(network, [0.5] * 3, [0.5] * 3), split, device, params)
    else:
        assert layout
        say(loop_s=bare(network, split, device, layout))


def enlarged(split: Split, size: int, count: int) -> Split:
    """Return `count` images of `size` pixels, each pixel repeated, gray images in three channels."""
    rows = np.arange(count) % len(split)
    times = size // split.images.shape[-1]
    images = split.images[rows].repeat(times, axis=-1).repeat(times, axis=-2)
    return Split(np.ascontiguousarray(images.repeat(3 // images.shape[1], axis=1)), split.labels[rows])


def bare(network: nn.Module, split: Split, device: torch.device, layout: torch.memory_format) -> float:
    keep_freed_memory()
    network = network.to(device, memory_format=layout).train()
    images = (
        torch.from_numpy(split.images).float().div(255).sub(0.5).div(0.5).to(device).contiguous(memory_format=layout)
    )
    labels = torch.from_numpy(split.labels).to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE, momentum=MOMENTUM, fused=True)

    def train(steps: int) -> None:
        for picked in torch.randperm(len(labels), device=device).split(BATCH)[:steps]:
            loss = cross_entropy(network(images[picked].contiguous(memory_format=layout)), labels[picked])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    train(WARM_UP)
    return loop_seconds(lambda: train(len(labels)), device)


def ours(classifier: Classifier, split: Split, device: torch.device, params: TrainParams) -> None:
    be_deterministic(device)
    keep_freed_memory()
    nothing = Split(split.images[:0], split.labels[:0])

    def train(images: Split) -> None:
        fit(classifier, images, nothing, params, device, lambda seed, row: None)

    with tempfile.TemporaryDirectory() as folder:
        stored = in_files(split, Path(folder)) if params.data == "streamed" else split
        train(Split(split.images[: WARM_UP * BATCH], split.labels[: WARM_UP * BATCH]))
        seconds = loop_seconds(lambda: train(stored), device)
    weights = {name: value.cpu().contiguous() for name, value in classifier.network.state_dict().items()}
    say(loop_s=seconds, weights=hashlib.sha256(save(weights)).hexdigest())


def in_files(split: Split, folder: Path) -> StoredSplit:
    """Write the split to several files and map them."""
    digests = np.stack([np.frombuffer(hashlib.sha256(image).digest(), np.uint8) for image in split.images])
    parts = []
    for number, rows in enumerate(np.array_split(np.arange(len(split)), FILES)):
        write_split(folder, str(number), Split(split.images[rows], split.labels[rows]))
        path = folder / f"{number}.safetensors"
        parts.append((path, read_mapped(path)))
    return StoredSplit(parts, split.labels, digests, split.shape)


def read_mapped(path: Path) -> np.ndarray:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        images: np.ndarray = file.get_tensor("images").numpy()
        return images


if __name__ == "__main__":
    main()
