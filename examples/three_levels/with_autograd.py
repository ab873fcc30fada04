"""The second level, autograd: a tensor that requires a gradient is a node of a graph and stores data and gradient.

    python examples/three_levels/with_autograd.py

Only the forward pass is written here. PyTorch records it as it runs, and `loss.backward()` goes backwards through the
record, with the formulas of `numpy_alone.py`. The update is still written by hand.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, cross_entropy, linear, max_pool2d, relu
from tutorial import Result, Settings, accuracy, batches, initial_weights, load, run

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def forward(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """Images `(N, 1, 32, 32)` -> logits `(N, 10)`."""
    x = max_pool2d(relu(conv2d(x, w["conv1.weight"], w["conv1.bias"])), 2)  # (N, 6, 14, 14)
    x = max_pool2d(relu(conv2d(x, w["conv2.weight"], w["conv2.bias"])), 2)  # (N, 16, 5, 5)
    x = relu(linear(x.flatten(1), w["fc1.weight"], w["fc1.bias"]))  # (N, 120)
    x = relu(linear(x, w["fc2.weight"], w["fc2.bias"]))  # (N, 84)
    return linear(x, w["fc3.weight"], w["fc3.bias"])


def main(settings: Settings) -> Result:
    dtype = getattr(torch, settings.precision)
    train, test = load(settings)
    w = {name: torch.from_numpy(value).to(DEVICE).requires_grad_() for name, value in initial_weights(settings).items()}
    velocity = {name: torch.zeros_like(value) for name, value in w.items()}
    losses = []
    for epoch in range(1, settings.epochs + 1):
        running_loss = 0.0
        for step, batch in enumerate(batches(len(train), epoch, settings), start=1):
            x = torch.from_numpy(train.images[batch]).to(DEVICE, dtype) / 255 - 0.5
            labels = torch.from_numpy(train.labels[batch]).to(DEVICE)
            loss = cross_entropy(forward(w, x), labels)
            loss.backward()  # puts the gradient of every weight into its .grad
            with torch.no_grad():  # the update is not part of the graph
                for name, value in w.items():  # SGD with momentum
                    assert value.grad is not None
                    velocity[name] = settings.momentum * velocity[name] + value.grad
                    value -= settings.learning_rate * velocity[name]
                    value.grad = None  # the next backward would add to it
            running_loss += loss.item()
            if step % settings.log_every == 0:
                losses.append(running_loss / settings.log_every)
                print(f"[{epoch}, {step:5d}] loss: {losses[-1]:.3f}", flush=True)
                running_loss = 0.0

    @torch.no_grad()
    def predict(images: np.ndarray) -> np.ndarray:
        return forward(w, torch.from_numpy(images).to(DEVICE, dtype) / 255 - 0.5).argmax(dim=1).cpu().numpy()

    return Result(losses, {name: value.detach().cpu().numpy() for name, value in w.items()}, accuracy(predict, test))


if __name__ == "__main__":
    run(main)
