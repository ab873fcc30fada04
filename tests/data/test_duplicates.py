from __future__ import annotations

import hashlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from classifier.data.duplicates import SIDE, find_duplicates, hashes, mostly_background, near_pairs, thumbnails
from classifier.data.pixels import Preprocessing, decode_in_box
from tests.difficult import file_of

RULE = Preprocessing(image_size=48, margin=0, resize="pad", channels=3, invert=False)


def texture(seed: int, size: tuple[int, int] = (60, 90)) -> Image.Image:
    """Waves of random direction, length and colour: each seed is another picture."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    waves = sum(
        np.sin(x * a + y * b + c)[..., None] * generator.normal(0, 25, 3)
        for a, b, c in generator.uniform(-0.35, 0.35, (12, 3)) * [1, 1, 9]
    )
    return Image.fromarray((128 + waves).clip(0, 255).astype(np.uint8))


def thumbs_of(*images: Image.Image) -> np.ndarray:
    decoded = [decode_in_box(file_of(image, "PNG"), RULE) for image in images]
    return thumbnails(np.stack([pixels for pixels, _ in decoded]), [box for _, box in decoded])


def near(thumbs: np.ndarray) -> set[tuple[int, int]]:
    pairs = near_pairs(hashes(thumbs), thumbs, np.arange(len(thumbs)))
    return set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))


def test_a_thumbnail_is_the_means_of_areas_in_the_luma_of_pillow():
    image = np.random.default_rng(0).integers(0, 256, (1, 3, 40, 56), np.uint8)
    gray = np.asarray(Image.fromarray(image[0].transpose(1, 2, 0)).convert("L")).astype(int)
    found = thumbnails(image)
    rows, columns = np.arange(SIDE + 1) * 40 // SIDE, np.arange(SIDE + 1) * 56 // SIDE
    for y in range(SIDE):
        for x in range(SIDE):
            part = gray[rows[y] : rows[y + 1], columns[x] : columns[x + 1]]
            assert found[0, y, x] == (part.sum() + part.size // 2) // part.size
    assert np.array_equal(thumbnails(image, [(8, 4, 48, 36)]), thumbnails(image[:, :, 4:36, 8:48]))


def test_copies_that_were_changed_are_near_duplicates_and_other_pictures_are_not():
    pictures = [texture(seed) for seed in range(60)]
    first = pictures[7]
    copies = [
        ImageEnhance.Brightness(first).enhance(1.15),
        ImageEnhance.Contrast(first).enhance(0.7),
        first.resize((45, 30), Image.Resampling.BICUBIC),
        first.convert("L").convert("RGB"),
    ]
    pairs = near(thumbs_of(*pictures, *copies))
    assert {(7, 60 + number) for number in range(4)} <= pairs
    assert {place for pair in pairs for place in pair} == {7, 60, 61, 62, 63}


def test_a_copy_of_each_picture_at_jpeg_quality_40_is_its_near_duplicate_and_no_other_is():
    pictures = [texture(seed) for seed in range(60)]
    copies = [Image.open(BytesIO(file_of(picture, "JPEG", quality=40))) for picture in pictures]
    assert near(thumbs_of(*pictures, *copies)) == {(number, 60 + number) for number in range(60)}


def test_padding_makes_no_pictures_alike():
    thin = [texture(seed, (30, 120)) for seed in range(40)]
    assert near(thumbs_of(*thin)) == set()


def test_images_that_are_mostly_background_must_agree_much_better():
    figures = np.zeros((3, 1, 32, 32), np.uint8)
    figures[0, 0, 6:26, 14:18] = 255
    figures[1, 0, 6:26, 15:18] = 255  # another stroke of the same kind
    figures[2, 0, 6:26, 14:18] = 250  # a copy
    thumbs = thumbnails(figures)
    assert mostly_background(thumbs).all()
    assert near(thumbs) == {(0, 2)}
    assert not mostly_background(thumbs_of(*(texture(seed) for seed in range(20)))).any()


def test_the_search_by_bands_finds_what_comparing_all_pairs_finds():
    generator = np.random.default_rng(0)
    thumbs = thumbs_of(*(texture(seed) for seed in range(50)))
    noise = generator.integers(-6, 7, (6, *thumbs.shape))
    thumbs = (thumbs + noise).clip(0, 255).astype(np.uint8).reshape(-1, SIDE, SIDE)
    keys = hashes(thumbs)
    flat = thumbs.reshape(len(thumbs), -1).astype(float)
    expected = {
        (a, b)
        for a in range(len(thumbs))
        for b in range(a + 1, len(thumbs))
        if np.bitwise_count(keys[a] ^ keys[b]) <= 7 and np.corrcoef(flat[a], flat[b])[0, 1] >= 0.97
    }
    assert len(expected) > 200
    assert near(thumbs) == expected


def test_pairs_leaks_and_the_images_that_leak():
    pictures = [np.asarray(texture(seed).resize((32, 32))).transpose(2, 0, 1) for seed in range(6)]
    same = [0, 1, 2, 3, 0, 0, 1, 4]
    images = np.ascontiguousarray(np.stack([pictures[number] for number in same]))
    images[6] = (images[6] + 3.0).clip(0, 255).astype(np.uint8)  # a near duplicate of image 1
    splits = np.array([0, 0, 1, 0, 0, 2, 1, 2], np.int8)
    digests = np.stack([np.frombuffer(hashlib.sha256(image).digest(), np.uint8) for image in images])
    found = find_duplicates(digests, thumbnails(images), splits)
    pairs = list(zip(found.pairs.first.tolist(), found.pairs.second.tolist(), strict=True))
    assert pairs == [(0, 4), (0, 5), (1, 6)]
    assert found.pairs.exact.tolist() == [True, True, False]
    assert found.crossing.tolist() == [False, True, True]
    assert found.leaking.tolist() == [0, 1, 4], "image 4 is paired with image 0, and equals the test image too"


@pytest.mark.parametrize("count", [0, 1])
def test_no_images_have_no_duplicates(count):
    images = np.zeros((count, 1, 8, 8), np.uint8)
    found = find_duplicates(np.zeros((count, 32), np.uint8), thumbnails(images), np.zeros(count, np.int8))
    assert (len(found.pairs), len(found.leaking)) == (0, 0)
