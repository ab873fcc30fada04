from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from classifier.data.dataset import known_preprocessing
from classifier.data.pixels import BadImageError, Preprocessing, decode

GENERATOR = np.random.default_rng(0)


def rule(**values: Any) -> Preprocessing:
    given = {"image_size": 8, "margin": 0, "resize": "stretch", "channels": 3, "invert": False}
    return Preprocessing.model_validate(given | values)


def file_of(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_an_original_of_a_known_set_becomes_its_canonical_pixels():
    gray, colour = GENERATOR.integers(0, 256, (28, 28), np.uint8), GENERATOR.integers(0, 256, (32, 32, 3), np.uint8)
    found = decode(file_of(Image.fromarray(gray)), known_preprocessing(1))
    assert np.array_equal(found, np.pad(gray, 2)[None])
    found = decode(file_of(Image.fromarray(colour)), known_preprocessing(3))
    assert np.array_equal(found, colour.transpose(2, 0, 1))


def test_what_is_no_image_is_refused_with_its_reason():
    for content, reason in [(b"", "an empty file"), (b"hello", "not an image"), (b"%PDF-1.7", "PDF, which is not")]:
        with pytest.raises(BadImageError, match=reason):
            decode(content, rule())
