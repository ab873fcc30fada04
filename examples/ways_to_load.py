"""Five ways to load the same images in the same order: the same batches, at very different speeds.

    python examples/ways_to_load.py

The images are scikit-learn's digits as the pipeline prepares them, ten passes in batches of 32. The time includes the
start of the worker processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info
from torchvision.datasets import ImageFolder
from torchvision.transforms import PILToTensor

from classifier.commands.recipe import apply
from classifier.data.dataset import Split, read_meta, read_split
from classifier.device import pick_device
from stages import download, normalize

BATCH, PASSES, WORKERS = 32, 10, 2
RECORD = 1 + 32 * 32  # bytes of an image in the stream: its label, then its pixels
Batch = tuple[Tensor, Tensor]  # images (B, 1, 32, 32) uint8, labels (B,) int64


# 1. Arrays in memory. Nothing is simpler, as long as the images fit there.
def from_arrays(split: Split, batches: list[np.ndarray]) -> Iterator[Batch]:
    for batch in batches:
        yield torch.from_numpy(split.images[batch]), torch.from_numpy(split.labels[batch])


# 2. A Dataset has a length and returns one image by its index. A DataLoader collects them into batches, in worker
#    processes: worth it when an image takes long to read or to transform.
class Digits(Dataset[tuple[Tensor, int]]):
    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.from_numpy(self.split.images[index]), int(self.split.labels[index])


def from_dataset(split: Split, batches: list[np.ndarray]) -> Iterable[Batch]:
    return DataLoader(Digits(split), batch_sampler=[batch.tolist() for batch in batches], num_workers=WORKERS)


# 3. A folder of image files, with a folder inside it for each class, as people keep their own photos.
def write_folder(folder: Path, split: Split) -> None:
    for index, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
        path = folder / str(label) / f"{index:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(path)


def open_gray(path: str) -> Image.Image:
    return Image.open(path).convert("L")  # ImageFolder would make RGB of it


def from_folder(folder: Path, batches: list[np.ndarray]) -> Iterable[Batch]:
    dataset = ImageFolder(str(folder), transform=PILToTensor(), loader=open_gray)
    places = {int(Path(path).stem): place for place, (path, _) in enumerate(dataset.samples)}  # sorted by class
    order = [[places[index] for index in batch.tolist()] for batch in batches]
    return DataLoader(dataset, batch_sampler=order, num_workers=WORKERS)


# 4. A stream is read from its start to its end, because it comes over a network, or is larger than any disk. It cannot
#    be shuffled, so it is written in the order of training. Each worker reads every WORKERS-th batch.
def write_stream(path: Path, split: Split, batches: list[np.ndarray]) -> None:
    order = np.concatenate(batches)
    pixels = split.images[order].reshape(len(order), -1)
    path.write_bytes(np.column_stack([split.labels[order].astype(np.uint8), pixels]).tobytes())


class Stream(IterableDataset[Batch]):
    def __init__(self, path: Path, sizes: list[int]) -> None:
        self.path, self.sizes = path, sizes

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        mine, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        with self.path.open("rb") as file:
            for number, size in enumerate(self.sizes):
                if number % workers != mine:
                    file.seek(size * RECORD, 1)  # another worker's
                    continue
                records = torch.frombuffer(bytearray(file.read(size * RECORD)), dtype=torch.uint8).view(size, RECORD)
                yield records[:, 1:].reshape(size, 1, 32, 32), records[:, 0].long()


def from_stream(path: Path, batches: list[np.ndarray]) -> Iterable[Batch]:
    return DataLoader(Stream(path, [len(batch) for batch in batches]), batch_size=None, num_workers=WORKERS)


# 5. The pipeline's own file, verified and memory-mapped. The engine copies all of it to the device once; there, a batch
#    is a single gather of rows.
def from_pipeline(data: Path, batches: list[np.ndarray]) -> Iterator[Batch]:
    split, device = read_split(data, "train", read_meta(data)), pick_device("auto", "device")
    images, labels = torch.from_numpy(split.images).to(device), torch.from_numpy(split.labels).to(device)
    for batch in batches:
        picked = torch.from_numpy(batch).to(device)
        yield images.index_select(0, picked), labels[picked]


def main() -> None:
    with TemporaryDirectory() as temporary:
        params, raw, data, report, photos, stream = (
            Path(temporary, name) for name in ("params.yaml", "raw", "normalized", "report", "photos", "stream")
        )
        defaults = Path(__file__).parents[1] / "params.yaml"
        params.write_text(apply(defaults.read_text(), {"download": {"dataset": "digits"}})[0])
        download.main([str(params), str(raw)])
        normalize.main([str(params), str(raw), str(data), str(report)])
        split, random = read_split(data, "train", read_meta(data)), np.random.default_rng(0)
        order = [random.permutation(len(split)) for _ in range(PASSES)]
        batches = [batch for each in order for batch in np.split(each, range(BATCH, len(each), BATCH))]
        write_folder(photos, split)
        write_stream(stream, split, batches)

        expected = list(from_arrays(split, batches))
        ways: dict[str, Callable[[], Iterable[Batch]]] = {
            "arrays in memory": lambda: from_arrays(split, batches),
            f"Dataset and DataLoader, {WORKERS} workers": lambda: from_dataset(split, batches),
            f"ImageFolder of PNG files, {WORKERS} workers": lambda: from_folder(photos, batches),
            f"IterableDataset, a stream, {WORKERS} workers": lambda: from_stream(stream, batches),
            "the pipeline's file, on the device": lambda: from_pipeline(data, batches),
        }
        for name, load in ways.items():
            start = perf_counter()
            found = list(load())
            seconds = perf_counter() - start
            for (images, labels), (same_images, same_labels) in zip(found, expected, strict=True):
                assert torch.equal(images.cpu(), same_images), name
                assert torch.equal(labels.cpu(), same_labels), name
            print(f"{name:40} {PASSES * len(split) / seconds:>12,.0f} images/s", flush=True)
        print(f"the same {len(expected)} batches from each")


if __name__ == "__main__":
    main()
