"""The lower bound: a hand-written loop with normalized data in memory and nothing but training steps.

python -m benchmarks.contenders.bare DEVICE DATA channels_last|contiguous_format [kept]

`kept`: the process keeps freed memory, like our engine (`keep_freed_memory`).
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from benchmarks.contenders.stopwatch import BATCH, MOMENTUM, RATE, WARM_UP, loop_seconds, say
from benchmarks.contenders.tutorial import Net
from classifier.device import keep_freed_memory


def main() -> None:
    device, layout = torch.device(sys.argv[1]), getattr(torch, sys.argv[3])
    if sys.argv[4:] == ["kept"]:
        keep_freed_memory()
    data = load_file(Path(sys.argv[2]) / "train.safetensors")
    images = (data["images"].float() / 255 - 0.5).to(device).contiguous(memory_format=layout)
    labels = data["labels"].to(device)
    batches = -(-len(labels) // BATCH)

    def train(steps: int) -> None:
        net = Net().to(device, memory_format=layout)
        optimizer = torch.optim.SGD(net.parameters(), lr=RATE, momentum=MOMENTUM, fused=True)
        for picked in torch.randperm(len(labels), device=device).split(BATCH)[:steps]:
            loss = cross_entropy(net(images[picked]), labels[picked])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    train(WARM_UP)
    say(loop_s=loop_seconds(lambda: train(batches), device), steps=batches)


if __name__ == "__main__":
    main()
