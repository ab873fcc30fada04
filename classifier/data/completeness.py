"""Whether a file holds all rows of its image: Pillow leaves those that a PNG or TIFF lacks black, without an error."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from struct import unpack_from
from typing import Any

from PIL import Image

# PNG (ISO/IEC 15948)
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # colour type -> values of a pixel
# First column and row of each pass of an interlaced image, and the steps to the next.
ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
BLOCK = 1 << 16  # bytes

# Tags of TIFF 6.0
WIDTH, LENGTH, COMPRESSION, SAMPLES, PLANES = 256, 257, 259, 277, 284
STRIPS, STRIP_ROWS, TILES, TILE_WIDTH, TILE_LENGTH = 273, 278, 324, 322, 323
UNCOMPRESSED, SEPARATE = 1, 2


def lacks_rows(image: Image.Image, content: bytes) -> bool:
    """Whether `content`, from which `image` was opened and loaded, holds fewer rows than its header says."""
    if image.format == "PNG":
        return _may_lack_rows(image) and _ends_early(content)
    return image.format == "TIFF" and _lacks_strips(image.tag_v2)  # type: ignore[attr-defined]


def _may_lack_rows(image: Image.Image) -> bool:
    """Whether one of the last two rows is zero. Those of an interlaced image come with different passes."""
    last = [image.crop((0, row, image.width, row + 1)) for row in range(max(0, image.height - 2), image.height)]
    return len(last) < 2 or not all(any(row.tobytes()) for row in last)


def _ends_early(content: bytes) -> bool:
    """Whether the compressed data of a PNG hold fewer bytes than its header says."""
    width, height, depth, colour, _, _, interlaced = unpack_from(">IIBBBBB", content, 16)
    passes = ADAM7 if interlaced else [(0, 0, 1, 1)]
    sizes = [(-(-(width - x) // across), -(-(height - y) // down)) for x, y, across, down in passes]
    left = sum(rows * (1 + -(-columns * depth * CHANNELS[colour] // 8)) for columns, rows in sizes if columns > 0)
    stream = zlib.decompressobj()
    for data in _compressed(content):
        while left > 0 and data and not stream.eof:
            left -= len(stream.decompress(data, BLOCK))
            data = stream.unconsumed_tail
    return bool(left > 0)


def _compressed(content: bytes) -> Iterator[bytes]:
    """The image data of a PNG, in blocks."""
    place = 8
    while place + 8 <= len(content):
        length, name = unpack_from(">I4s", content, place)
        if name == b"IDAT":
            for start in range(place + 8, place + 8 + length, BLOCK):
                yield content[start : min(start + BLOCK, place + 8 + length)]
        place += length + 12


def _lacks_strips(tags: Any) -> bool:
    """Whether an uncompressed TIFF has fewer strips or tiles than its size needs. Pillow reports others itself."""
    width, length = tags[WIDTH], tags[LENGTH]
    if TILES in tags:
        found, needed = tags[TILES], -(-width // tags[TILE_WIDTH]) * -(-length // tags[TILE_LENGTH])
    else:
        found, needed = tags.get(STRIPS, ()), -(-length // min(length, tags.get(STRIP_ROWS, length)))
    planes = tags.get(SAMPLES, 1) if tags.get(PLANES) == SEPARATE else 1
    return bool(tags.get(COMPRESSION, UNCOMPRESSED) == UNCOMPRESSED and len(found) < planes * needed)
