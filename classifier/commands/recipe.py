"""Write a recipe's values to params.yaml, keeping its comments, and print the changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from ruamel.yaml import YAML

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

    Keeps comments, order and spacing, and prints each change.

    Example: classifier recipe mnist
    """
    names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    if not names:
        raise FileNotFoundError(f"{RECIPES}/ has no recipes: git checkout -- {RECIPES}")
    if name not in names:
        given = f"{name!r} is not a recipe" if name else "expected the name of one recipe"
        raise UserError(f"{given}; allowed are {', '.join(names)}, as in classifier recipe {names[0]}")
    found = YAML(typ="safe", pure=True).load(RECIPES / f"{name}.yaml")
    load_params(PARAMS)  # refuse an invalid file before changing it
    text, changes = apply(PARAMS.read_text(encoding="utf-8"), found["params"])
    parse_params(text, PARAMS)
    write_atomic(PARAMS, text.encode())
    print("\n".join([f"{name}: {found['description']}", *changes] if changes else ["nothing to change"]))
    print(f"expected: {found['expected']}\nmeasured: {found['measured']}\nnext: dvc repro")


def apply(text: str, values: dict[str, dict[str, Any]]) -> tuple[str, list[str]]:
    """Return the YAML `text` with the recipe's `values`, and a line for each changed key.

    Replaces only the characters of the values, so comments, order and spacing are kept.
    """
    yaml = YAML(typ="safe", pure=True)
    before = yaml.load(text)
    spans = {
        section.value: {key.value: _span(text, key, value) for key, value in content.value}
        for section, content in yaml.compose(text).value
    }
    changed = [
        (section, key, value)
        for section, keys in values.items()
        for key, value in keys.items()
        if before[section][key] != value
    ]
    replacements = [(spans[section][key], value) for section, key, value in changed]
    for (start, end), value in sorted(replacements, key=lambda item: -item[0][0]):  # from the end: positions stay valid
        text = f"{text[:start]} {_written(value)}{text[end:]}"
    lines = [
        f"  {section}.{key}: {_written(before[section][key])} -> {_written(value)}" for section, key, value in changed
    ]
    return text, lines


def _span(text: str, key: Any, value: Any) -> tuple[int, int]:
    """Start and end of a key's value, from after the colon to its last character; an empty value has no length."""
    start = text.index(":", key.end_mark.index) + 1
    end = value.end_mark.index if value.end_mark.index > value.start_mark.index else start
    return start, start + len(text[start:end].rstrip())  # a block list's node extends to the next key


def _written(value: Any) -> str:
    """Format a value as one line of YAML 1.2; the strings that params.yaml allows need no quotes."""
    return value if isinstance(value, str) else json.dumps(value)
