"""What README says of parameters, recipes and files is what the code does.

`python -m tests.test_readme` prints the tables.
"""

import json
import re
from typing import Any

import pytest
from ruamel.yaml import YAML

from benchmarks.results import Result, bars, markdown
from classifier.commands.application import COMMANDS
from classifier.params import Params
from tests.samples import ROOT, file_params

README = (ROOT / "README.md").read_text()


def parameters() -> str:
    """A row for each key: the value in params.yaml, what is allowed, what it means."""
    schema, values = Params.model_json_schema(), file_params().model_dump()
    rows = ["| key | value | allowed | meaning |", "|---|---|---|---|"]
    for section in Params.model_fields:
        for key, field in schema["$defs"][f"{section.capitalize()}Params"]["properties"].items():
            value = values[section][key]
            shown = value if isinstance(value, str) else json.dumps(value)
            rows.append(f"| `{section}.{key}` | {shown} | {allowed(field)} | {field['description']} |")
    return "\n".join(rows)


def allowed(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(allowed(option) for option in field["anyOf"])
    if "enum" in field:
        return ", ".join(field["enum"])
    if field["type"] == "array":
        return f"list of {allowed(field['items'])}"
    if field["type"] == "object":
        kinds = [option["$ref"].rpartition("/")[2].lower() for option in field["additionalProperties"]["oneOf"]]
        return f"{' or '.join(kinds)} of each key"
    words = {"integer": "whole", "number": "number", "boolean": "true, false", "null": "null", "string": "text"}
    limits = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {field[name]}" for name, sign in limits.items() if name in field]
    return " ".join([words[field["type"]], ", ".join(bounds)]).strip()


def recipes() -> str:
    rows = []
    for path in sorted((ROOT / "recipes").glob("*.yaml")):
        recipe = YAML(typ="safe").load(path)
        rows.append(f"| `{path.stem}` | {recipe['description']} | {recipe['expected']} | {recipe['measured']} |")
    return "\n".join(rows)


def speed() -> str:
    """What the last `make bench` on a CPU found: every bar, and the contenders."""
    kept = json.loads((ROOT / "benchmarks/results/cpu.json").read_text())
    contenders = Result.from_json(kept["contenders"]).tables[0]
    return f"{bars(kept)}\n\n{markdown(contenders.header, contenders.rows)}"


@pytest.mark.parametrize("table", [parameters, recipes, speed])
def test_tables_are_those_of_the_code(table):
    assert table() in README, f"README is behind: python -m tests.test_readme prints\n{table()}"


def test_pictures_and_files_that_it_names_exist():
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / link).is_file(), link
    for name in re.findall(r"^\$ (?:python -m )?classifier (\w+)", README, re.MULTILINE):
        assert name in COMMANDS, name


def test_make_targets_that_it_names_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (\w+)", " ".join(re.findall(r"`[^`]*`|```[^`]*```", README))):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


if __name__ == "__main__":
    print(parameters(), recipes(), speed(), sep="\n\n")
