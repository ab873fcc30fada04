"""Several seeds, as `train.seeds` trains them or one run after the other, each with the whole machine.

    python -m benchmarks.contenders.replicas DEVICE PARAMS DATA COUNT together|in_turn

The loop is everything from the data's files to trained models; in turn there is one process, which starts once and
keeps the memory that a step frees, as the train stage and the processes of replicas do.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from benchmarks.contenders.stopwatch import loop_seconds, say
from classifier.device import be_deterministic, keep_freed_memory
from classifier.params import load_params
from classifier.training.seeds import train_seeds


def main() -> None:
    device, data, count = torch.device(sys.argv[1]), Path(sys.argv[3]), int(sys.argv[4])
    together = sys.argv[5] == "together"
    params = load_params(Path(sys.argv[2])).train
    be_deterministic(device)
    keep_freed_memory()

    def train(first: int, replicas: int) -> None:
        wanted = params.model_copy(update={"seed": first, "seeds": replicas})
        train_seeds(data, wanted, device, lambda seed, row: None)

    train(0, 1)  # warm: lazy imports and the first calls of every kernel

    def loop() -> None:
        if together:
            train(0, count)
        else:
            for seed in range(count):
                train(seed, 1)

    say(loop_s=loop_seconds(loop, device))


if __name__ == "__main__":
    main()
