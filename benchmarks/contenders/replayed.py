"""What is left when a CUDA graph's replays are taken from our loop, and what the same bits twice cost.

    python -m benchmarks.contenders.replayed PARAMS DATA deterministic|free

`loop_s` is the loop as in `unrecorded`, `replay_s` are as many replays of its captured step and nothing else.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from benchmarks.contenders.ours import warm_up
from benchmarks.contenders.stopwatch import loop_seconds, say
from classifier.dataset import read_meta, read_split
from classifier.device import be_deterministic, set_precision
from classifier.graph import GraphedSteps
from classifier.model_dir import build
from classifier.params import load_params
from classifier.training import Engine, fit, run_epochs


def main() -> None:
    params, data, device = load_params(Path(sys.argv[1])).train, Path(sys.argv[2]), torch.device("cuda")
    set_precision(params.precision, device)
    if sys.argv[3] == "deterministic":
        be_deterministic(device)
    meta = read_meta(data)
    train, validation = read_split(data, "train", meta), read_split(data, "validation", meta)
    classifier = build(meta, params.seed).to(device)
    warm_up(fit, classifier, train, params, device)
    steps = GraphedSteps(Engine(classifier, params, device), train)

    def replay() -> None:
        for _ in range(params.epochs * steps.full):
            steps.replay()

    loop_s = loop_seconds(lambda: run_epochs(steps, validation, lambda seed, row: None, None), device)
    say(loop_s=loop_s, replay_s=loop_seconds(replay, device))


if __name__ == "__main__":
    main()
