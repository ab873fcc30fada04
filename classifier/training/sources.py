"""Where the images of a training are: all on the device, or in their files, from which threads read ahead."""

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
GPU_READERS = 4  # threads: a GPU trains faster than one of them reads
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
        pinned = self.device.type == "cuda"
        images = torch.empty((len(picked), *self.split.shape), dtype=torch.uint8, pin_memory=pinned)
        self.split.take(picked.numpy(), images.numpy())
        return images


class ReadAhead:
    """Images that threads read and copy to the device, and return in the order of the requests."""

    def __init__(self, images: OnDisk) -> None:
        self.images = images
        on_gpu = images.device.type == "cuda"
        # Threads start with the first image, after processes were forked. On a CPU, the other cores train.
        self.readers = ThreadPoolExecutor(1)
        if on_gpu:  # each thread has a current GPU of its own
            own = torch.cuda.current_device()
            self.readers = ThreadPoolExecutor(GPU_READERS, initializer=torch.cuda.set_device, initargs=(own,))
        self.ahead = AHEAD + GPU_READERS if on_gpu else AHEAD
        self.copies = torch.cuda.Stream(images.device) if on_gpu else None  # type: ignore[no-untyped-call]
        self.coming: deque[Future[tuple[Tensor, torch.cuda.Event | None]]] = deque()

    def ask(self, picked: Tensor) -> None:
        self.coming.append(self.readers.submit(self._fetch, picked))

    def _fetch(self, picked: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
        """The images on the device and, on a GPU, the event that marks the end of their copy."""
        images = self.images.read(picked)
        if not self.copies:
            return images.to(self.images.device), None
        with torch.cuda.stream(self.copies):
            return images.to(self.images.device, non_blocking=True), self.copies.record_event()

    def next(self) -> Tensor:
        images, copied = self.coming.popleft().result()
        if self.copies and copied:
            stream = torch.cuda.current_stream(self.images.device)
            self.copies.wait_stream(stream)  # copies to the previous images' memory go behind their use
            self.previous = images
            stream.wait_event(copied)
        return images

    def forget(self) -> None:
        self.coming.clear()
