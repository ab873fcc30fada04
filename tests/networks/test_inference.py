"""Logits in batches are those of all images at once, and those of an image alone."""

import torch

from classifier.networks.inference import PORTION, logits_of, predict
from classifier.networks.model import Classifier, LeNet5


def test_batches_with_a_ragged_last_one_give_the_same_logits_and_keep_the_mode():
    classifier = Classifier(LeNet5(1, 10), [0.5], [0.5]).train()
    images = torch.randint(0, 256, (23, 1, 32, 32), dtype=torch.uint8)
    logits = predict(classifier, images, batch_size=5)
    assert logits.shape == (23, 10)
    torch.testing.assert_close(logits, classifier(images))
    assert classifier.training
    assert not logits.requires_grad


@torch.inference_mode()
def test_an_images_logits_have_the_same_bits_alone_and_among_others():
    torch.manual_seed(0)
    classifier = Classifier(LeNet5(1, 10), [0.5], [0.5]).eval()
    images = torch.randint(0, 256, (2 * PORTION + 3, 1, 32, 32), dtype=torch.uint8)
    logits = logits_of(classifier, images)
    order = torch.randperm(len(images))
    assert torch.equal(logits_of(classifier, images[order]), logits[order])
    for number in (0, PORTION, len(images) - 1):
        assert torch.equal(logits_of(classifier, images[number : number + 1]), logits[number : number + 1])
    assert not torch.equal(classifier(images[:1]), logits[:1])  # what it would be without portions
    assert logits_of(classifier, images[:0]).shape == (0, 10)
