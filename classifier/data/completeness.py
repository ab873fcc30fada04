"""Whether a file holds all rows of its image: Pillow leaves those that a PNG or TIFF lacks black, without an error."""

from __future__ import annotations

import zlib
from struct import unpack_from

from PIL import Image

# PNG (ISO/IEC 15948)
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # type of colour -> values of a pixel
# First column and row of each pass of an interlaced image, and the steps to the next.
ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
BLOCK = 1 << 16  # bytes

# Tags of TIFF 6.0
WIDTH, LENGTH, BITS, PLANES = 256, 257, 258, 284
STRIPS, STRIP_ROWS, TILES, TILE_WIDTH, TILE_LENGTH = 273, 278, 324, 322, 323


def lacks_rows(image: Image.Image, content: bytes) -> bool:
    """`image`: opened from `content` and loaded, and not changed since."""
    if image.format == "PNG":
        return _may_lack_rows(image) and _ends_early(content)
    return image.format == "TIFF" and _lacks_strips(image.tag_v2)  # type: ignore[attr-defined]


def _may_lack_rows(image: Image.Image) -> bool:
    """Whether one of the last two rows is zero. Those of an interlaced image come with different passes."""
    last = [image.crop((0, row, image.width, row + 1)) for row in range(max(0, image.height - 2), image.height)]
    return not all(any(row.tobytes()) for row in last)


def _ends_early(content: bytes) -> bool:
    """Whether the compressed data of a PNG hold fewer bytes than its header says."""
    width, height, depth, colour, _, _, interlaced = unpack_from(">IIBBBBB", content, 16)
    passes = ADAM7 if interlaced else [(0, 0, 1, 1)]
    sizes = [(-(-(width - x) // across), -(-(height - y) // down)) for x, y, across, down in passes]
    left = sum(rows * (1 + -(-columns * depth * CHANNELS[colour] // 8)) for columns, rows in sizes if columns > 0)
    stream, place = zlib.decompressobj(), 8
    while left > 0 and place + 8 <= len(content):
        length, name = unpack_from(">I4s", content, place)
        data = content[place + 8 : place + 8 + length] if name == b"IDAT" else b""
        while left > 0 and data and not stream.eof:
            left -= len(stream.decompress(data, BLOCK))
            data = stream.unconsumed_tail
        place += length + 12
    return bool(left > 0)


def _lacks_strips(tags: Image.Exif) -> bool:
    """Whether a TIFF has fewer strips or tiles than its size needs."""
    width, length = tags[WIDTH], tags[LENGTH]
    if TILES in tags:
        found, needed = tags[TILES], -(-width // tags[TILE_WIDTH]) * -(-length // tags[TILE_LENGTH])
    else:
        found, needed = tags[STRIPS], -(-length // min(length, tags.get(STRIP_ROWS, length)))
    planes = len(tags[BITS]) if tags.get(PLANES) == 2 else 1
    return bool(len(found) < planes * needed)
