"""Many seeds in sequence in one warm process: device time of a training after warm-up.

    python -m benchmarks.contenders.seeds DEVICE PARAMS DATA COUNT

Prints `seconds`, the device time of each seed's loop, and `accuracies` on the test split, which is read at the end. The
data stay on the device and the step is captured once. Each seed's weights are copied into the same tensors, so its
result is bit-identical to that of a separate training.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.contenders.stopwatch import device_seconds, say
from classifier.arithmetic import use
from classifier.data.dataset import DatasetMeta, read_meta, read_split
from classifier.device import be_deterministic, keep_freed_memory, set_precision
from classifier.networks.inference import predict
from classifier.networks.model_dir import build
from classifier.params import TrainParams, load_params
from classifier.training.engine import Engine
from classifier.training.loop import make_steps, run_epochs
from classifier.training.steps import on_device


def trainings(
    data: Path, meta: DatasetMeta, params: TrainParams, device: torch.device, count: int
) -> Iterator[tuple[float, dict[str, Tensor]]]:
    """Yield seconds and weights of the seeds 0 to `count` - 1, after an unmeasured warm-up."""
    train, validation = read_split(data, "train", meta), read_split(data, "validation", meta)
    engine = Engine(build(meta, 0).to(device), params, device)
    steps = make_steps(engine, train)
    for place, seed in enumerate([0, *range(count)]):
        engine.load(Engine(build(meta, seed).to(device), params, device).state())
        engine.seeds, steps.planned_epoch = [seed], 0  # discard what was planned for the previous seed
        seconds = device_seconds(lambda: run_epochs(steps, validation, lambda seed, row: None, None), device)
        if place:
            yield seconds, {name: value.clone() for name, value in engine.classifier.network.state_dict().items()}


def main() -> None:
    device, data, count = torch.device(sys.argv[1]), Path(sys.argv[3]), int(sys.argv[4])
    params, meta = load_params(Path(sys.argv[2])).train, read_meta(data)
    use(params.arithmetic)
    set_precision(params.precision, device)
    be_deterministic(device)
    keep_freed_memory()
    trained = list(trainings(data, meta, params, device, count))
    images, labels = on_device(read_split(data, "test", meta), device)
    classifier, accuracies = build(meta, 0).to(device), []
    for _, weights in trained:
        classifier.network.load_state_dict(weights)
        accuracies.append((predict(classifier, images, 1000).argmax(1) == labels).double().mean().item())
    say(seconds=[seconds for seconds, _ in trained], accuracies=accuracies)


if __name__ == "__main__":
    main()
