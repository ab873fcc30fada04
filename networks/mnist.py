"""LeNet-5 for handwritten digits, with shifted copies at evaluation: `train.network: mnist:shifted_lenet5`."""

from torch import Tensor, nn
from torch.nn.functional import pad

from classifier.errors import UserError
from classifier.networks.model import LeNet5


def shifted_lenet5(channels: int, classes: int, size: int) -> nn.Module:
    """LeNet-5 that also takes copies of an image shifted by a pixel at evaluation: nine times the multiply-adds.

    Its 61,706 parameters are trained as those of LeNet-5. Train it with `train.augment.shift: 1` or more.
    """
    if size != 32:
        raise UserError(f"LeNet-5 takes images of 32x32 pixels, not {size}x{size}: set normalize.image_size to 32")
    return Shifted(LeNet5(channels, classes))


class Shifted(nn.Module):
    """In evaluation mode, the mean of the logits of an image and of its eight copies shifted by a pixel."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            logits: Tensor = self.network(images)
            return logits
        height, width = images.shape[-2:]
        padded = pad(images, [1] * 4, mode="replicate")
        copies = [padded[..., y : y + height, x : x + width] for y in range(3) for x in range(3)]
        total: Tensor = sum(self.network(copy) for copy in copies)
        return total / len(copies)
