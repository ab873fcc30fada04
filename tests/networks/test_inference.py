"""Logits in batches are those of all images at once."""

import torch

from classifier.networks.inference import predict
from classifier.networks.model import Classifier, LeNet5


def test_batches_with_a_ragged_last_one_give_the_same_logits_and_keep_the_mode():
    classifier = Classifier(LeNet5(1, 10), [0.5], [0.5]).train()
    images = torch.randint(0, 256, (23, 1, 32, 32), dtype=torch.uint8)
    logits = predict(classifier, images, batch_size=5)
    assert logits.shape == (23, 10)
    torch.testing.assert_close(logits, classifier(images))
    assert classifier.training
    assert not logits.requires_grad
