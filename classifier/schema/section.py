"""A section of params: frozen and strict, without defaults. A section may hold sections."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeGuard

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Device = Literal["auto", "cpu", "cuda", "mps"]
Arithmetic = Literal["portable", "native"]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def problems(self) -> Iterator[str]:
        """Yield a line per combination of valid values that do not fit together."""
        return iter(())


def is_section(model: Any) -> TypeGuard[type[Section]]:
    return isinstance(model, type) and issubclass(model, Section)


def keys(model: type[Section], prefix: str) -> Iterator[str]:
    """The dotted names of all values, those of sections within included: `train.epochs`, `train.augment.shift`."""
    for name, field in model.model_fields.items():
        if is_section(field.annotation):
            yield from keys(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def items(section: Section, prefix: str) -> Iterator[tuple[str, Any]]:
    """The dotted names of all values with the values."""
    for name, value in section:
        if isinstance(value, Section):
            yield from items(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def put(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in nested dictionaries, which are created where they are missing."""
    *above, name = key.split(".")
    for section in above:
        tree = tree.setdefault(section, {})
    tree[name] = value
