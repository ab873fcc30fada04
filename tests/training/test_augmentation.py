"""Augmentation, drawn for each image: torchvision's pixels, and draws that follow from seed, epoch and place alone."""

from math import atan, degrees

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode, functional

from classifier.training.augmentation import GEOMETRY, OPERATIONS, Augmentation, affine, generator, mirror, warped
from classifier.training.colours import COLOURS, change_colours
from tests.samples import train_params

IMAGES = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def augmentation(**params):
    return Augmentation(train_params(**params).augment, 32)


def draws_of(count=40, epoch=1, batch_size=8, **params):
    return augmentation(**params).draw(0, epoch, count, batch_size, generator(0, epoch))


def moved_by_torchvision(image, shift, angle=0.0, scale=1.0, shear=(0.0, 0.0)):
    dy, dx = shift
    options = {"angle": angle, "translate": [dx, dy], "scale": scale, "shear": list(shear)}
    return functional.affine(image, **options, interpolation=InterpolationMode.BILINEAR)


def test_none_is_the_identity():
    assert draws_of() == {}
    assert augmentation()(IMAGES, {}) is IMAGES


@pytest.mark.parametrize("per", ["batch", "image"])
def test_a_shift_is_torchvisions_translation_and_moves_right_and_down(per):
    draws = draws_of(shift=3, per=per)
    draws["shifts"][0] = torch.tensor([1, -2])  # one down, two to the left
    moved = augmentation(shift=3, per=per)(IMAGES, draws)
    for image, found, shift in zip(IMAGES, moved, draws["shifts"].tolist(), strict=True):
        assert torch.equal(found, moved_by_torchvision(image, shift))
    assert torch.equal(moved[0, :, 1:, :-2], IMAGES[0, :, :-1, 2:])
    assert not moved[0, :, 0].any()
    assert not moved[0, :, :, -2:].any()


@pytest.mark.parametrize("per", ["batch", "image"])
@pytest.mark.parametrize("params", [{"rotation": 10.0}, {"scale": 0.1}, {"rotation": 20.0, "scale": 0.3, "shift": 2}])
def test_rotation_and_scale_are_torchvisions(params, per):
    rows = 5 if per == "batch" else 40
    moved = augmentation(per=per, **params)(IMAGES, draws_of(per=per, **params))
    random = generator(0, 1)
    shifts = random.integers(-params.get("shift", 0), params.get("shift", 0), endpoint=True, size=(rows, 2))
    angles = random.uniform(-params.get("rotation", 0), params.get("rotation", 0), rows)
    scales = random.uniform(1 - params.get("scale", 0), 1 + params.get("scale", 0), rows)
    for place, (image, found) in enumerate(zip(IMAGES, moved, strict=True)):
        row = place * rows // 40
        expected = moved_by_torchvision(image, shifts[row].tolist(), angles[row], scales[row])
        differences = (found.int() - expected.int()).abs()
        assert differences.max() <= 1, place  # where it rounds the other way
        assert (differences > 0).float().mean() < 0.001


def test_images_of_a_batch_share_a_shift_or_have_each_their_own():
    by_batch, by_image = (draws_of(shift=3, per=per)["shifts"].tolist() for per in ("batch", "image"))
    assert by_batch == [shift for batch in by_batch[::8] for shift in [batch] * 8]
    assert len({tuple(shift) for shift in by_batch}) > 3
    assert all(len({tuple(shift) for shift in by_image[start : start + 8]}) > 3 for start in range(0, 40, 8))


def test_draws_depend_on_seed_epoch_and_place_and_not_on_each_other():
    everything = {"shift": 3, "flip": 0.5, "per": "image"}
    first = draws_of(**everything)
    assert all(torch.equal(value, draws_of(**everything)[name]) for name, value in first.items())
    assert torch.equal(draws_of(flip=0.5)["flips"], first["flips"])
    assert torch.equal(draws_of(shift=3, per="image", batch_size=7)["shifts"], first["shifts"])
    assert not torch.equal(draws_of(**everything, epoch=2)["flips"], first["flips"])


def test_shifts_cover_their_range_evenly():
    shifts = draws_of(9 * 500, shift=1, per="image")["shifts"].tolist()
    counts = {(dy, dx): shifts.count([dy, dx]) for dy in (-1, 0, 1) for dx in (-1, 0, 1)}
    assert sum(counts.values()) == 9 * 500
    assert min(counts.values()) > 450


def test_flips_are_torchvisions_at_the_given_rate():
    draws = draws_of(2000, flip=0.3)
    assert 0.27 < draws["flips"].float().mean() < 0.33
    draws = {"flips": draws["flips"][:40]}
    for image, found, flip in zip(IMAGES, augmentation(flip=0.3)(IMAGES, draws), draws["flips"], strict=True):
        assert torch.equal(found, functional.horizontal_flip(image) if flip else image)


def test_a_flip_before_an_interpolation_is_the_mirrored_image_interpolated():
    params = {"rotation": 20.0, "per": "image"}
    moved = augmentation(flip=1.0, **params)(IMAGES, draws_of(flip=1.0, **params))
    expected = augmentation(**params)(IMAGES.flip(-1), draws_of(**params))
    assert (moved.int() - expected.int()).abs().max() <= 1  # rounding


def test_crops_keep_a_share_of_the_area_of_nearly_its_shape_inside_of_the_image():
    matrices = draws_of(2000, crop=0.2)["matrices"].double()
    width, height = matrices[:, 0], matrices[:, 4]
    area, ratio = width * height, width / height
    assert 0.2 * 0.99 <= area.min() < 0.22
    assert 0.98 < area.max() <= 1
    assert 0.75 * 0.99 <= ratio.min() < 0.8 < 1.25 < ratio.max() <= 4 / 3 * 1.01
    assert (matrices[:, [1, 3]] == 0).all()
    for side, offset in ((width, matrices[:, 2]), (height, matrices[:, 5])):
        assert (offset.abs() <= (1 - side) * 16 + 1e-5).all()
        assert offset.std() > 1


def test_a_crop_is_resized_to_the_whole():
    """A quarter of a linear slope around its middle is a slope of half the steepness."""
    slope = (torch.arange(32) * 8).to(torch.uint8).expand(1, 1, 32, 32).contiguous()
    found = warped(slope, torch.tensor([[0.5, 0, 0, 0, 0.5, 0]]))[0, 0, 16].float()
    expected = (15.5 + (torch.arange(32) - 15.5) / 2) * 8
    assert (found - expected).abs().max() <= 0.5


@pytest.mark.parametrize(("name", "shear"), [("shear_x", (degrees(atan(0.3)), 0.0)), ("shear_y", (0.0, 0.3))])
def test_shears_are_torchvisions(name, shear):
    matrix = {"shear_x": [1, 0.3, 0, 0, 1, 0], "shear_y": [1, 0, 0, 0.3, 1, 0]}[name]
    shear = tuple(degrees(atan(0.3)) if angle else 0.0 for angle in shear)
    found = warped(IMAGES[:1], torch.tensor([matrix], dtype=torch.float32))
    expected = moved_by_torchvision(IMAGES[0], (0, 0), shear=shear)
    assert (found[0].int() - expected.int()).abs().max() <= 1


def test_mirror_and_affine_are_what_they_say():
    assert torch.equal(warped(IMAGES, mirror(torch.ones(40, dtype=torch.bool)).float()), IMAGES.flip(-1))
    turned = affine(torch.zeros(40, 2), torch.full((40,), 90.0, dtype=torch.float64), torch.ones(40))
    assert torch.equal(warped(IMAGES, turned.float()), IMAGES.rot90(-1, (2, 3)))


def test_trivialaugment_gives_each_image_one_operation_of_all_strengths():
    draws = draws_of(14 * 300, policy="trivialaugment")
    colours = draws["colours"]
    assert colours.unique().tolist() == list(range(-len(GEOMETRY) - 1, len(COLOURS)))
    assert len(OPERATIONS) == 14
    assert draws["strengths"].unique().numel() == 2 * 31 - 1
    still = torch.tensor([1.0, 0, 0, 0, 1, 0])
    moves = (draws["matrices"] != still).any(1)
    assert not moves[(colours >= 0) | (colours == -len(GEOMETRY) - 1)].any()  # colours and identity move nothing
    assert moves[(colours < 0) & (colours > -len(GEOMETRY) - 1)].float().mean() > 0.9
    moved = augmentation(policy="trivialaugment")(IMAGES, {name: value[:40] for name, value in draws.items()})
    assert (moved != IMAGES).flatten(1).any(1).sum() > 25


def by_torchvision(name, image, strength):
    factor = 1 + 0.99 * strength
    return {
        "brightness": lambda: functional.adjust_brightness(image, factor),
        "color": lambda: functional.adjust_saturation(image, factor),
        "contrast": lambda: functional.adjust_contrast(image, factor),
        "sharpness": lambda: functional.adjust_sharpness(image, factor),
        "posterize": lambda: functional.posterize(image, 8 - round(6 * abs(strength))),
        "solarize": lambda: functional.solarize(image, 255 * (1 - abs(strength))),
        "autocontrast": lambda: functional.autocontrast(image),
        "equalize": lambda: functional.equalize(image),
    }[name]()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", COLOURS)
def test_colours_are_torchvisions_for_every_strength(name, channels):
    images = IMAGES[:31, :channels] // 2 + 30
    strengths = torch.linspace(-1, 1, 31)
    found = change_colours(images, torch.full((31,), list(COLOURS).index(name)), strengths)
    for image, changed, strength in zip(images, found, strengths.tolist(), strict=True):
        difference = (changed.int() - by_torchvision(name, image, strength).int()).abs().max()
        assert difference <= 1, strength  # torchvision rounds a factor to float32 at another place
    assert torch.equal(change_colours(images, torch.full((31,), -1), strengths), images)


def test_several_models_at_once_are_each_as_alone():
    params = {"shift": 2, "flip": 0.5, "per": "image"}
    for more in ({}, {"crop": 0.5}):
        augment, draws = augmentation(**params, **more), draws_of(**params, **more)
        stacked = {name: value.view(5, 8, *value.shape[1:]) for name, value in draws.items()}
        found = augment(IMAGES.view(5, 8, 3, 32, 32), stacked)
        assert torch.equal(found.flatten(0, 1), augment(IMAGES, draws))


def test_images_of_another_size_and_of_one_image():
    images = torch.randint(0, 256, (1, 3, 50, 50), dtype=torch.uint8)
    augment = Augmentation(train_params(shift=2, flip=1.0, per="image").augment, 50)
    draws = augment.draw(0, 1, 1, 8, np.random.default_rng(0))
    expected = functional.affine(images, 0.0, draws["shifts"][0].flip(0).tolist(), 1.0, [0.0, 0.0])
    assert torch.equal(augment(images, draws), expected.flip(-1))
