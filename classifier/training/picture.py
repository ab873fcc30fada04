"""A picture of a training's first images as the network sees them: augmented, erased and mixed."""

from __future__ import annotations

import io

import torch
from PIL import Image
from torch import Tensor

from classifier.data.dataset import Split
from classifier.networks.model import Classifier, normalized
from classifier.params import TrainParams
from classifier.training.augmentation import Augmentation
from classifier.training.mixing import Mixing
from classifier.training.parts import split
from classifier.training.steps import plan_epoch

COLUMNS, ROWS = 10, 6
SMALLEST = 64  # pixels of an image's side in the picture; smaller images are enlarged


def augmented_batch(classifier: Classifier, train: Split, params: TrainParams, parts: int) -> bytes | None:
    """The first images of the first batch, which is computed in `parts`, as PNG; None where nothing is augmented.

    Equal input gives equal bytes.
    """
    size, batch = train.shape[-1], torch.arange(min(len(train), params.batch_size))
    order, draws = plan_epoch(torch.from_numpy(train.labels), size, 1, params.seed, params)
    if not draws:
        return None
    augment, mix = Augmentation(params.augment, size), Mixing(params.augment, size)
    offset, scale = classifier.offset.cpu(), classifier.scale.cpu()
    shown: list[Tensor] = []
    for part in split(batch, parts):
        if len(shown) >= COLUMNS * ROWS:
            break
        places = torch.cat([part[-1:], part[: COLUMNS * ROWS]])  # the first image is mixed with the part's last
        picked, drawn = order[places], {name: values[places] for name, values in draws.items()}
        moved = augment(torch.from_numpy(train.take(picked.numpy())), drawn)
        seen, _ = mix(normalized(moved, offset, scale), picked, drawn)
        shown += seen[1:]
    images = torch.stack(shown[: COLUMNS * ROWS])
    return _png(((images - offset) / scale).round().clamp(0, 255).to(torch.uint8))


def _png(images: Tensor) -> bytes:
    """Images `(N, C, S, S) uint8` side by side, in rows, on white."""
    count, channels, size, _ = images.shape
    times, columns = max(1, SMALLEST // size), min(COLUMNS, count)
    cell = size * times + 2  # with a margin
    rows = -(-count // columns)
    canvas = torch.full((channels, rows * cell, columns * cell), 255, dtype=torch.uint8)
    for number, image in enumerate(images.repeat_interleave(times, -1).repeat_interleave(times, -2)):
        top, left = number // columns * cell + 1, number % columns * cell + 1
        canvas[:, top : top + size * times, left : left + size * times] = image
    pixels = canvas[0] if channels == 1 else canvas[:3].permute(1, 2, 0)
    content = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(content, "PNG")
    return content.getvalue()
