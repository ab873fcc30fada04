"""The tutorial's network and DataLoader in a Lightning Trainer with default settings, on one device.

python -m benchmarks.contenders.lightning DEVICE MNIST_ROOT
"""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings

import lightning
import torch
from torch import Tensor

from benchmarks.contenders.stopwatch import MOMENTUM, RATE, WARM_UP, loop_seconds, say
from benchmarks.contenders.tutorial import Net, data_loader


class Module(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        inputs, labels = batch
        loss = torch.nn.functional.cross_entropy(self.net(inputs), labels)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=RATE, momentum=MOMENTUM)


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    device, loader = torch.device(sys.argv[1]), data_loader(sys.argv[2], workers=0)
    with tempfile.TemporaryDirectory() as folder:

        def train(**limits: int) -> None:
            accelerator = {"cuda": "gpu"}.get(device.type, device.type)
            trainer = lightning.Trainer(accelerator=accelerator, devices=1, default_root_dir=folder, **limits)
            trainer.fit(Module(), loader)

        train(max_epochs=1, max_steps=WARM_UP)
        say(loop_s=loop_seconds(lambda: train(max_epochs=1), device), steps=len(loader))


if __name__ == "__main__":
    main()
