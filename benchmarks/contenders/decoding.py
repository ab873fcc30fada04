"""Only decode and resize the files of a folder, with the pipeline's decoder, on every core.

    python -m benchmarks.contenders.decoding FOLDER IMAGE_SIZE

Prints the seconds as `loop_s`, excluding imports and the listing of the files.
"""

from __future__ import annotations

import os
import sys
import time
from multiprocessing import get_context
from pathlib import Path

from benchmarks.contenders.stopwatch import say
from classifier.data.pixels import Preprocessing, decode

CHUNK = 256  # files that a process gets at once


def decode_files(paths: list[str], preprocessing: Preprocessing) -> int:
    """Return the sum of the pixels, so that every file is decoded completely."""
    return sum(int(decode(Path(path).read_bytes(), preprocessing).sum()) for path in paths)


def main(folder: str, size: str) -> None:
    paths = [f"{place}/{name}" for place, _, names in os.walk(folder) for name in names]
    preprocessing = Preprocessing(image_size=int(size), margin=0, resize="pad", channels=3, invert=False)
    tasks = [(paths[start : start + CHUNK], preprocessing) for start in range(0, len(paths), CHUNK)]
    start = time.monotonic()
    with get_context("fork").Pool(len(os.sched_getaffinity(0))) as pool:
        pool.starmap(decode_files, tasks, chunksize=1)
    say(loop_s=time.monotonic() - start, files=len(paths))


if __name__ == "__main__":
    main(*sys.argv[1:])
