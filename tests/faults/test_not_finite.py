"""NaN or Inf in data, loss or gradients: training stops before the update and keeps the last good checkpoint."""

from __future__ import annotations

import math
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from classifier.networks.model import Classifier
from classifier.networks.model_dir import build
from classifier.params import TrainParams
from classifier.training.checkpoint import Checkpoints
from classifier.training.engine import DivergedError
from classifier.training.loop import fit
from tests.samples import digits_split, train_params, write_digits

KINDS = ("data", "loss", "gradients")
IMAGES, BATCH, EPOCHS = 60, 10, 2
PARTS = 2  # of a batch, a forward pass each
STEPS = EPOCHS * IMAGES // BATCH


class Poison:
    """Inserts a value into a real network at one step, and saves the weights before its update."""

    def __init__(self, classifier: Classifier, kind: str, step: int, value: float) -> None:
        self.classifier, self.kind, self.at, self.value = classifier, kind, step, value
        self.passes = self.step = 0
        self.before: dict[str, Tensor] = {}
        network = classifier.network
        network.register_forward_pre_hook(self._forward)
        network.register_forward_hook(self._logits)
        weights = list(network.parameters())
        weights[step % len(weights)].register_hook(self._gradient)

    def _now(self, kind: str) -> bool:
        return self.kind == kind and self.step == self.at and self.classifier.training

    def _forward(self, module: Any, arguments: tuple[Tensor]) -> tuple[Tensor]:
        if self.classifier.training:
            self.passes += 1
            self.step = (self.passes + PARTS - 1) // PARTS
            if self.step == self.at:
                self.before = {name: value.clone() for name, value in module.state_dict().items()}
        (images,) = arguments
        if self._now("data"):
            images = images.clone()
            images[0] = self.value  # a whole image: max pooling could drop a single -Inf
        return (images,)

    def _logits(self, module: Any, arguments: tuple[Tensor], logits: Tensor) -> Tensor:
        return logits * self.value if self._now("loss") else logits

    def _gradient(self, gradient: Tensor) -> Tensor:
        return torch.full_like(gradient, self.value) if self._now("gradients") else gradient


def scenario(random: Random) -> tuple[TrainParams, int, float]:
    params = train_params(
        seed=random.randrange(1000),
        epochs=EPOCHS,
        parts=PARTS,
        processes=1,
        batch_size=BATCH,
        optimizer=random.choice(["sgd", "adamw", "muon"]),
        schedule=random.choice(["constant", "one_cycle", "cosine"]),
        log_every=random.choice([1, 2, 3, 5, 100]),
        shift=random.choice([0, 1]),
        checkpoint_every=random.choice([1, 2, 4]),
    )
    return params, random.randrange(1, STEPS + 1), random.choice([math.nan, math.inf, -math.inf])


@pytest.mark.parametrize("kind", KINDS)
def test_training_stops_before_the_update_and_keeps_the_last_good_state(attack, tmp_path: Path, kind: str):
    row = attack(f"NaN or Inf in {kind}")
    meta = write_digits(tmp_path / "data")
    train, validation = digits_split(IMAGES), digits_split(20, start=IMAGES)
    for number in range(len(row.some(range(20)))):
        params, step, value = scenario(row.random)
        with row.case(f"{value} at step {step}, {params}"):
            classifier = build(meta, params.seed)
            poison = Poison(classifier, kind, step, value)
            folder = tmp_path / f"{kind}-{number}"
            checkpoints = Checkpoints(folder, params.checkpoint_every)
            with pytest.raises(DivergedError) as caught:
                fit(classifier, train, validation, params, torch.device("cpu"), lambda seed, row: None, checkpoints)
            checkpoints.wait()  # like the process at its exit
            epoch = (step - 1) // (IMAGES // BATCH) + 1
            assert f"not finite at step {step} (epoch {epoch}), stopped before its update" in str(caught.value)
            now = classifier.network.state_dict()
            assert all(torch.equal(value, now[name]) for name, value in poison.before.items()), "weights were updated"
            kept = Checkpoints(folder, params.checkpoint_every).load(
                EPOCHS, STEPS // EPOCHS, min(params.log_every, STEPS // EPOCHS)
            )
            good = [done for done in range(1, step) if is_saved(done, params.checkpoint_every)]
            assert (kept.position.step if kept else 0) == (good[-1] if good else 0), "not the last good checkpoint"
            assert not kept or all(tensor.isfinite().all() for tensor in kept.tensors.values())
    row.verdict()


def is_saved(step: int, every: int) -> bool:
    return step % every == 0 or step % (IMAGES // BATCH) == 0
