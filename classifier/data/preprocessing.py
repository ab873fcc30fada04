"""The values that decide how an image of any size becomes the pixels of a data set (`classifier.data.pixels`)."""

from __future__ import annotations

from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from classifier.errors import UserError

Pixels = npt.NDArray[np.uint8]

LARGEST_SIZE = 4096  # pixels, height and width of the result


class Preprocessing(BaseModel):
    """What turns an image of any size into `(channels, image_size, image_size)`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    image_size: int = Field(ge=1, le=LARGEST_SIZE)  # pixels, height and width of the whole canvas
    margin: int = Field(ge=0)  # pixels of background, which is 0, on every side of the resized image
    resize: Literal["pad", "crop", "stretch"]
    channels: Literal[1, 3]
    invert: bool  # 255 - pixel, for dark figures on a light background

    @model_validator(mode="after")
    def _leaves_room(self) -> Self:
        if self.inner < 1:
            raise UserError(f"a margin of {self.margin} pixels leaves nothing of {self.image_size}")
        return self

    @property
    def inner(self) -> int:
        """Pixels, height and width, inside the margin."""
        return self.image_size - 2 * self.margin

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after resizing, before a crop to `inner`."""
        if self.resize == "stretch":
            return self.inner, self.inner
        side = max(width, height) if self.resize == "pad" else min(width, height)
        return max(1, round(width * self.inner / side)), max(1, round(height * self.inner / side))

    def area(self, width: int, height: int) -> int:
        """Pixels of the result that show an image of this size; the others are padding."""
        across, down = self.resized(width, height)
        return min(across, self.inner) * min(down, self.inner)
