"""README and docs/ say what the code does: tables of parameters, recipes and speed, commands, links, files.

`python -m tests.test_docs` writes the tables between their marks.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from ruamel.yaml import YAML

from benchmarks.results import Result, bars, markdown
from classifier.commands.application import COMMANDS, application
from classifier.commands.results import text
from classifier.evaluation.metrics import wilson_interval
from classifier.params import Params
from tests.samples import ROOT, file_params

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def parameters() -> str:
    """A row for each key: the value in params.yaml, what is allowed, what it means."""
    schema = Params.model_json_schema()
    rows = ["| key | value | allowed | meaning |", "|---|---|---|---|"]
    for key, value, field in fields(schema, schema["$defs"], file_params().model_dump(), ""):
        shown = value if isinstance(value, str) else json.dumps(value)
        rows.append(f"| `{key}` | {shown} | {allowed(field)} | {field['description']} |")
    return "\n".join(rows)


def fields(section: dict[str, Any], sections: dict[str, Any], values: dict[str, Any], prefix: str) -> Iterator[Any]:
    """Key, value and schema of each value of a section, those of the sections within it included."""
    for key, field in section["properties"].items():
        if "$ref" in field:
            inner = sections[field["$ref"].rpartition("/")[2]]
            yield from fields(inner, sections, values[key], f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", values[key], field


def allowed(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(allowed(option) for option in field["anyOf"])
    if "const" in field:
        return str(field["const"])
    if "enum" in field:
        return ", ".join(map(str, field["enum"]))
    if field["type"] == "array":
        return f"list of {allowed(field['items'])}"
    if field["type"] == "object":
        kinds = [option["$ref"].rpartition("/")[2].lower() for option in field["additionalProperties"]["oneOf"]]
        return f"{' or '.join(kinds)} of each key"
    words = {"integer": "integer", "number": "number", "boolean": "true, false", "null": "null", "string": "text"}
    limits = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {field[name]}" for name, sign in limits.items() if name in field]
    return " ".join([words[field["type"]], ", ".join(bounds)]).strip()


def recipes() -> str:
    rows = ["| recipe | what | expected | measured |", "|---|---|---|---|"]
    for path in sorted((ROOT / "recipes").glob("*.yaml")):
        recipe = YAML(typ="safe").load(path)
        rows.append(f"| `{path.stem}` | {recipe['description']} | {recipe['expected']} | {recipe['measured']} |")
    return "\n".join(rows)


def speed() -> str:
    """What the last `make bench` on a CPU found: every bar, and the contenders."""
    kept = json.loads((ROOT / "benchmarks/results/cpu.json").read_text())
    contenders = Result.from_json(kept["contenders"]).tables[0]
    return f"{bars(kept)}\n\n{markdown(contenders.header, contenders.rows)}"


TABLES = [parameters, recipes, speed]


def with_table(name: str, table: str) -> tuple[Path, str]:
    """The page of that name, and its text with the table between its marks."""
    path = ROOT / f"docs/{name}.md"
    mark = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
    text, found = re.subn(mark, lambda marks: f"{marks[1]}{table}\n{marks[2]}", path.read_text(), flags=re.DOTALL)
    assert found == 1, f"{path} has no marks for {name}"
    return path, text


@pytest.mark.parametrize("table", TABLES)
def test_tables_are_those_of_the_code(table):
    path, text = with_table(table.__name__, table())
    assert path.read_text() == text, "python -m tests.test_docs writes the tables"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_that_a_page_names_exist(page):
    text = page.read_text()
    for link in re.findall(r"\]\((?!http)([^)\s]+)\)", text):
        name, _, heading = link.partition("#")
        target = page.parent / name if name else page
        assert target.is_file(), link
        headings = (
            [line.lstrip("# ").lower() for line in target.read_text().splitlines() if line.startswith("#")]
            if (heading)
            else []
        )
        anchors = {re.sub(r"[^\w\- ]", "", line).replace(" ", "-") for line in headings}
        assert not heading or heading in anchors, link
    for path in re.findall(r"`((?:classifier|tests|stages|benchmarks|recipes|examples)/[\w/.-]+\.\w+)`", text):
        assert (ROOT / path).is_file(), path


def options_of(name: str) -> set[str]:
    """The long options of a command."""
    command = typer.main.get_command(application).get_command(None, name)
    return {option for parameter in command.params for option in parameter.opts} | {"--help"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_targets_that_a_page_names_exist(page):
    text, makefile = page.read_text(), (ROOT / "Makefile").read_text()
    code = " ".join(re.findall(r"`[^`\n]*`|```[^`]*```", text))
    for name in re.findall(r"(?:^|[`$] ?)classifier ([a-z]+)", code, re.MULTILINE):
        assert name in COMMANDS, name
    for name, arguments in re.findall(r"classifier ([a-z]+)([^`\n#|]*)", code):
        for option in re.findall(r"--[a-z-]+", arguments):
            assert option in options_of(name), f"classifier {name} {option}"
    for target in re.findall(r"make ([\w-]+)", code):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_readme_is_two_screens_and_shows_every_folder():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 200
    for folder in sorted({path.parent.name for path in (ROOT / "classifier").glob("*/__init__.py")}):
        assert re.search(rf"^  {folder}/ ", text, re.MULTILINE), folder


def test_readme_shows_the_accuracy_that_the_recipe_of_the_default_was_measured_with():
    """The recipe has the share of the test images that are right, from which the other figures follow."""
    readme, measured = (ROOT / "README.md").read_text(), YAML(typ="safe").load(ROOT / "recipes/digits.yaml")["measured"]
    found = re.match(r"(\d+\.\d%) of the (\d+) test images for seed 0;", measured)
    assert found
    share, count, level = found[1], int(found[2]), file_params().evaluate.confidence
    (right,) = [right for right in range(count + 1) if f"{right / count:.1%}" == share]
    low, high = wilson_interval(right, count, level)
    metrics = {"accuracy": right / count, "accuracy_low": low, "accuracy_high": high}
    assert text(metrics, {}, "digits", count, level) in readme
    assert re.search(rf"^run +digits lenet5 {share} ", readme, re.MULTILINE)


if __name__ == "__main__":
    for table in TABLES:
        page, text = with_table(table.__name__, table())
        page.write_text(text)
