"""The grid of a sweep: all combinations of values such as `train.learning_rate=0.01,0.1 train.seed=0..4`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import product
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from classifier.errors import UserError
from classifier.params import Params

LARGEST = 10_000  # experiments
RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
EXAMPLE = "train.learning_rate=0.01,0.05 or train.seed=0..4"

Point = dict[str, Any]  # {"train.seed": 0, ...}: an experiment's values, which replace those in params.yaml


def grid(words: Sequence[str], params: Params) -> list[Point]:
    """Return all combinations, the last key varying fastest, with the values in the types of params.

    Validates all combinations. Raises UserError for the first problem.
    """
    choices: dict[str, list[Any]] = {}
    for word in words:
        key, separator, text = word.partition("=")
        if not separator:
            raise UserError(f"{word!r} has no values; expected KEY=VALUES, as in {EXAMPLE}")
        if key in choices:
            raise UserError(f"{key} is given twice; give it once, with all its values: {key}=VALUE,VALUE")
        choices[key] = _values(word, text)
    if (count := math.prod(map(len, choices.values()))) > LARGEST:
        raise UserError(f"{count:,} experiments; allowed are up to {LARGEST:,}")
    return [canonical(dict(zip(choices, values, strict=True)), params) for values in product(*choices.values())]


def canonical(point: Point, params: Params) -> Point:
    """Convert a point's values to their types in params, such as 1 to 1.0.

    Raises UserError with the key, the value and what is allowed.
    """
    checked = params.override(point).flat()
    return {key: checked[key] for key in point}


def _values(word: str, text: str) -> list[Any]:
    """Parse a key's values as YAML: `0.1,1e-3`, `0..4`, `sgd,adamw`, `null,[0.1]`."""
    try:
        written = YAML(typ="safe", pure=True).load(f"[{text}]")
    except YAMLError:
        raise UserError(f"{word!r} cannot be read; expected values separated by commas, as in {EXAMPLE}") from None
    if not written:
        raise UserError(f"{word!r} has no values; expected values separated by commas, as in {EXAMPLE}")
    values: list[Any] = []
    for value in written:
        for each in _range(word, value) if isinstance(value, str) and ".." in value else [value]:
            if each in values:
                raise UserError(f"{word}: {each} is given twice; give each value once")
            values.append(each)
    return values


def _range(word: str, text: str) -> Sequence[Any]:
    """Expand `0..4` to its numbers; other strings, such as paths with dots, are returned unchanged."""
    if "/" in text:
        return [text]
    found = RANGE.fullmatch(text)
    first, last = (int(number) for number in found.groups()) if found else (0, -1)
    if not 0 <= last - first < LARGEST:
        raise UserError(
            f"{word}: {text!r} is not a range; expected two integers, the lower one first, as in 0..4, with at most "
            f"{LARGEST:,} values"
        )
    return range(first, last + 1)
