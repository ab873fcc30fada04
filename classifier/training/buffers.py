"""A network's buffers, such as running means, when a batch is computed in parts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Buffers:
    """Each part of a batch begins with the buffers that the network had before the batch.

    The batch then changes them by the mean of its parts' changes, weighted by their images: a running mean becomes
    that of the parts' means, a running variance that of the variances within the parts. Buffers that are not finite
    floating-point numbers, such as counters and masks, become those of the first part.
    """

    def __init__(self, network: nn.Module) -> None:
        self.places: list[tuple[nn.Module, str, Tensor]] = [
            (module, name, tensor)
            for module in network.modules()
            for name, tensor in module.named_buffers(recurse=False, remove_duplicate=False)
        ]
        unique = list({id(tensor): tensor for _, _, tensor in self.places}.values())
        self.averaged = [each for each in unique if each.is_floating_point() and each.isfinite().all()]
        averaged = {id(each) for each in self.averaged}
        self.taken = [each for each in unique if id(each) not in averaged]
        self.before = [tensor.clone() for tensor in (*self.averaged, *self.taken)]
        self.changed = False  # since the batch began, by a part

    @torch.no_grad()
    def begin(self) -> None:
        """Before each part: save the values before the first part, and restore them before the others."""
        now = [*self.averaged, *self.taken]
        if now:
            torch._foreach_copy_(*((now, self.before) if self.changed else (self.before, now)))

    @torch.no_grad()
    def changes(self, share: float) -> list[Tensor]:
        """The part's changes of the averaged buffers, times `share`, its share of the batch."""
        self.changed = True
        for module, name, tensor in self.places:
            if (now := getattr(module, name)) is not tensor:  # the forward pass has replaced the tensor
                tensor.copy_(now)
                setattr(module, name, tensor)
        if not self.averaged:
            return []
        changes = torch._foreach_sub(self.averaged, self.before[: len(self.averaged)])
        torch._foreach_mul_(changes, share)
        return list(changes)

    @torch.no_grad()
    def end(self, changes: Sequence[Tensor], taken: Sequence[Tensor]) -> None:
        """After the batch: add the sum of the parts' changes, and copy the buffers taken from the first part."""
        self.begin()
        if changes:
            torch._foreach_add_(self.averaged, list(changes))
        if taken:
            torch._foreach_copy_(self.taken, list(taken))
        self.changed = False


def words(tensor: Tensor) -> int:
    """How many float32 values hold the tensor's bytes; a multiple of 16 bytes, so that all types are aligned."""
    return -(-tensor.numel() * tensor.element_size() // 16) * 4


def as_bytes_of(row: Tensor, tensor: Tensor) -> Tensor:
    """The float32 values `(words(tensor),)` as a tensor of this shape and type, in the same memory."""
    return row.view(tensor.dtype)[: tensor.numel()].view(tensor.shape)
