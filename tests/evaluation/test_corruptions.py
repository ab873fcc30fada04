"""Corrupted images: what each kind does, and that it always does the same."""

import hashlib
import math

import numpy as np
import pytest
from PIL import Image

from classifier.evaluation.corruptions import (
    BLUR,
    BRIGHTNESS,
    CONTRAST,
    KINDS,
    NOISE,
    OCCLUSION,
    ROTATION,
    STRENGTHS,
    TRANSLATION,
    corrupt,
)
from tests.evaluation.samples import images_of
from tests.samples import all_digits

EACH = [(kind, strength) for kind in KINDS for strength in STRENGTHS]


def test_there_are_eight_kinds_and_params_allow_exactly_these() -> None:
    from classifier.params import EvaluateParams

    (allowed,) = EvaluateParams.model_fields["corruptions"].annotation.__args__
    assert list(KINDS) == list(allowed.__args__)
    assert len(KINDS) == 8


@pytest.mark.parametrize(("channels", "size"), [(1, 32), (3, 32), (3, 67), (1, 1), (2, 9)])
@pytest.mark.parametrize("kind", KINDS)
def test_shape_type_and_input_stay_and_pixels_change(kind: str, channels: int, size: int) -> None:
    images = images_of(3, channels, size)
    before = images.copy()
    for strength in STRENGTHS:
        corrupted = corrupt(images, kind, strength)
        assert corrupted.shape == images.shape
        assert corrupted.dtype == np.uint8
        assert size < 32 or (corrupted != images).any()
    assert np.array_equal(images, before)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_corrupted_the_same_in_any_batch_and_order(kind: str) -> None:
    images = all_digits().images[:20]
    together = corrupt(images, kind, 3)
    assert np.array_equal(corrupt(images[::-1], kind, 3), together[::-1])
    assert np.array_equal(corrupt(images[7:8], kind, 3), together[7:8])


def test_the_bits_are_those_of_every_machine() -> None:
    """JPEG aside, whose bits are those of the installed Pillow."""
    images, digest = images_of(5, 3, 40), hashlib.sha256()
    for kind, strength in EACH:
        if kind != "jpeg":
            digest.update(corrupt(images, kind, strength).tobytes())
    assert digest.hexdigest() == "2b168e81548791ba8bf9a59357dde32d65f7c8521db00208bc69b5c8215b63e8"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "occlusion"])
def test_a_higher_strength_changes_more(kind: str) -> None:
    images = all_digits().images[:100].astype(float)
    change = [np.abs(corrupt(images.astype(np.uint8), kind, strength) - images).mean() for strength in STRENGTHS]
    assert change == sorted(change)
    assert change[-1] > 1.5 * change[0] > 0


def test_noise_is_gaussian_with_its_standard_deviation() -> None:
    gray = np.full((4, 3, 64, 64), 128, dtype=np.uint8)
    gray[:, 0, 0, 0] = [1, 2, 3, 4]  # images of the same pixels get the same noise
    for strength, share in zip(STRENGTHS, NOISE, strict=True):
        noise = corrupt(gray, "noise", strength).astype(float)[:, :, 1:, 1:] - 128
        assert noise.std() == pytest.approx(share * 255, rel=0.02)
        assert abs(noise.mean()) < 0.02 * share * 255 + 0.2
        assert np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1] == pytest.approx(0, abs=0.03)
        assert np.corrcoef(noise[0, 0].ravel(), noise[0, 1].ravel())[0, 1] == pytest.approx(0, abs=0.06)
        assert (np.abs(noise) < share * 255).mean() == pytest.approx(0.68, abs=0.02)


def test_blur_is_a_gaussian_that_keeps_flat_images() -> None:
    from scipy.ndimage import gaussian_filter

    flat = np.full((1, 3, 50, 50), 77, dtype=np.uint8)
    image = images_of(1, 1, 100)
    for strength, share in zip(STRENGTHS, BLUR, strict=True):
        assert (corrupt(flat, "blur", strength) == 77).all()
        sigma = share * 100
        expected = gaussian_filter(image[0, 0].astype(float), sigma, mode="nearest", radius=math.ceil(3 * sigma))
        assert np.abs(corrupt(image, "blur", strength)[0, 0] - expected).max() < 1.1


def test_brightness_is_added_up_to_white() -> None:
    image = np.array([[[[0, 100], [200, 255]]]], dtype=np.uint8)
    for strength, share in zip(STRENGTHS, BRIGHTNESS, strict=True):
        expected = np.minimum(image.astype(int) + round(255 * share), 255)
        assert np.array_equal(corrupt(image, "brightness", strength), expected)


def test_contrast_shrinks_towards_the_mean_of_each_channel() -> None:
    image = np.zeros((1, 2, 10, 10), dtype=np.uint8)
    image[0, 0, :5], image[0, 1, :, :5] = 200, 100
    for strength, share in zip(STRENGTHS, CONTRAST, strict=True):
        found = corrupt(image, "contrast", strength)
        assert sorted(np.unique(found[0, 0])) == [
            pytest.approx(100 - share * 100, abs=1),
            pytest.approx(100 + share * 100, abs=1),
        ]
        assert sorted(np.unique(found[0, 1])) == [
            pytest.approx(50 - share * 50, abs=1),
            pytest.approx(50 + share * 50, abs=1),
        ]


def test_rotation_is_pillows_in_both_directions() -> None:
    images = all_digits().images[:30]
    directions = set()
    for strength, degrees in zip(STRENGTHS, ROTATION, strict=True):
        for image, found in zip(images[:, 0], corrupt(images, "rotation", strength)[:, 0], strict=True):
            turned = {
                sign: np.asarray(Image.fromarray(image).rotate(sign * degrees, Image.Resampling.BILINEAR)).astype(float)
                for sign in (1, -1)
            }
            inner = (slice(4, -4), slice(4, -4))  # the edge's pixels go on outside here, there it is black
            errors = {sign: np.abs(found[inner] - each[inner]).mean() for sign, each in turned.items()}
            directions.add(min(errors, key=lambda sign: errors[sign]))
            assert min(errors.values()) < 2
    assert directions == {1, -1}


def test_translation_moves_by_its_share_in_eight_directions() -> None:
    images = np.zeros((200, 1, 50, 50), dtype=np.uint8)
    images[:, 0, 25, 25] = np.arange(56, 256)
    for strength, share in zip(STRENGTHS, TRANSLATION, strict=True):
        moved = corrupt(images, "translation", strength)
        places = {tuple(np.argwhere(image[0])[0] - 25) for image in moved}
        by = round(50 * share)
        assert places == {(by * y, by * x) for y in (-1, 0, 1) for x in (-1, 0, 1)} - {(0, 0)}


def test_jpeg_keeps_colours_and_adds_artefacts() -> None:
    images = images_of(4, 3, 64)
    for strength in STRENGTHS:
        found = corrupt(images, "jpeg", strength).astype(float)
        assert 0 < np.abs(found - images).mean() < 40
        assert np.corrcoef(found.ravel(), images.ravel())[0, 1] > 0.8


def test_occlusion_is_a_gray_square_within_the_image() -> None:
    images = np.zeros((50, 3, 40, 40), dtype=np.uint8)
    images[:, 0] = np.arange(50, dtype=np.uint8)[:, None, None]
    corners = set()
    for strength, share in zip(STRENGTHS, OCCLUSION, strict=True):
        for image in corrupt(images, "occlusion", strength):
            gray = np.argwhere((image == 128).all(axis=0))
            side = round(40 * share)
            assert len(gray) == side**2
            assert (gray.max(axis=0) - gray.min(axis=0) == side - 1).all()
            corners.add(tuple(gray.min(axis=0)))
    assert len(corners) > 100
