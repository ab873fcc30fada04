"""Image files with mutated bytes: each gives pixels, or is refused with a reason."""

from __future__ import annotations

import random
from contextlib import suppress
from io import BytesIO

from PIL import Image

from classifier.data import pixels
from classifier.data.pixels import FORMATS, BadImageError
from tests.faults import fuzz


def test_mutated_image_files_give_pixels_or_a_reason(attack, monkeypatch):
    """A million pixels are allowed here, so that files whose headers claim many more take no time."""
    row = attack("mutated image files of every kind")
    monkeypatch.setattr(pixels, "LARGEST_PIXELS", 1 << 20)
    readers = fuzz.image_readers()
    assert {Image.open(BytesIO(reader.content)).format for reader in readers} >= set(FORMATS)
    for reader in readers:
        for number in row.some(range(500)):
            content = fuzz.mutated(reader.content, random.Random(f"{reader.name} {number}"))
            with row.case(f"{reader.name} {number}"), suppress(BadImageError):
                reader.feed(content)
    row.verdict()
