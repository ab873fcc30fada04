"""Fine-tune MobileNetV2 on a folder of photos, as PyTorch's tutorials do: ImageFolder, DataLoader, torchvision's v2.

    python -m benchmarks.contenders.photos DEVICE FOLDER loop|lightning EPOCHS WORKERS

FOLDER contains `train/` and `validation/`, each with a folder per class. Prints the loop's seconds, with validation.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.models import mobilenet_v2
from torchvision.transforms import v2

from benchmarks.contenders.stopwatch import loop_seconds, say

SIZE, BATCH, RATE, DECAY, WARM_UP, SMOOTHING = 128, 32, 1e-3, 0.05, 0.25, 0.1
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TO_TENSOR = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
TRAINING = v2.Compose([v2.RandomResizedCrop(SIZE, (0.35, 1.0)), v2.RandomHorizontalFlip(), *TO_TENSOR])
VALIDATION = v2.Compose([v2.Resize(SIZE), v2.CenterCrop(SIZE), *TO_TENSOR])

Loaders = tuple[DataLoader, DataLoader]  # of training and of validation images


def main() -> None:
    device, folder, epochs, workers = torch.device(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[4:6])
    splits = [ImageFolder(folder / "train", TRAINING), ImageFolder(folder / "validation", VALIDATION)]
    torch.manual_seed(0)
    network = mobilenet_v2(num_classes=len(splits[0].classes))
    training, validation = (
        DataLoader(split, BATCH, shuffle=split is splits[0], num_workers=workers, persistent_workers=workers > 0)
        for split in splits
    )
    train = {"loop": train_by_hand, "lightning": train_by_lightning}[sys.argv[3]]
    say(loop_s=loop_seconds(lambda: train(network, (training, validation), device, epochs), device))


def train_by_hand(network: nn.Module, loaders: Loaders, device: torch.device, epochs: int) -> None:
    training, validation = loaders
    network.to(device)
    optimizer, schedule = optimizer_of(network, epochs * len(training))
    for epoch in range(epochs):
        network.train()
        for images, labels in training:
            images, labels = images.to(device), labels.to(device)
            optimizer.zero_grad()
            loss = cross_entropy(network(images), labels, label_smoothing=SMOOTHING)
            loss.backward()
            optimizer.step()
            schedule.step()
        network.eval()
        right = 0
        with torch.inference_mode():
            for images, labels in validation:
                right += (network(images.to(device)).argmax(1) == labels.to(device)).sum().item()
        print(f"epoch {epoch}: loss {loss.item():.3f}, {right / len(validation.dataset):.2%}")


def optimizer_of(network: nn.Module, steps: int) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.OneCycleLR]:
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=DECAY)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=WARM_UP)


def train_by_lightning(network: nn.Module, loaders: Loaders, device: torch.device, epochs: int) -> None:
    import lightning

    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            images, labels = batch
            loss = cross_entropy(self.network(images), labels, label_smoothing=SMOOTHING)
            self.log("train_loss", loss)
            return loss

        def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
            images, labels = batch
            right = (self.network(images).argmax(1) == labels).float().mean()
            self.log("validation_accuracy", right, batch_size=len(labels))

        def configure_optimizers(self) -> object:
            optimizer, schedule = optimizer_of(self.network, epochs * len(loaders[0]))
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    with tempfile.TemporaryDirectory() as folder:
        accelerator = {"cuda": "gpu"}.get(device.type, device.type)
        trainer = lightning.Trainer(
            accelerator=accelerator, devices=1, default_root_dir=folder, max_epochs=epochs, num_sanity_val_steps=0
        )
        trainer.fit(Module(), *loaders)


if __name__ == "__main__":
    main()
