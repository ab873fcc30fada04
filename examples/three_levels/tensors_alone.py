"""The first level, tensors: arrays as in numpy that can also be on a GPU. The backward pass is still written by hand.

    python examples/three_levels/tensors_alone.py

The formulas are those of `numpy_alone.py`. PyTorch's `unfold` gathers the windows of a convolution and `fold` adds them
up again. No tensor requires a gradient, so autograd records nothing.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import fold, max_pool2d, max_unpool2d, unfold
from tutorial import Result, Settings, accuracy, batches, initial_weights, load, run

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Tensors = dict[str, Tensor]


def convolution(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """(N, C, H, W) -> (N, K, H-4, W-4), and the windows that backward needs: each is a column of 25 C numbers."""
    columns = unfold(x, 5)  # (N, 25 C, (H-4)(W-4))
    y = w.flatten(1) @ columns + b[:, None]  # (K, 25 C) times each image's columns
    return y.view(len(x), len(w), x.shape[2] - 4, x.shape[3] - 4), columns


def convolution_backward(g: Tensor, columns: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """y = w columns + b, so dw = sum over n of g columns^T, and db is the sum of g."""
    return torch.einsum("nkp,ncp->kc", g.flatten(2), columns).view_as(w), g.sum(dim=(0, 2, 3))


def convolution_input_gradient(g: Tensor, w: Tensor) -> Tensor:
    """dcolumns = w^T g; a pixel that is in several columns gets the sum of its gradients."""
    return fold(w.flatten(1).T @ g.flatten(2), (g.shape[2] + 4, g.shape[3] + 4), 5)


def forward(w: Tensors, x: Tensor) -> tuple[Tensor, ...]:
    """What backward needs of every layer, the logits last."""
    c1, columns1 = convolution(x, w["conv1.weight"], w["conv1.bias"])
    c1 = c1.clamp(min=0)  # ReLU, (N, 6, 28, 28)
    p1, chosen1 = max_pool2d(c1, 2, return_indices=True)  # (N, 6, 14, 14)
    c2, columns2 = convolution(p1, w["conv2.weight"], w["conv2.bias"])
    c2 = c2.clamp(min=0)  # (N, 16, 10, 10)
    p2, chosen2 = max_pool2d(c2, 2, return_indices=True)  # (N, 16, 5, 5)
    flat = p2.flatten(1)  # (N, 400)
    f1 = (flat @ w["fc1.weight"].T + w["fc1.bias"]).clamp(min=0)  # (N, 120)
    f2 = (f1 @ w["fc2.weight"].T + w["fc2.bias"]).clamp(min=0)  # (N, 84)
    return columns1, c1, chosen1, columns2, c2, chosen2, flat, f1, f2, f2 @ w["fc3.weight"].T + w["fc3.bias"]


def loss_and_gradients(w: Tensors, x: Tensor, labels: Tensor) -> tuple[float, Tensors]:
    """Mean cross entropy of a batch `(N, 1, 32, 32)`, and its gradient with respect to every weight."""
    columns1, c1, chosen1, columns2, c2, chosen2, flat, f1, f2, logits = forward(w, x)
    log_p = logits - logits.logsumexp(dim=1, keepdim=True)
    rows = torch.arange(len(x), device=x.device)
    loss = -log_p[rows, labels].mean()
    d = {}
    g = log_p.exp()
    g[rows, labels] -= 1
    g /= len(x)
    d["fc3.weight"], d["fc3.bias"] = g.T @ f2, g.sum(dim=0)
    g = g @ w["fc3.weight"] * (f2 > 0)
    d["fc2.weight"], d["fc2.bias"] = g.T @ f1, g.sum(dim=0)
    g = g @ w["fc2.weight"] * (f1 > 0)
    d["fc1.weight"], d["fc1.bias"] = g.T @ flat, g.sum(dim=0)
    g = (g @ w["fc1.weight"]).view(-1, 16, 5, 5)
    g = max_unpool2d(g, chosen2, (2, 2)) * (c2 > 0)  # the largest of a window gets the gradient
    d["conv2.weight"], d["conv2.bias"] = convolution_backward(g, columns2, w["conv2.weight"])
    g = max_unpool2d(convolution_input_gradient(g, w["conv2.weight"]), chosen1, (2, 2)) * (c1 > 0)
    d["conv1.weight"], d["conv1.bias"] = convolution_backward(g, columns1, w["conv1.weight"])
    return loss.item(), d


def main(settings: Settings) -> Result:
    dtype = getattr(torch, settings.precision)
    train, test = load(settings)
    w = {name: torch.from_numpy(value).to(DEVICE) for name, value in initial_weights(settings).items()}
    velocity = {name: torch.zeros_like(value) for name, value in w.items()}
    losses = []
    for epoch in range(1, settings.epochs + 1):
        running_loss = 0.0
        for step, batch in enumerate(batches(len(train), epoch, settings), start=1):
            x = torch.from_numpy(train.images[batch]).to(DEVICE, dtype) / 255 - 0.5
            labels = torch.from_numpy(train.labels[batch]).to(DEVICE)
            loss, gradients = loss_and_gradients(w, x, labels)
            for name, gradient in gradients.items():  # SGD with momentum, in place
                velocity[name].mul_(settings.momentum).add_(gradient)
                w[name].sub_(velocity[name], alpha=settings.learning_rate)
            running_loss += loss
            if step % settings.log_every == 0:
                losses.append(running_loss / settings.log_every)
                print(f"[{epoch}, {step:5d}] loss: {losses[-1]:.3f}", flush=True)
                running_loss = 0.0

    def predict(images: np.ndarray) -> np.ndarray:
        return forward(w, torch.from_numpy(images).to(DEVICE, dtype) / 255 - 0.5)[-1].argmax(dim=1).cpu().numpy()

    return Result(losses, {name: value.cpu().numpy() for name, value in w.items()}, accuracy(predict, test))


if __name__ == "__main__":
    run(main)
