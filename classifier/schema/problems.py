"""Messages about params: one line per problem, with the key, its value and what is allowed."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from classifier.schema.ranges import TAGS
from classifier.schema.section import Section, is_section

WRITTEN = reprlib.Repr()
WRITTEN.maxlevel = 2  # nested YAML aliases grow exponentially: six levels of six references are 46,656 items


def describe(
    error: ValidationError,
    model: type[Section],
    renamed: Mapping[str, str],
    before: Mapping[str, Any],
    within: tuple[str, ...] = (),
) -> list[str]:
    """Describe each problem of a `model`, whose validated values lie `within` its section.

    `renamed`: old key -> current key. `before`: new key -> the value that keeps the behaviour of earlier versions.
    """
    found = [
        each
        for problem in error.errors()
        for each in _each_missing({**problem, "loc": (*within, *_location(problem))}, model)
    ]
    new_names = {renamed.get(_key(problem)) for problem in found}  # also reported as missing
    return [_describe(problem, model, renamed, before) for problem in found if _key(problem) not in new_names]


def unknown(key: str, name: str, allowed: Iterable[str], renamed: Mapping[str, str]) -> str:
    """Describe an unknown `name`, `key` in full, and suggest the closest allowed name."""
    if key in renamed:
        return f"renamed to {renamed[key]}"
    names = list(allowed)
    close = get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"unknown key; {hint}allowed are {', '.join(names)}"


def _location(problem: Any) -> tuple[str | int, ...]:
    return tuple(part for part in problem["loc"] if part != "function-after")


def _key(problem: Any) -> str:
    return ".".join(str(part) for part in problem["loc"] if part not in TAGS)


def _each_missing(problem: dict[str, Any], model: type[Section]) -> Iterator[dict[str, Any]]:
    """A section that is missing is missing each of its keys."""
    section = _section_at(model, problem["loc"]) if problem["type"] == "missing" else None
    if section is None:
        yield problem
        return
    for name in section.model_fields:
        yield from _each_missing({**problem, "loc": (*problem["loc"], name)}, model)


def _section_at(model: Any, path: Iterable[str | int]) -> type[Section] | None:
    for part in path:
        known = is_section(model) and part in model.model_fields
        model = model.model_fields[part].annotation if known else TAGS.get(part)
    return model if is_section(model) else None


def _describe(problem: Any, model: type[Section], renamed: Mapping[str, str], before: Mapping[str, Any]) -> str:
    section, key = _section_at(model, problem["loc"][:-1]), _key(problem) or "the file"
    fields = section.model_fields if section else {}
    name = key.rpartition(".")[2]
    meaning = fields[name].description if name in fields else None
    if problem["type"] == "extra_forbidden":
        return f"{key:.200}: {_shown(problem['input'])}: {unknown(key, name, fields, renamed)}"
    if problem["type"] == "missing":
        earlier = f"; {_shown(before[key])} does what versions without it did" if key in before else ""
        return f"{key} is missing" + (f": {meaning}" if meaning else "") + earlier
    if problem["type"] in ("model_type", "model_attributes_type"):
        return f"{key}: {_shown(problem['input'])} should hold keys and values"
    allowed = problem["msg"].removeprefix("Value error, ").replace("Input should be", "should be")
    if problem["type"] == "value_error":
        return f"{key}: {allowed}" if problem["loc"] else allowed
    return f"{key}: {_shown(problem['input'])} {allowed}" + (f" ({meaning})" if meaning else "")


def _shown(value: Any) -> str:
    """Format a value as in YAML, truncated."""
    try:
        return "null" if value is None else f"{WRITTEN.repr(value):.200}"  # aliases can make it huge
    except ValueError:  # Python limits the length of printed integers
        return f"a number of {value.bit_length():,} bits"
