"""The loop of a general network, ours or a hand-written one, on images made from those of the data set.

    python -m benchmarks.contenders.networks DEVICE DATA NETWORK SIZE IMAGES channels_last|contiguous_format
    python -m benchmarks.contenders.networks cuda DATA NETWORK SIZE IMAGES bfloat16|compiled|graphed
    python -m benchmarks.contenders.networks DEVICE DATA NETWORK SIZE IMAGES PARAMS

The first is a hand-written loop in float32 with normalized images in memory. The second is one in bfloat16,
channels-last, with cuDNN's fastest kernels: as it is, by `torch.compile`, or by its mode with CUDA graphs. The third is
our loop with PARAMS; streamed images are read from several files. On a GPU, loops run for several epochs.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import nn
from torch.nn.functional import cross_entropy
from torchvision import models

from benchmarks.contenders.stopwatch import (
    BATCH,
    BFLOAT16,
    GPU_BATCH,
    GPU_EPOCHS,
    MOMENTUM,
    RATE,
    loop_seconds,
    say,
)
from classifier.arithmetic import use
from classifier.data.dataset import Split, StoredSplit, read_meta, read_split, write_split
from classifier.device import be_deterministic, keep_freed_memory, set_precision
from classifier.networks.model import Classifier
from classifier.params import TrainParams, load_params
from classifier.training.engine import Engine
from classifier.training.loop import make_steps, run_epochs
from classifier.training.parts import computation_of
from classifier.training.ranks import crew_of
from classifier.training.sources import are_resident
from networks.cifar import resnet9

WARM_UP = 2  # steps
FILES = 4


def main() -> None:
    device, data, name, size, count = torch.device(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:6]
    way = sys.argv[6]
    params = load_params(Path(way)).train if way.endswith(".yaml") else None
    if params:
        use(params.arithmetic)  # before torch computes
    split = enlarged(read_split(data, "train", read_meta(data)), int(size), int(count))
    torch.manual_seed(0)
    network = resnet9(3, 10, int(size)) if name == "resnet9" else models.get_model(name, num_classes=10)
    if params:
        ours(Classifier(network, [0.5] * 3, [0.5] * 3), split, device, params)
    else:
        say(loop_s=bare(network, split, device, way))


def enlarged(split: Split, size: int, count: int) -> Split:
    """Return `count` images of `size` pixels, each pixel repeated, gray images in three channels."""
    rows = np.arange(count) % len(split)
    times = size // split.images.shape[-1]
    images = split.images[rows].repeat(times, axis=-1).repeat(times, axis=-2)
    return Split(np.ascontiguousarray(images.repeat(3 // images.shape[1], axis=1)), split.labels[rows])


def bare(network: nn.Module, split: Split, device: torch.device, way: str) -> float:
    keep_freed_memory()
    on_gpu = device.type == "cuda"
    layout = torch.contiguous_format if way == "contiguous_format" else torch.channels_last
    rounded = torch.autocast(device.type, torch.bfloat16, enabled=way in BFLOAT16)
    torch.backends.cudnn.benchmark = on_gpu
    network = network.to(device, memory_format=layout).train()
    if way in ("compiled", "graphed"):
        network.compile(mode="reduce-overhead" if way == "graphed" else None)
    images = torch.from_numpy(split.images).to(device).float().div_(255).sub_(0.5).div_(0.5)
    images = images.contiguous(memory_format=layout)
    labels = torch.from_numpy(split.labels).to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE, momentum=MOMENTUM, fused=True)

    def train(steps: int) -> None:
        for picked in torch.randperm(len(labels), device=device).split(GPU_BATCH if on_gpu else BATCH)[:steps]:
            with rounded:
                logits = network(images[picked].contiguous(memory_format=layout))
            loss = cross_entropy(logits.float(), labels[picked])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def epochs() -> None:
        for _ in range(GPU_EPOCHS if on_gpu else 1):
            train(len(labels))

    train(WARM_UP)
    if on_gpu:
        train(len(labels))
    return loop_seconds(epochs, device)


def ours(classifier: Classifier, split: Split, device: torch.device, params: TrainParams) -> None:
    set_precision(params.precision, device)
    be_deterministic(device, strictly=params.deterministic)
    keep_freed_memory()
    nothing = Split(split.images[:0], split.labels[:0])

    def loop(images: Split) -> Callable[[], None]:
        crew = crew_of(computation_of(params, device), device)
        engine = Engine(classifier.to(device), params, device, crew=crew)
        steps = make_steps(engine, images, are_resident(params.data, [images], device))
        return lambda: run_epochs(steps, nothing, lambda seed, row: None, None)

    with tempfile.TemporaryDirectory() as folder:
        stored = in_files(split, Path(folder)) if params.data == "streamed" else split
        if device.type == "cpu":
            loop(Split(split.images[: WARM_UP * BATCH], split.labels[: WARM_UP * BATCH]))()
        seconds = loop_seconds(loop(stored), device)
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
