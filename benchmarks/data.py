"""Convert a normalized folder to other forms.

python -m benchmarks.data idx FOLDER ROOT           the original files that torchvision's MNIST reads
python -m benchmarks.data resize FOLDER OTHER N     the first N training images, repeated if there are fewer
python -m benchmarks.data enlarge FOLDER OTHER N    the same, with every pixel repeated in both directions: 96x96
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np

from classifier.data.dataset import SPLITS, Split, read_meta, read_split, write_meta, write_split

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
    """A normalized folder whose training split has `count` images, `times` as large; the other splits are empty."""
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


if __name__ == "__main__":
    source, target = Path(sys.argv[2]), Path(sys.argv[3])
    if sys.argv[1] == "idx":
        write_idx(source, target)
    else:
        resize(source, target, int(sys.argv[4]), times=LARGER if sys.argv[1] == "enlarge" else 1)
