"""Write a recipe's values to params.yaml, keeping its comments, and print the changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from textwrap import wrap
from typing import Annotated, Any

import typer
from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode

from classifier.commands._tables import width
from classifier.errors import UserError
from classifier.params import load_params, parse_params
from classifier.project.files import write_atomic

PARAMS, RECIPES = Path("params.yaml"), Path("recipes")


def recipe(
    name: Annotated[
        str | None, typer.Argument(help="name of a file in recipes/, without .yaml", show_default=False)
    ] = None,
) -> None:
    """Write a recipe's values to params.yaml.

    Keeps comments, order and spacing, and prints each change. Without a name, lists the recipes.

    Example: classifier recipe mnist
    """
    names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    if not names:
        raise FileNotFoundError(f"{RECIPES}/ has no recipes: git checkout -- {RECIPES}")
    if name is None:
        show(names)
        return
    if name not in names:
        raise UserError(f"{name!r} is not a recipe; allowed are {', '.join(names)}, as in classifier recipe {names[0]}")
    found = read(name)
    load_params(PARAMS)  # refuse an invalid file before changing it
    text, changes = apply(PARAMS.read_text(encoding="utf-8"), found["params"])
    parse_params(text, PARAMS)
    write_atomic(PARAMS, text.encode())
    told = [_wrapped(f"{name}: {found['description']}"), *changes] if changes else ["nothing to change"]
    told += [_wrapped(f"{each}: {found[each]}") for each in ("expected", "measured")]
    print("\n".join([*told, "next: dvc repro"]))


def read(name: str) -> dict[str, Any]:
    """The recipe's description, expected and measured results, and params."""
    return dict(YAML(typ="safe", pure=True).load(RECIPES / f"{name}.yaml"))


def show(names: list[str]) -> None:
    """Print each recipe's name, description and measured result."""
    indent = " " * (max(map(len, names)) + 2)
    for name in names:
        found = read(name)
        print(_wrapped(f"{name:{len(indent)}}{found['description']}", indent))
        print(_wrapped(f"{indent}measured: {found['measured']}", indent))
    print("next: classifier recipe NAME")


def _wrapped(text: str, indent: str = "  ") -> str:
    return "\n".join(wrap(text, width(), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False))


def apply(text: str, values: dict[str, Any]) -> tuple[str, list[str]]:
    """Return the YAML `text` with the recipe's `values`, sections of keys, and a line for each changed key.

    Replaces only the characters of the values, so comments, order and spacing are kept.
    """
    yaml = YAML(typ="safe", pure=True)
    changed = list(_changed(text, yaml.compose(text), yaml.load(text), values))
    lines = [f"  {key}: {_written(old)} -> {_written(new)}" for key, _, old, new in changed]
    for _, (start, end), _, new in sorted(changed, key=lambda each: -each[1][0]):  # from the end: positions stay valid
        text = f"{text[:start]} {_written(new)}{text[end:]}"
    return text, lines


def _changed(
    text: str, node: MappingNode, before: dict[str, Any], values: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, tuple[int, int], Any, Any]]:
    """Yield, for each key whose value changes, its dotted name, the value's position in `text`, old and new value."""
    found = {key.value: (key, value) for key, value in node.value}
    for name, new in values.items():
        (key, value), old = found[name], before[name]
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _changed(text, value, old, new, f"{prefix}{name}.")
        elif old != new:
            yield f"{prefix}{name}", _span(text, key, value), old, new


def _span(text: str, key: Any, value: Any) -> tuple[int, int]:
    """Return start and end of a key's value, from after the colon to its last character. They are equal if empty."""
    start = text.index(":", key.end_mark.index) + 1
    end = value.end_mark.index if value.end_mark.index > value.start_mark.index else start
    return start, start + len(text[start:end].rstrip())  # a block list's node extends to the next key


def _written(value: Any) -> str:
    """Format a value as one line of YAML 1.2; the strings that params.yaml allows need no quotes."""
    return value if isinstance(value, str) else json.dumps(value)
