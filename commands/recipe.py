"""Put a recipe's values into params.yaml, keeping its comments, and say what changed.

Example: python -m commands.recipe mnist
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from classifier.cli import run
from classifier.files import write_atomic
from classifier.params import load_params, parse_params

PARAMS, RECIPES = Path("params.yaml"), Path("recipes")


def main(arguments: list[str]) -> None:
    names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    if not names:
        raise FileNotFoundError(f"{RECIPES}/ does not exist here: run in the project's root")
    if len(arguments) != 1 or arguments[0] not in names:
        given = f"{arguments[0]!r} is not a recipe" if len(arguments) == 1 else "expected the name of one recipe"
        raise ValueError(f"{given}; allowed are {', '.join(names)}, as in python -m commands.recipe {names[0]}")
    recipe = YAML(typ="safe", pure=True).load(RECIPES / f"{arguments[0]}.yaml")
    load_params(PARAMS)  # a damaged file is named before anything is put into it
    text, changes = apply(PARAMS.read_text(encoding="utf-8"), recipe["params"])
    parse_params(text, PARAMS)
    write_atomic(PARAMS, text.encode())
    print("\n".join([f"{arguments[0]}: {recipe['description']}", *changes] if changes else ["nothing to change"]))
    print(f"expected: {recipe['expected']}\nmeasured: {recipe['measured']}\nnext: dvc repro")


def apply(text: str, values: dict[str, dict[str, Any]]) -> tuple[str, list[str]]:
    """The YAML `text` with the recipe's `values` in it, and a line for each key that changed.

    Only the values' own characters are replaced, so comments, order and spacing stay as they are.
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
    for (start, end), value in sorted(replacements, key=lambda item: -item[0][0]):  # from the end: places stay valid
        text = f"{text[:start]} {_written(value)}{text[end:]}"
    lines = [
        f"  {section}.{key}: {_written(before[section][key])} -> {_written(value)}" for section, key, value in changed
    ]
    return text, lines


def _span(text: str, key: Any, value: Any) -> tuple[int, int]:
    """Where a key's value stands: from behind its colon to its last character; an empty value takes no place."""
    start = text.index(":", key.end_mark.index) + 1
    end = value.end_mark.index if value.end_mark.index > value.start_mark.index else start
    return start, start + len(text[start:end].rstrip())  # a block list's node reaches up to the next key


def _written(value: Any) -> str:
    """As YAML 1.2 on one line; the names that params.yaml allows need no quotes."""
    return value if isinstance(value, str) else json.dumps(value)


if __name__ == "__main__":
    run(main)
