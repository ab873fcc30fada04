"""The training loop: epochs and windows, what is reported at their ends, and checkpoints. Begin reading at `fit`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from classifier.data.dataset import Split, read_meta, read_split
from classifier.errors import UserError
from classifier.networks.model import Classifier
from classifier.networks.pretrained import initial
from classifier.params import TrainParams
from classifier.training.checkpoint import NO_WORK, Checkpoints, Work
from classifier.training.determinism import named_layers
from classifier.training.engine import Engine
from classifier.training.graph import GraphedSteps, StreamedGraph
from classifier.training.history import HistoryRow
from classifier.training.parts import computation_of
from classifier.training.ranks import crew_of
from classifier.training.sources import are_resident
from classifier.training.steps import Steps, StreamedSteps, on_device, on_disk
from classifier.workers import threads

Report = Callable[[int, HistoryRow], None]  # of a seed and its row


@dataclass(frozen=True)
class Trained:
    """A trained classifier and its history."""

    classifier: Classifier
    rows: list[HistoryRow]


def train_one(
    data: Path,
    seed: int,
    params: TrainParams,
    device: torch.device,
    report: Report,
    work: Work = NO_WORK,
    pretrained: Path | None = None,
) -> Trained:
    """Train the network of one seed on `data/normalized`; it resumes from its last checkpoint in `work`.

    `pretrained`: the folder `data/pretrained`, if `params` ask for pretrained weights.
    """
    meta = read_meta(data)
    train, validation = read_split(data, "train", meta), read_split(data, "validation", meta)
    trained = Trained(initial(meta, params.network, params.pretrained, pretrained).classifier(seed), [])

    def keep(seed: int, row: HistoryRow) -> None:
        trained.rows.append(row)
        report(seed, row)

    params = params.model_copy(update={"seed": seed})
    fit(trained.classifier, train, validation, params, device, keep, work.of_seed(seed))
    return trained


def fit(
    classifier: Classifier,
    train: Split,
    validation: Split,
    params: TrainParams,
    device: torch.device,
    report: Report,
    checkpoints: Checkpoints | None = None,
) -> None:
    """Train `classifier` in place and report the end of each window and epoch (`classifier.training.history`).

    A window has `params.log_every` steps, or those of an epoch if that has fewer. Validation results are None when the
    validation split is empty. Training resumes from the last of `checkpoints`, whose rows are reported again. It ends
    early after `params.keep.patience` epochs without a better value, and keeps the weights of `params.keep.weights`.
    Raises DivergedError before an update that would not be finite.
    """
    crew = crew_of(computation_of(params, device), device)
    engine = Engine(classifier.to(device), params, device, crew=crew)
    resident = are_resident(params.data, (train, validation), device)
    with named_layers(engine.classifier.network):
        steps = make_steps(engine, train, resident)
    run_epochs(steps, validation, report, checkpoints)


def run_epochs(steps: Steps, validation: Split, report: Report, checkpoints: Checkpoints | None) -> None:
    """`fit` for all models of an engine. A checkpoint holds all of them, and their rows in turn."""
    engine, params, crew = steps.engine, steps.params, steps.engine.parts.crew
    if params.keep.weights != "last" and not len(validation):
        raise UserError(
            f"train.keep.weights: {params.keep.weights} needs validation images, and there are none: set a "
            "normalize.validation_fraction above 0, or train.keep.weights: last"
        )
    held_out, labels = on_device(validation, engine.device) if steps.resident else on_disk(validation, engine.device)
    engine.hold_out(held_out, labels)
    window = min(params.log_every, steps.per_epoch)
    step, began = 0, time.monotonic()
    if checkpoints and (saved := checkpoints.load(params.epochs, steps.per_epoch, window, len(engine.seeds))):
        engine.load(saved.tensors)
        step, engine.steps = saved.position.step, saved.position.window
        for number, row in enumerate(saved.rows):
            report(engine.seeds[number % len(engine.seeds)], replace(row, again=True))
        trained_s = (saved.rows[-1].seconds or 0.0) if saved.rows else 0.0
        began -= trained_s
        say_resumed(steps, step, trained_s)
    start, engine.steps = crew.hand_out([step, engine.steps], engine.tensors().values())
    network = engine.classifier.network
    with threads(engine.computation.threads), crew.working(lambda: assist(steps, start)), named_layers(network):
        if crew.rank == 0:
            lead(steps, start, began, report, checkpoints)
    engine.finish()


def lead(steps: Steps, step: int, began: float, report: Report, checkpoints: Checkpoints | None) -> None:
    """Run the first process from `step` on: steps, windows, reports and checkpoints."""
    engine, params, batches_per_epoch = steps.engine, steps.params, steps.per_epoch
    window = min(params.log_every, batches_per_epoch)
    for epoch in range(step // batches_per_epoch + 1, params.epochs + 1):
        if engine.stops:
            break
        steps.begin_epoch(epoch)
        done = step % batches_per_epoch
        if not done:
            engine.epoch_loss.fill(0)
        for batch in range(done + 1, batches_per_epoch + 1):
            steps.step(batch - 1)
            step += 1
            last = batch == batches_per_epoch
            if batch % window == 0 or last:
                rows = end_window(steps, epoch, batch, full=batch % window == 0)
                seconds = time.monotonic() - began
                for seed, row in zip(engine.seeds, (replace(row, seconds=seconds) for row in rows), strict=True):
                    report(seed, row)
                    if checkpoints:
                        checkpoints.add(row)
            if checkpoints and (last or step % checkpoints.every == 0):
                checkpoints.save(step, engine.steps, engine.state())
    if checkpoints:
        checkpoints.wait()


def say_resumed(steps: Steps, step: int, seconds: float) -> None:
    """Print to standard error, because a seed's own process writes its rows to standard output."""
    seeds, params = steps.engine.seeds, steps.params
    who = f"seed {seeds[0]}: " if params.seeds > 1 and len(seeds) == 1 else ""
    epoch = min(step // steps.per_epoch + 1, params.epochs)
    line = f"{who}resuming at epoch {epoch} of {params.epochs}, step {step}, {seconds:.0f} s of training done"
    print(line, file=sys.stderr, flush=True)


def end_window(steps: Steps, epoch: int, batch: int, full: bool) -> list[HistoryRow]:
    """The row of each model after an epoch's batch number `batch`, from 1, which fills a window or ends the epoch."""
    engine, images = steps.engine, len(steps.labels)
    step = (epoch - 1) * steps.per_epoch + batch
    seen = (epoch - 1) * images + min(batch * steps.params.batch_size, images)
    rows = [
        HistoryRow(step, epoch, seen, steps.rates[batch - 1], running_loss if full else None)
        for running_loss in engine.close_window(epoch, step)
    ]
    if batch < steps.per_epoch:
        return rows
    train_loss = (engine.epoch_loss / images).tolist()
    return [
        replace(row, train_loss=mean, validation_loss=loss, validation_accuracy=accuracy)
        for row, mean, (loss, accuracy) in zip(rows, train_loss, engine.end_epoch(), strict=True)
    ]


def assist(steps: Steps, start: int) -> None:
    """Run another process from step `start` on: the same steps, without windows, reports and checkpoints."""
    for epoch in range(start // steps.per_epoch + 1, steps.params.epochs + 1):
        if steps.engine.stops:
            break
        steps.begin_epoch(epoch)
        for batch in range(start % steps.per_epoch, steps.per_epoch):
            steps.step(batch)
        start = 0
        steps.engine.end_epoch()


def make_steps(engine: Engine, train: Split, resident: bool = True) -> Steps:
    """The steps for this device, on images that are on it or in their files.

    On CUDA they are replayed as a graph, if no shape depends on what is drawn, and no other process shares them.
    """
    alone = engine.parts.crew.size == 1
    fixed = engine.params.augment.policy == "none" and not engine.params.freeze
    if engine.device.type == "cuda" and alone and fixed and (resident or engine.parts.count == 1):
        return (GraphedSteps if resident else StreamedGraph)(engine, train)
    engine.compile()
    return (Steps if resident else StreamedSteps)(engine, train)
