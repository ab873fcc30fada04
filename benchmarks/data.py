"""Convert a normalized folder to other forms.

python -m benchmarks.data idx FOLDER ROOT           the original files that torchvision's MNIST reads
python -m benchmarks.data resize FOLDER OTHER N     the first N training images, repeated if there are fewer
python -m benchmarks.data enlarge FOLDER OTHER N    the same, with every pixel repeated in both directions: 96x96
python -m benchmarks.data fill FOLDER OTHER N       N training images of random pixels, stored like a folder of photos
"""

from __future__ import annotations

import hashlib
import struct
import sys
from pathlib import Path

import numpy as np

from classifier.data.dataset import SPLITS, Split, read_meta, read_split, write_meta, write_split
from classifier.data.writing import SplitWriter

LARGER = 3  # times
EDGE = 2  # pixels of background around MNIST's 28 x 28


def write_idx(folder: Path, root: Path) -> None:
    """Write MNIST's four files, uncompressed, to `root`/MNIST/raw: 28 x 28 pixels."""
    meta, raw = read_meta(folder), root / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for name, prefix in (("train", "train"), ("test", "t10k")):
        split = read_split(folder, name, meta)
        images = split.images[:, 0, EDGE:-EDGE, EDGE:-EDGE]
        header = struct.pack(">iiii", 0x803, *images.shape)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = struct.pack(">ii", 0x801, len(split))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(header + split.labels.astype(np.uint8).tobytes())


def resize(folder: Path, other: Path, count: int, times: int = 1) -> None:
    """Write a normalized folder with `count` training images, enlarged `times` times, and empty other splits."""
    meta = read_meta(folder)
    train = read_split(folder, "train", meta)
    picked = {name: np.arange(count if name == "train" else 0) % len(train) for name in SPLITS}
    size = times * meta.size
    pixels = np.ones((1, 1, times, times), np.uint8)
    splits = {name: Split(np.kron(train.images[each], pixels), train.labels[each]) for name, each in picked.items()}
    counts = {
        name: np.bincount(split.labels, minlength=len(meta.class_names)).tolist() for name, split in splits.items()
    }
    other.mkdir(parents=True, exist_ok=True)
    files = {name: write_split(other, name, split) for name, split in splits.items()}
    preprocessing = meta.preprocessing.model_copy(update={"image_size": size})
    update = {"counts": counts, "files": files, "size": size, "preprocessing": preprocessing}
    write_meta(other, meta.model_copy(update=update))


def fill(folder: Path, other: Path, count: int) -> None:
    """Write a normalized folder with `count` training images of random colour pixels, and empty other splits."""
    meta, other_splits = read_meta(folder), SPLITS[1:]
    shape, classes = (3, meta.size, meta.size), len(meta.class_names)
    block = np.random.default_rng(0).integers(0, 256, (1000, *shape), np.uint8)
    digests = np.stack([np.frombuffer(hashlib.sha256(image).digest(), np.uint8) for image in block])
    labels, places = np.arange(count) % classes, np.arange(count) % len(block)
    other.mkdir(parents=True, exist_ok=True)
    writer = SplitWriter(other, "train", labels, digests[places], shape)
    for start in range(0, count, len(block)):
        writer.append(block[: count - start])
    files, of_labels = writer.close()
    empty = Split(block[:0], labels[:0])
    update = {
        "channels": 3,
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
        "ranges": None,
        "preprocessing": meta.preprocessing.model_copy(update={"channels": 3}),
        "counts": {name: [0] * classes for name in other_splits} | {"train": np.bincount(labels).tolist()},
        "files": {name: write_split(other, name, empty) for name in other_splits} | {"train": files},
        "labels": {"train": of_labels} if of_labels else {},
    }
    write_meta(other, meta.model_copy(update=update))


if __name__ == "__main__":
    source, target = Path(sys.argv[2]), Path(sys.argv[3])
    if sys.argv[1] == "idx":
        write_idx(source, target)
    elif sys.argv[1] == "fill":
        fill(source, target, int(sys.argv[4]))
    else:
        resize(source, target, int(sys.argv[4]), times=LARGER if sys.argv[1] == "enlarge" else 1)
