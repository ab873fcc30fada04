"""Shifts, rotations and changes of size of whole batches."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode, functional

from classifier.training.augmentation import Augmentation
from tests.samples import train_params


def augmentation(batches=200, seed=0, **params):
    return Augmentation(train_params(**params).augment, batches, np.random.default_rng(seed))


IMAGES = torch.randint(1, 256, (3, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_none_is_the_identity():
    assert augmentation(shift=0)(IMAGES, 0) is IMAGES


def test_shift_moves_the_whole_batch_and_fills_with_zero():
    draw = augmentation(shift=2)
    draw.shifts[0] = (1, -2)  # one down, two to the left
    moved = draw(IMAGES, 0)
    assert torch.equal(moved[:, :, 1:, :-2], IMAGES[:, :, :-1, 2:])
    assert not moved[:, :, 0].any()
    assert not moved[:, :, :, -2:].any()


def test_shift_covers_its_range_evenly():
    shifts = augmentation(batches=5000, shift=1).shifts
    counts = {shift: shifts.count(shift) for shift in set(shifts)}
    assert set(counts) == {(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)}
    assert min(counts.values()) > 450


def test_a_shift_is_torchvisions_affine_translation():
    draw = augmentation(shift=3)
    for batch in range(20):
        dy, dx = draw.shifts[batch]
        expected = functional.affine(IMAGES, 0.0, [dx, dy], 1.0, [0.0, 0.0], interpolation=InterpolationMode.BILINEAR)
        assert torch.equal(draw(IMAGES, batch), expected)


@pytest.mark.parametrize("params", [{"rotation": 10.0}, {"scale": 0.1}, {"rotation": 5.0, "scale": 0.1, "shift": 2}])
def test_affine_keeps_shape_and_type_and_changes_pixels(params):
    moved = augmentation(**params)(IMAGES, 0)
    assert moved.shape == IMAGES.shape
    assert moved.dtype == torch.uint8
    assert not torch.equal(moved, IMAGES)


def test_ranges_of_angle_and_scale():
    draw = augmentation(batches=2000, rotation=10.0, scale=0.2)
    assert -10 <= draw.angles.min() < -9 < 9 < draw.angles.max() <= 10
    assert 0.8 <= draw.scales.min() < 0.81 < 1.19 < draw.scales.max() <= 1.2
