"""The search space of a sweep: for each key a range or a list of choices."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Discriminator, Field, Tag, model_validator

from classifier.errors import UserError
from classifier.schema.section import Section


class Range(Section):
    low: int | float = Field(description="smallest value")
    high: int | float = Field(description="largest value")
    log: bool = Field(description="sample on a logarithmic scale")

    @model_validator(mode="after")
    def _low_is_below_high(self) -> Self:
        if not self.low < self.high:
            raise UserError(f"low: {self.low} with high: {self.high}; allowed is a low below high")
        if self.log and self.low <= 0:
            raise UserError(f"low: {self.low} with log: true; allowed is a low above 0, or log: false")
        return self


class Choices(Section):
    choices: list[bool | int | float | str | None] = Field(min_length=1, description="values to choose from")


def _tag(value: Any) -> str:
    choices = "choices" in value if isinstance(value, dict) else isinstance(value, Choices)
    return "Choices" if choices else "Range"


TAGS: dict[str | int, type[Section]] = {"Range": Range, "Choices": Choices}  # as they stand in pydantic's locations
Searched = Annotated[Annotated[Range, Tag("Range")] | Annotated[Choices, Tag("Choices")], Discriminator(_tag)]
