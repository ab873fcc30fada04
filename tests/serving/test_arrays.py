"""What a model takes as images, and what it refuses, through every door."""

import base64
import warnings

import numpy as np
import pytest
import torch

from classifier.data.dataset import known_preprocessing
from classifier.data.pixels import BadImageError
from classifier.serving.arrays import InputError, pixels_of
from tests.serving.conftest import png

GRAY = known_preprocessing(1)
WANTED = "expected images of shape (N, 1, 32, 32), uint8 in 0..255"
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 1, 32, 32), dtype=np.uint8)
NORMALIZED = (PIXELS / 255 - 0.1307) / 0.3081


def read_only(array):
    array = array.copy()
    array.setflags(write=False)
    return array


@pytest.mark.parametrize(
    "images",
    [
        PIXELS,
        read_only(PIXELS),  # as np.asarray(PIL.Image) is
        PIXELS[::-1].copy()[::-1],
        PIXELS.astype(np.int64),
        PIXELS.astype(np.float32),
        PIXELS.tolist(),
        PIXELS.astype(float).tolist(),
        torch.from_numpy(PIXELS),
        {"images": PIXELS},
    ],
    ids=lambda images: type(images).__name__,
)
def test_whole_numbers_are_pixels_in_any_form(images):
    with warnings.catch_warnings(action="error"):  # PyTorch's, of an array that it may not write to
        tensor = torch.from_numpy(pixels_of(images, GRAY))
    assert tensor.dtype == torch.uint8
    assert torch.equal(tensor, torch.from_numpy(PIXELS))


@pytest.mark.parametrize(
    ("images", "got"),
    [
        (PIXELS / 255, "neither divided by 255 nor normalized; got float64 from 0 to 1"),
        ((PIXELS / 255).tolist(), "neither divided by 255 nor normalized; got float64 from 0 to 1"),
        (torch.from_numpy(NORMALIZED).float(), "neither divided by 255 nor normalized; got float32 from -0.4242 to 2."),
        ((PIXELS > 127).astype(float), "neither divided by 255 nor normalized; got float64 from 0 to 1"),
        (PIXELS.astype(int) - 1, "neither divided by 255 nor normalized; got int64 from -1 to 254"),
        (PIXELS.astype(int) + 1, "neither divided by 255 nor normalized; got int64 from 1 to 256"),
        (np.where(PIXELS > 9, PIXELS, np.nan), "neither divided by 255 nor normalized; got float64 from nan to nan"),
        (PIXELS > 127, "got bool"),
        (PIXELS.astype(str), "got <U3"),
        (PIXELS[0, 0], "got shape (32, 32)"),
        (PIXELS.reshape(3, 32, 32, 1), "got shape (3, 32, 32, 1)"),
        (np.repeat(PIXELS, 3, axis=1), "got shape (3, 3, 32, 32)"),
        (PIXELS.reshape(3, -1), "got shape (3, 1024)"),
        ({"a": PIXELS, "b": PIXELS}, "got shape ()"),
        ([[1, 2], [3]], "got lists of unequal lengths"),
    ],
)
def test_everything_else_is_refused_in_one_line(images, got):
    with pytest.raises(InputError) as refused:
        pixels_of(images, GRAY)
    message = str(refused.value)
    assert message.startswith(WANTED)
    assert got in message
    assert len(message) < 160
    assert "\n" not in message


def test_of_zeros_and_ones_integers_are_pixels_and_floats_could_be_scaled():
    drawing = (PIXELS > 127).astype(np.uint8)
    for images in (drawing, drawing.tolist(), np.zeros_like(PIXELS, float)):
        assert np.array_equal(pixels_of(images, GRAY), images)
    with pytest.raises(InputError):
        pixels_of(drawing.astype(float).tolist(), GRAY)


def test_no_images_give_no_rows():
    assert pixels_of(PIXELS[:0], GRAY).shape == (0, 1, 32, 32)


@pytest.mark.parametrize("form", [list, np.array, tuple, lambda files: {"images": files}])
@pytest.mark.parametrize("text", [False, True])
def test_files_are_decoded_as_those_of_the_training(form, text):
    images = PIXELS.copy()
    images[..., [0, 1, -2, -1]] = images[..., [0, 1, -2, -1], :] = 0  # the margin
    files = [png(image) for image in images]
    given = [base64.b64encode(file).decode() for file in files] if text else files
    assert np.array_equal(pixels_of(form(given), GRAY), images)
    assert np.array_equal(pixels_of(given[0], GRAY), images[:1])


def test_a_data_url_is_a_file():
    url = f"data:image/png;base64,{base64.b64encode(png(PIXELS[0])).decode()}"
    assert pixels_of([url], GRAY).shape == (1, 1, 32, 32)


@pytest.mark.parametrize(("file", "error"), [("no base64", InputError), (b"no image", BadImageError)])
def test_what_is_no_file_is_refused_in_one_line(file, error):
    with pytest.raises(error) as refused:
        pixels_of([png(PIXELS[0]), file], GRAY)
    assert "\n" not in str(refused.value)
