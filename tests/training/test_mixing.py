"""Erased boxes, MixUp and CutMix: pixels and labels, and draws that follow from seed, epoch and place alone."""

import numpy as np
import pytest
import torch
from scipy.stats import beta as beta_distribution
from scipy.stats import kstest
from torch.nn.functional import cross_entropy, one_hot

from classifier.training.loss import losses
from classifier.training.mixing import Mixing, Targets, beta
from tests.samples import train_params

IMAGES = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([3, 1, 4, 1, 5, 9])
BEFORE = torch.tensor([5, 0, 1, 2, 3, 4])  # the partner of each image


def mixing(**params):
    return Mixing(train_params(**params).augment, 16)


def test_nothing_is_drawn_or_changed_without_params():
    draws = mixing().draw(0, 1, 6)
    assert draws == {}
    images, targets = mixing()(IMAGES, LABELS, draws)
    assert images is IMAGES
    assert targets == Targets(LABELS)


def test_mixup_blends_an_image_with_the_one_before_it():
    draws = mixing(mixup=0.4).draw(0, 1, 6)
    images, targets = mixing(mixup=0.4)(IMAGES, LABELS, draws)
    assert torch.equal(targets.labels, LABELS)
    assert torch.equal(targets.partners, LABELS[BEFORE])
    assert targets.shares.unique().numel() == 6  # each image its own
    shares = targets.shares[:, None, None, None]
    torch.testing.assert_close(images, shares * IMAGES + (1 - shares) * IMAGES[BEFORE])


def test_cutmix_has_a_box_of_the_partner_and_its_share_is_exact():
    draws = mixing(cutmix=1.0).draw(0, 1, 6)
    images, targets = mixing(cutmix=1.0)(IMAGES, LABELS, draws)
    for place in range(6):
        own, other = (images[place] == IMAGES[which][place] for which in (slice(None), BEFORE))
        assert (own | other).all()
        assert own.float().mean() == pytest.approx(targets.shares[place].item(), abs=1e-6)
        rows, columns = (other[0].any(1 - side).nonzero().flatten() for side in (0, 1))
        if len(rows):
            top, left, bottom, right = rows[0], columns[0], rows[-1] + 1, columns[-1] + 1
            assert other[:, top:bottom, left:right].all()
    assert targets.shares.unique().numel() > 3


def test_shares_of_mixup_have_the_beta_distribution_and_boxes_have_their_mean_area():
    shares = mixing(mixup=0.2).draw(0, 1, 20_000)["shares"]
    assert shares.mean() == pytest.approx(0.5, abs=0.01)
    assert shares.var() == pytest.approx(0.25 / 1.4, abs=0.005)  # 1 / (4 (2 alpha + 1))
    draws = mixing(cutmix=1.0).draw(0, 1, 20_000)
    assert (draws["blend"] == 1).all()
    assert 0.6 < draws["shares"].mean() < 0.7  # above a half, since boxes are cut at the border


@pytest.mark.parametrize("alpha", [0.2, 1.0, 10.0])
def test_drawn_numbers_have_the_beta_distribution(alpha):
    drawn = beta(np.random.default_rng(0), alpha, 20_000)
    assert kstest(drawn, beta_distribution(alpha, alpha).cdf).pvalue > 0.05


def test_mixup_and_cutmix_get_half_of_the_images_each():
    draws = mixing(mixup=0.4, cutmix=1.0).draw(0, 1, 2000)
    cut = (draws["cut"][:, 2:] > draws["cut"][:, :2]).all(1)
    assert (draws["blend"][cut] == 1).all()
    assert 0.4 < cut.float().mean() < 0.52  # a small box may be empty
    assert (draws["blend"] < 1).float().mean() == pytest.approx(0.5, abs=0.04)


def test_erased_boxes_are_of_the_mean_pixel_at_the_given_rate_and_of_the_given_area():
    draws = mixing(erase=0.25).draw(0, 1, 4000)
    top, left, bottom, right = draws["erased"].unbind(1)
    area = (bottom - top) * (right - left) / 256
    assert 0.22 < (area > 0).float().mean() < 0.28
    assert area.max() < 0.4
    images, targets = mixing(erase=0.25)(IMAGES, LABELS, {"erased": torch.tensor([[2.0, 3, 5, 9]] + [[0.0] * 4] * 5)})
    assert not images[0, :, 2:5, 3:9].any()
    assert torch.equal(images[1:], IMAGES[1:])
    assert (images[0] == 0).sum() == 3 * 3 * 6
    assert targets == Targets(LABELS)


def test_the_loss_of_mixed_images_is_that_of_their_probabilities():
    logits, partners, shares = torch.randn(6, 10), LABELS[BEFORE], torch.rand(6)
    found = losses(logits, Targets(LABELS, partners, shares), label_smoothing=0.1)
    probabilities = shares[:, None] * one_hot(LABELS, 10) + (1 - shares[:, None]) * one_hot(partners, 10)
    expected = cross_entropy(logits, probabilities, label_smoothing=0.1, reduction="none")
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(losses(logits, Targets(LABELS)), cross_entropy(logits, LABELS, reduction="none"))


def test_several_models_at_once_are_each_as_alone():
    mix = mixing(mixup=0.4, cutmix=1.0, erase=0.5)
    draws = mix.draw(0, 1, 6)
    images, targets = mix(
        IMAGES.view(2, 3, 3, 16, 16), LABELS.view(2, 3), {k: v.unflatten(0, (2, 3)) for k, v in draws.items()}
    )
    for model in range(2):
        own = slice(3 * model, 3 * model + 3)
        alone, targets_alone = mix(IMAGES[own], LABELS[own], {name: value[own] for name, value in draws.items()})
        assert torch.equal(images[model], alone)
        assert torch.equal(targets.partners[model], targets_alone.partners)
        assert torch.equal(targets.shares[model], targets_alone.shares)
