"""Our loop compared with replays of its CUDA graph alone, with and without determinism, and with compiled kernels.

    python -m benchmarks.contenders.replayed DEVICE PARAMS DATA deterministic|free|compiled

`loop_s` is the loop as in `unrecorded`; `replay_s` is the same number of replays of its captured step. With `compiled`,
`torch.compile` generates the network's forward and backward kernels, captured in the same graph; `compile_s` is the
time of the first step, and `problem` the error if compilation fails. On a CPU, the step is called instead of replayed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from benchmarks.contenders.ours import warm_up
from benchmarks.contenders.stopwatch import loop_seconds, say
from classifier.arithmetic import use
from classifier.data.dataset import Split, read_meta, read_split
from classifier.device import be_deterministic, set_precision
from classifier.networks.model_dir import build
from classifier.params import load_params
from classifier.training.engine import Engine
from classifier.training.graph import GraphedSteps, cuda_graph
from classifier.training.loop import fit, run_epochs
from classifier.training.mixing import Targets
from classifier.training.steps import on_device


def main() -> None:
    device, params, data, kind = torch.device(sys.argv[1]), load_params(Path(sys.argv[2])).train, *sys.argv[3:]
    use(params.arithmetic)
    set_precision(params.precision, device)
    if kind != "free":
        be_deterministic(device)
    meta = read_meta(Path(data))
    train, validation = (read_split(Path(data), split, meta) for split in ("train", "validation"))
    classifier = build(meta, params.seed).to(device)
    warm_up(fit, classifier, train, params, device)
    engine = Engine(classifier, params, device)
    try:
        compiled = {"compile_s": first_compiled_step(engine, train)} if kind == "compiled" else {}
    except Exception as error:  # any error of the compiler
        reason = str(error).strip().partition("\n")[0][:200]
        say(problem=f"{type(error).__name__}: {reason}")
        return
    steps = GraphedSteps(engine, train, cuda_graph if device.type == "cuda" else lambda step: step)

    def replay() -> None:
        for _ in range(params.epochs * steps.full):
            steps.replay()

    loop_s = loop_seconds(lambda: run_epochs(steps, validation, lambda seed, row: None, None), device)
    steps.number.zero_()  # the loop's last batch may be smaller; it is not replayed
    say(loop_s=loop_s, replay_s=loop_seconds(replay, device), **compiled)


def first_compiled_step(engine: Engine, train: Split) -> float:
    """Seconds of a step that compiles the network; the engine's state is restored."""
    before, count = engine.state(), engine.params.batch_size
    images, labels = on_device(Split(train.images[:count], train.labels[:count]), engine.device)
    batch = [
        (number, engine.classifier.normalize(images[part]), Targets(labels[part]))
        for number, part in engine.parts.of(torch.arange(count))
    ]
    engine.classifier.network.compile()
    seconds = loop_seconds(lambda: engine.update(batch, count, engine.params.learning_rate), engine.device)
    engine.load(before)
    return seconds


if __name__ == "__main__":
    main()
