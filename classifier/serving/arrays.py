"""Converts the images of a request, arrays or encoded files, to raw pixels. Needs neither torch nor pandas."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import numpy as np

from classifier.data.pixels import Preprocessing, decode
from classifier.errors import UserError


class InputError(UserError):
    """Images that a model does not accept. The message says in one line what is expected."""


def pixels_of(images: Any, preprocessing: Preprocessing) -> np.ndarray:
    """Raw pixels, as in `raw_pixels`, or encoded image files -> images `(N, C, H, W) uint8`.

    A file is bytes, or text in base64. A dictionary with one value is replaced by the value. Raises InputError or
    BadImageError.
    """
    if isinstance(images, dict) and len(images) == 1:
        (images,) = images.values()
    files = images.tolist() if isinstance(images, np.ndarray) and images.dtype.kind in "OSU" else images
    if isinstance(files, bytes | str):
        files = [files]
    if not (isinstance(files, list | tuple) and files and all(isinstance(file, bytes | str) for file in files)):
        return raw_pixels(images, preprocessing)
    return np.stack([decode(file if isinstance(file, bytes) else from_base64(file), preprocessing) for file in files])


def from_base64(text: str) -> bytes:
    """Decode an image file in base64, with or without the prefix `data:image/png;base64,`."""
    try:
        return base64.b64decode(text.partition(";base64,")[2] or text, validate=True)
    except (binascii.Error, ValueError):
        raise InputError(f"expected an image file in base64, got {text[:40]!r}") from None


def raw_pixels(images: Any, preprocessing: Preprocessing) -> np.ndarray:
    """Images `(N, C, H, W)` with integers in 0..255 -> the same as a writable uint8 array.

    `images` is an array, a tensor or nested lists. JSON has one type of number, so floats with integer values are
    accepted too, except if their maximum is 1, because they may be black-and-white pixels divided by 255. Integers of
    0 and 1 are accepted, as nearly black pixels.

    Raises InputError, which names the shape and the range, for everything else, such as scaled or normalized pixels.
    """
    channels, size = preprocessing.channels, preprocessing.image_size
    wanted = f"expected images of shape (N, {channels}, {size}, {size}), uint8 in 0..255"
    try:
        array = np.asarray(images.cpu() if hasattr(images, "cpu") else images)
    except ValueError:
        raise InputError(f"{wanted}, got lists of unequal lengths") from None
    if array.shape[1:] != (channels, size, size):
        raise InputError(f"{wanted}, got shape {array.shape}")
    if array.dtype.kind not in "iuf":
        raise InputError(f"{wanted}, got {array.dtype}")
    if array.size:
        low, high = array.min(), array.max()
        fractions = array.dtype.kind == "f" and (high == 1 or not np.array_equal(array, np.rint(array)))
        if fractions or not (low >= 0 and high <= 255):
            hint = "neither divided by 255 nor normalized"
            raise InputError(f"{wanted}, {hint}; got {array.dtype} from {low:.4g} to {high:.4g}")
    return np.require(array, np.uint8, ["C", "W"])
