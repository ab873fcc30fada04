"""The kinds of loss that the tutorial names, each checked against its formula.

    python examples/losses.py

A loss says in one number how far a network's outputs are from what they should be; training makes it smaller.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.testing import assert_close


def regression() -> None:
    """Outputs and targets are numbers."""
    outputs, targets = torch.tensor([0.5, 2.0, -3.0]), torch.tensor([1.0, 2.0, 1.0])
    error = outputs - targets  # -0.5, 0, -4
    assert_close(nn.MSELoss()(outputs, targets), (error**2).mean())
    assert_close(nn.L1Loss()(outputs, targets), error.abs().mean())  # one wild target weighs less
    # Huber: a parabola near 0 and straight lines beyond 1.
    assert_close(nn.HuberLoss()(outputs, targets), torch.tensor([0.125, 0.0, 3.5]).mean())
    assert_close(nn.SmoothL1Loss()(outputs, targets), nn.HuberLoss()(outputs, targets))


def one_of_several_classes() -> None:
    """Outputs are logits `(N, classes)`, targets the classes `(N,)`, as in all five programs of three_levels."""
    logits, labels = torch.tensor([[2.0, 0.5, -1.0], [0.0, 0.0, 3.0]]), torch.tensor([0, 1])
    log_p = logits - logits.exp().sum(dim=1, keepdim=True).log()
    picked = log_p[[0, 1], labels]
    assert_close(nn.CrossEntropyLoss()(logits, labels), -picked.mean())
    assert_close(nn.NLLLoss()(logits.log_softmax(dim=1), labels), -picked.mean())  # the same in two parts
    # train.label_smoothing of params.yaml: a tenth of the target is spread over all classes.
    smoothed = -(0.9 * picked + 0.1 * log_p.mean(dim=1)).mean()
    assert_close(nn.CrossEntropyLoss(label_smoothing=0.1)(logits, labels), smoothed)
    weight = torch.tensor([1.0, 3.0, 1.0])  # rare classes may weigh more
    assert_close(nn.CrossEntropyLoss(weight)(logits, labels), -(picked[0] + 3 * picked[1]) / 4)
    # The hinge loss of support vector machines: a margin of 1 between the right class and each other one.
    margins = (1 - logits[[0, 1], labels][:, None] + logits).clamp(min=0)
    margins[[0, 1], labels] = 0
    assert_close(nn.MultiMarginLoss()(logits, labels), margins.sum(dim=1).mean() / 3)


def yes_or_no() -> None:
    """Outputs are logits of independent questions, targets 0 or 1."""
    logits, targets = torch.tensor([0.3, -2.0]), torch.tensor([1.0, 0.0])
    p = logits.sigmoid()
    by_hand = -(targets * p.log() + (1 - targets) * (1 - p).log()).mean()
    assert_close(nn.BCELoss()(p, targets), by_hand)
    assert_close(nn.BCEWithLogitsLoss()(logits, targets), by_hand)  # without overflow where logits are large


def distributions() -> None:
    """Outputs and targets are distributions: how much longer a code for one makes messages of the other."""
    q, p = torch.tensor([[0.2, 0.3, 0.5]]), torch.tensor([[0.1, 0.6, 0.3]])
    assert_close(nn.KLDivLoss(reduction="batchmean")(q.log(), p), (p * (p / q).log()).sum())


def similarity() -> None:
    """Outputs are vectors that should be close to each other, or far apart."""
    anchor, near, far = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.8, 0.6]]), torch.tensor([[0.0, 1.0]])
    alike = torch.tensor([1])
    assert_close(nn.CosineEmbeddingLoss()(anchor, near, alike), torch.tensor(1 - 0.8))
    distances = (anchor - near).norm() - (anchor - far).norm()
    assert_close(nn.TripletMarginLoss()(anchor, near, far), (distances + 1).clamp(min=0), atol=1e-5, rtol=0)


def main() -> None:
    for lesson in (regression, one_of_several_classes, yes_or_no, distributions, similarity):
        lesson()
        print(f"{lesson.__name__.replace('_', ' ')}: checked")


if __name__ == "__main__":
    main()
