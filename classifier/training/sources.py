"""Where the images of a training are: all on the device, or in their files, from which a thread reads ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from classifier.data.dataset import Split, StoredSplit
from classifier.device import free_memory

AHEAD = 2  # batches that are read before they are needed
RESIDENT_SHARE = 0.5  # of the free memory, for images at most


def are_resident(choice: str, splits: Sequence[Split], device: torch.device) -> bool:
    """Whether the images of `splits` are kept on the device, as `choice` (`train.data`) says; auto: if they fit.

    On a CPU, images in several files are streamed: training starts at once, and has them in memory after an epoch.
    """
    if choice != "auto":
        return choice == "resident"
    if device.type == "cpu" and any(isinstance(split, StoredSplit) for split in splits):
        return False
    size = sum(len(split) * int(np.prod(split.shape)) for split in splits)  # bytes
    return size <= RESIDENT_SHARE * free_memory(device)


class OnDisk:
    """The images of a split, read by slices when they are needed: `(N, C, H, W) uint8` on the device."""

    def __init__(self, split: Split, device: torch.device) -> None:
        self.split, self.device = split, device
        self.shape = (len(split), *split.shape)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, rows: slice) -> Tensor:
        return self.read(torch.arange(*rows.indices(len(self)))).to(self.device)

    def read(self, picked: Tensor) -> Tensor:
        """The images at `picked`; for CUDA in pinned memory, from which a GPU copies while it computes."""
        images = torch.from_numpy(self.split.take(picked.numpy()))
        return images.pin_memory() if self.device.type == "cuda" else images


class ReadAhead:
    """Images that a thread reads in the order of the requests."""

    def __init__(self, images: OnDisk) -> None:
        self.images = images
        self.reader = ThreadPoolExecutor(1)  # its thread starts with the first image, after processes were forked
        self.coming: deque[Future[Tensor]] = deque()

    def ask(self, picked: Tensor) -> None:
        self.coming.append(self.reader.submit(self.images.read, picked))

    def next(self) -> Tensor:
        return self.coming.popleft().result().to(self.images.device, non_blocking=True)

    def forget(self) -> None:
        self.coming.clear()
