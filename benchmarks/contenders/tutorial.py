"""The loop of the classic tutorial: torchvision's data set, PIL transforms, a DataLoader and `.item()` in every step.

python -m benchmarks.contenders.tutorial DEVICE MNIST_ROOT WORKERS
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from itertools import islice

import torch
import torch.nn as nn
import torch.nn.functional as F  # noqa: N812
import torch.optim as optim
import torchvision
import torchvision.transforms as transforms
from torch import Tensor

from benchmarks.contenders.stopwatch import BATCH, MOMENTUM, RATE, WARM_UP, loop_seconds, say


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = torch.flatten(x, 1)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


def data_loader(root: str, workers: int) -> torch.utils.data.DataLoader:
    transform = transforms.Compose(
        [transforms.Pad(2), transforms.ToTensor(), transforms.Normalize((0.5,), (1.0,))],
    )
    trainset = torchvision.datasets.MNIST(root=root, train=True, transform=transform)
    return torch.utils.data.DataLoader(trainset, batch_size=BATCH, shuffle=True, num_workers=workers)


def train(batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> None:
    net = Net().to(device)
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.SGD(net.parameters(), lr=RATE, momentum=MOMENTUM)

    running_loss = 0.0
    for i, (inputs, labels) in enumerate(batches, start=1):
        inputs, labels = inputs.to(device), labels.to(device)
        optimizer.zero_grad()
        outputs = net(inputs)
        loss = criterion(outputs, labels)
        loss.backward()
        optimizer.step()
        running_loss += loss.item()
        if i % 2000 == 0:
            print(f"[1, {i:5d}] loss: {running_loss / 2000:.3f}")
            running_loss = 0.0


def main() -> None:
    device, loader = torch.device(sys.argv[1]), data_loader(sys.argv[2], int(sys.argv[3]))
    train(islice(loader, WARM_UP), device)
    say(loop_s=loop_seconds(lambda: train(loader, device), device), steps=len(loader))


if __name__ == "__main__":
    main()
