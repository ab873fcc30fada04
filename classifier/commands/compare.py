"""Compare recorded runs, and show the images on which they disagree."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from classifier.commands.application import RUN_HELP

if TYPE_CHECKING:
    from classifier.runs.comparison import Comparison, Difference

FOLDER = Path("reports/compare")
IMAGES = 36  # in the picture


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN", help=f"two or more, each {RUN_HELP}")],
    output: Annotated[
        Path | None, typer.Option(help=f"folder for the pictures and the diff [default: {FOLDER}/<ids>]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="the comparison as JSON")] = False,
) -> None:
    """Show what differs between recorded runs.

    Compares params, code, data, environment, accuracy by class and the predictions of single images.

    Each run is compared with the first. Code includes uncommitted changes. Writes curves.png, the curves of all runs;
    disagreements.csv, the images that the runs predict differently; disagreements.png, if the test split is in the
    workspace or in DVC's cache; code.diff, if the code differs. Runs on different test data cannot be compared.

    Example: classifier compare @champion latest
    """
    from classifier.runs.comparison import compare as comparison_of  # here: mlflow takes seconds, and --help is quick
    from classifier.runs.reading import find_run
    from classifier.tracking.errors import reported

    with reported():
        comparison = comparison_of([find_run(run) for run in runs])
    folder = output or FOLDER / "-".join(str(run)[:8] for run in comparison.runs.index)
    written, problems = write(comparison, folder)
    comparison = replace(comparison, problems=[*comparison.problems, *problems])
    if as_json:
        print(json.dumps(comparison.summary() | {"written": [str(path) for path in written]}, indent=2))
    else:
        show(comparison)
        print("\n".join(["", *map(str, written)]))


def write(comparison: Comparison, folder: Path) -> tuple[list[Path], list[str]]:
    """Write the files. Returns their paths, and the reasons why other files are missing."""
    from classifier.project.files import write_atomic
    from classifier.runs.comparison import find_test_images
    from classifier.runs.comparison_figures import curves, disagreements

    labels = [f"{str(run)[:8]} {row['name']}" for run, row in comparison.runs.iterrows()]
    names, problems = _names(comparison), []
    files = {"curves.png": curves(dict(zip(labels, comparison.curves, strict=True)))}
    if any(change.diff for change in comparison.code):
        headed = zip(names[1:], comparison.code, strict=True)
        files["code.diff"] = "".join(f"# from {names[0]} to {name}\n{change.diff}" for name, change in headed).encode()
    if comparison.results:
        table = comparison.results.disagreements
        files["disagreements.csv"] = table.to_csv(index=False, lineterminator="\n").encode()
        if len(table):
            shown = table.head(IMAGES)
            try:
                images = find_test_images(comparison.runs)[shown["index"]]
            except FileNotFoundError as error:
                problems.append(f"disagreements.png: {error}")
            else:
                class_names = comparison.results.class_names
                files["disagreements.png"] = disagreements(images, shown, names, class_names, len(table))
    for name, content in files.items():
        write_atomic(folder / name, content)
    return [folder / name for name in files], problems


def show(comparison: Comparison) -> None:
    """Print the differences as tables."""
    from classifier.commands._tables import tabulate
    from classifier.runs.reading import short

    names, same = _names(comparison), []

    def show_table(
        title: str, header: Sequence[str], rows: Sequence[Sequence[str]], optional: Sequence[str] = ()
    ) -> None:
        tabulate(header, rows, title=title, optional=optional)
        print()

    def differences(title: str, found: Sequence[Difference]) -> None:
        if found:
            show_table(title, ["", *names], [[each.name, *map(short, each.values)] for each in found])
        else:
            same.append(title.lower())

    rows = comparison.runs.to_dict("index")
    show_table(
        "Runs",
        ["", "name", "status", "seed", "test accuracy", "training, s"],
        [
            [
                name,
                str(row["name"]),
                row["status"],
                str(row["seed"]),
                _number(row.get("metrics.test/accuracy"), ".2%"),
                _number(row["trained_s"], ".1f"),
            ]
            for name, row in zip(names, rows.values(), strict=True)
        ],
        optional=["status", "training, s", "seed"],
    )
    differences("Params", comparison.params)
    differences("Data", comparison.data)
    differences("Environment", comparison.environment)
    for name, change in zip(names[1:], comparison.code, strict=True):
        title = f"Code, from {names[0]} to {name}"
        if change.problem:
            continue
        if change.diff:
            show_table(title, ["file", "lines"], [[file, f"+{plus} -{minus}"] for file, plus, minus in change.files])
        else:
            same.append(title.lower())
    if same:
        print(f"The same: {'; '.join(same)}\n")
    if comparison.results:
        results = comparison.results
        show_table(
            "Accuracy by class",
            ["", "images", *names],
            [
                [row["name"], str(row["images"]), *(f"{row[f'accuracy_{k}']:.2%}" for k in range(len(names)))]
                for row in results.per_class.to_dict("records")
            ],
        )
        print(f"the runs disagree on {len(results.disagreements)} images")
        for name, alone, p in zip(names[1:], results.alone, results.p_corrected, strict=True):
            print(
                f"correct only in {names[0]}: {alone.first_alone}, only in {name}: {alone.second_alone}; "
                f"McNemar's p {p:.3g}" + (", corrected for the number of tests" if len(names) > 2 else "")
            )
    for problem in comparison.problems:
        print(f"missing: {problem}")


def _names(comparison: Comparison) -> list[str]:
    return [str(run)[:8] for run in comparison.runs.index]


def _number(value: object, form: str) -> str:
    return format(value, form) if isinstance(value, float) and value == value else "-"
