"""Several seeds, trained together with `train.seeds` or in sequence, each with the whole machine.

    python -m benchmarks.contenders.several_seeds DEVICE PARAMS DATA COUNT together|in_sequence

The loop is everything from the data's files to trained models. In sequence, a single process trains all seeds and keeps
freed memory, like the train stage and its worker processes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from benchmarks.contenders.stopwatch import loop_seconds, say
from classifier.arithmetic import use
from classifier.device import be_deterministic, keep_freed_memory
from classifier.params import load_params
from classifier.training.seeds import train_seeds


def main() -> None:
    device, data, count = torch.device(sys.argv[1]), Path(sys.argv[3]), int(sys.argv[4])
    together = sys.argv[5] == "together"
    params = load_params(Path(sys.argv[2])).train
    use(params.arithmetic)
    be_deterministic(device)
    keep_freed_memory()

    def train(first: int, seeds: int) -> None:
        wanted = params.model_copy(update={"seed": first, "seeds": seeds})
        train_seeds(data, wanted, device, lambda seed, row: None)

    train(0, 1)  # warm up: lazy imports and the first calls of every kernel

    def loop() -> None:
        if together:
            train(0, count)
        else:
            for seed in range(count):
                train(seed, 1)

    say(loop_s=loop_seconds(loop, device))


if __name__ == "__main__":
    main()
