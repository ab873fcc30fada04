"""Cross entropy of every image, for labels and for mixed ones."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy

from classifier.training.mixing import Targets


def losses(
    logits: Tensor, targets: Targets, label_smoothing: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """Logits `(..., B, classes)`, labels `(..., B)` -> `(..., B)`; for mixed images the mean by the labels' shares.

    `class_weights (classes,)`: factors of the labels' losses.
    """

    def of(labels: Tensor) -> Tensor:
        each = cross_entropy(logits.flatten(0, -2), labels.flatten(), label_smoothing=label_smoothing, reduction="none")
        weighted = each if class_weights is None else each * class_weights[labels.flatten()]
        return weighted.view_as(labels)

    own = of(targets.labels)
    if targets.partners is None or targets.shares is None:
        return own
    return of(targets.partners).lerp(own, targets.shares)
