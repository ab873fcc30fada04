"""Draw the outputs of LeNet-5's layers for one image, computed by numpy alone.

    python examples/three_levels/layers.py docs/images/layers.png

The network is trained on the digits first, which takes some seconds.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy_alone import forward, main
from tutorial import Settings, load

from classifier.evaluation.style import BLUE, MUTED, ORANGE, png

SETTINGS = Settings(data="digits", batch_size=32, learning_rate=0.05, epochs=8)


def tiled(maps: np.ndarray, columns: int) -> np.ndarray:
    """(K, H, W) -> one picture of all maps, on one scale from black (0) to white, with white lines between them."""
    maps = maps / maps.max()
    framed = np.pad(maps, ((0, 0), (1, 1), (1, 1)), constant_values=1.0)
    k, h, w = framed.shape
    return framed.reshape(k // columns, columns, h, w).swapaxes(1, 2).reshape(k // columns * h, columns * w)


@png
def layers(image: np.ndarray, outputs: tuple[np.ndarray, ...], label: int) -> Figure:
    """From left to right: the image, the maps of each convolution and pooling, the linear layers, the classes.

    image: `(32, 32) uint8`; outputs: those of `forward` for it.
    """
    c1, p1, _, c2, p2, _, _, f1, f2, logits = (output[0] for output in outputs)
    probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    panels = (
        ("image\n1 x 32 x 32", image, 1.0),
        ("conv1, ReLU\n6 x 28 x 28", tiled(c1, 2), 1.0),
        ("max pooling\n6 x 14 x 14", tiled(p1, 2), 0.8),
        ("conv2, ReLU\n16 x 10 x 10", tiled(c2, 4), 1.2),
        ("max pooling\n16 x 5 x 5", tiled(p2, 4), 0.8),
        ("fc1, ReLU\n120", f1.reshape(20, 6), 0.4),
        ("fc2, ReLU\n84", f2.reshape(14, 6), 0.4),
    )
    figure = Figure(figsize=(11, 2.9), layout="constrained")
    axes = figure.subplots(1, len(panels) + 1, width_ratios=[*(width for *_, width in panels), 1.0])
    for place, (title, picture, _) in zip(axes, panels, strict=False):
        place.imshow(picture, cmap="gray", interpolation="nearest")
        place.set_title(title, size=8)
        place.set_anchor("N")
        place.axis("off")
    colors = [ORANGE if digit == label else BLUE for digit in range(10)]
    axes[-1].barh(range(10), probabilities, color=colors)
    axes[-1].set_yticks(range(10))
    axes[-1].invert_yaxis()
    axes[-1].set_title("fc3, softmax\n10 classes", size=8)
    axes[-1].tick_params(labelsize=8, labelcolor=MUTED)
    axes[-1].set_xlim(0, 1)
    return figure


if __name__ == "__main__":
    weights = main(SETTINGS).weights
    _, test = load(SETTINGS)
    chosen = int(np.flatnonzero(test.labels == 4)[3])
    x = test.images[chosen : chosen + 1].astype("float32") / 255 - 0.5
    Path(sys.argv[1]).write_bytes(layers(test.images[chosen, 0], forward(weights, x), int(test.labels[chosen])))
