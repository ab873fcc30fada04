"""LeNet-5 in numpy alone: the forward pass, and the backward pass derived by hand with the chain rule.

    python examples/three_levels/numpy_alone.py

In every formula, g is the gradient of the loss with respect to a layer's output. The layer's backward pass computes the
gradients with respect to its weights (dw, db) and its input (dx) from it. This dx is the g of the layer before.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from tutorial import Result, Settings, Weights, accuracy, batches, initial_weights, load, run

Array = np.ndarray


def convolution(x: Array, w: Array, b: Array) -> Array:
    """y[n,k,i,j] = b[k] + sum over c,u,v of x[n,c,i+u,j+v] w[k,c,u,v]: (N, C, H, W) -> (N, K, H-4, W-4)."""
    windows = sliding_window_view(x, (5, 5), axis=(2, 3))  # (N, C, H-4, W-4, 5, 5), a view: nothing is copied
    y = np.tensordot(windows, w, axes=((1, 4, 5), (1, 2, 3)))  # one matrix product, (N, H-4, W-4, K)
    return y.transpose(0, 3, 1, 2) + b[:, None, None]


def convolution_backward(g: Array, x: Array) -> tuple[Array, Array]:
    """dw[k,c,u,v] = sum over n,i,j of g[n,k,i,j] x[n,c,i+u,j+v], and db[k] = sum over n,i,j of g[n,k,i,j]."""
    windows = sliding_window_view(x, (5, 5), axis=(2, 3))
    return np.tensordot(g, windows, axes=((0, 2, 3), (0, 2, 3))), g.sum(axis=(0, 2, 3))


def convolution_input_gradient(g: Array, w: Array) -> Array:
    """dx[n,c,i+u,j+v] is the sum of g[n,k,i,j] w[k,c,u,v]: the transposed convolution."""
    n, _, h, width = g.shape
    shares = np.tensordot(w, g, axes=(0, 1))  # (C, 5, 5, N, H-4, W-4)
    dx = np.zeros((n, w.shape[1], h + 4, width + 4), g.dtype)
    for u, v in np.ndindex(5, 5):
        dx[:, :, u : u + h, v : v + width] += shares[:, u, v].swapaxes(0, 1)
    return dx


def max_pooling(x: Array) -> tuple[Array, Array]:
    """The largest of each 2x2 window, and which of the four it is: (N, C, H, W) -> twice (N, C, H/2, W/2)."""
    fours = np.stack([x[:, :, i::2, j::2] for i, j in np.ndindex(2, 2)])  # (4, N, C, H/2, W/2)
    return fours.max(axis=0), fours.argmax(axis=0)


def max_pooling_backward(g: Array, chosen: Array) -> Array:
    """The largest of a window gets the whole gradient, the other three get nothing."""
    dx = np.empty((*g.shape[:2], 2 * g.shape[2], 2 * g.shape[3]), g.dtype)
    for number, (i, j) in enumerate(np.ndindex(2, 2)):
        dx[:, :, i::2, j::2] = g * (chosen == number)
    return dx


def forward(w: Weights, x: Array) -> tuple[Array, ...]:
    """Every layer's output, the logits last."""
    c1 = np.maximum(convolution(x, w["conv1.weight"], w["conv1.bias"]), 0)  # (N, 6, 28, 28)
    p1, chosen1 = max_pooling(c1)  # (N, 6, 14, 14)
    c2 = np.maximum(convolution(p1, w["conv2.weight"], w["conv2.bias"]), 0)  # (N, 16, 10, 10)
    p2, chosen2 = max_pooling(c2)  # (N, 16, 5, 5)
    flat = p2.reshape(len(x), -1)  # (N, 400)
    f1 = np.maximum(flat @ w["fc1.weight"].T + w["fc1.bias"], 0)  # (N, 120)
    f2 = np.maximum(f1 @ w["fc2.weight"].T + w["fc2.bias"], 0)  # (N, 84)
    return c1, p1, chosen1, c2, p2, chosen2, flat, f1, f2, f2 @ w["fc3.weight"].T + w["fc3.bias"]


def loss_and_gradients(w: Weights, x: Array, labels: Array) -> tuple[float, Weights]:
    """Mean cross entropy of a batch `(N, 1, 32, 32)`, and its gradient with respect to every weight."""
    c1, p1, chosen1, c2, p2, chosen2, flat, f1, f2, logits = forward(w, x)
    # Cross entropy: loss = -mean over n of log p[n, label n], where p = softmax(logits).
    # dloss/dlogits = (p - one-hot labels) / N.
    shifted = logits - logits.max(axis=1, keepdims=True)  # the same p, and exp cannot overflow
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    rows, d = np.arange(len(x)), {}
    loss = -log_p[rows, labels].mean()
    g = np.exp(log_p)
    g[rows, labels] -= 1
    g /= len(x)
    # Linear: y = x w^T + b, so dw = g^T x, db = sum over n of g, dx = g w. ReLU: y = max(x, 0), so dx = g where y > 0.
    d["fc3.weight"], d["fc3.bias"] = g.T @ f2, g.sum(axis=0)
    g = g @ w["fc3.weight"] * (f2 > 0)
    d["fc2.weight"], d["fc2.bias"] = g.T @ f1, g.sum(axis=0)
    g = g @ w["fc2.weight"] * (f1 > 0)
    d["fc1.weight"], d["fc1.bias"] = g.T @ flat, g.sum(axis=0)
    g = (g @ w["fc1.weight"]).reshape(p2.shape)
    g = max_pooling_backward(g, chosen2) * (c2 > 0)
    d["conv2.weight"], d["conv2.bias"] = convolution_backward(g, p1)
    g = max_pooling_backward(convolution_input_gradient(g, w["conv2.weight"]), chosen1) * (c1 > 0)
    d["conv1.weight"], d["conv1.bias"] = convolution_backward(g, x)
    return float(loss), d


def main(settings: Settings) -> Result:
    train, test = load(settings)
    w = initial_weights(settings)
    velocity = {name: np.zeros_like(value) for name, value in w.items()}
    losses = []
    for epoch in range(1, settings.epochs + 1):
        running_loss = 0.0
        for step, batch in enumerate(batches(len(train), epoch, settings), start=1):
            x = train.images[batch].astype(settings.precision) / 255 - 0.5  # the tutorial's Normalize((0.5,), (1.0,))
            loss, gradients = loss_and_gradients(w, x, train.labels[batch])
            for name, gradient in gradients.items():  # SGD with momentum
                velocity[name] = settings.momentum * velocity[name] + gradient
                w[name] -= settings.learning_rate * velocity[name]
            running_loss += loss
            if step % settings.log_every == 0:
                losses.append(running_loss / settings.log_every)
                print(f"[{epoch}, {step:5d}] loss: {losses[-1]:.3f}", flush=True)
                running_loss = 0.0

    def predict(images: Array) -> Array:
        return forward(w, images.astype(settings.precision) / 255 - 0.5)[-1].argmax(axis=1)

    return Result(losses, w, accuracy(predict, test))


if __name__ == "__main__":
    run(main)
