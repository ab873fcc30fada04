"""The third level, modules: a layer holds its own weights, and an optimizer updates them.

    python examples/three_levels/with_modules.py

The classic tutorial ends with this program. PyTorch draws the initial weights itself, from the same seed.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import relu
from tutorial import Result, Settings, accuracy, batches, load, run

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class LeNet5(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.pool = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images `(N, 1, 32, 32)` -> logits `(N, 10)`."""
        x = self.pool(relu(self.conv1(x)))  # (N, 6, 14, 14)
        x = self.pool(relu(self.conv2(x)))  # (N, 16, 5, 5)
        x = relu(self.fc1(x.flatten(1)))  # (N, 120)
        x = relu(self.fc2(x))  # (N, 84)
        logits: Tensor = self.fc3(x)
        return logits


def main(settings: Settings) -> Result:
    dtype = getattr(torch, settings.precision)
    train, test = load(settings)
    torch.manual_seed(settings.seed)
    network = LeNet5().to(DEVICE, dtype)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(network.parameters(), lr=settings.learning_rate, momentum=settings.momentum)
    losses = []
    for epoch in range(1, settings.epochs + 1):
        running_loss = 0.0
        for step, batch in enumerate(batches(len(train), epoch, settings), start=1):
            x = torch.from_numpy(train.images[batch]).to(DEVICE, dtype) / 255 - 0.5
            labels = torch.from_numpy(train.labels[batch]).to(DEVICE)
            optimizer.zero_grad()
            loss = criterion(network(x), labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
            if step % settings.log_every == 0:
                losses.append(running_loss / settings.log_every)
                print(f"[{epoch}, {step:5d}] loss: {losses[-1]:.3f}", flush=True)
                running_loss = 0.0

    @torch.no_grad()
    def predict(images: np.ndarray) -> np.ndarray:
        return network(torch.from_numpy(images).to(DEVICE, dtype) / 255 - 0.5).argmax(dim=1).cpu().numpy()

    return Result(
        losses, {name: value.cpu().numpy() for name, value in network.state_dict().items()}, accuracy(predict, test)
    )


if __name__ == "__main__":
    run(main)
