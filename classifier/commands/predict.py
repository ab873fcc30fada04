"""Classify image files with a trained model."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from classifier.data.ranges import NEGATIVE
from classifier.errors import UserError
from classifier.params import load_params
from classifier.project.cli import collect_garbage
from classifier.project.files import write_atomic
from classifier.serving import files
from classifier.serving.files import Answer, Named, Problem
from classifier.serving.references import DIRECTORY, FORMS, typed

if TYPE_CHECKING:
    from classifier.serving.prediction import Predictor

TOP = 5
BAR = 20  # characters
WIDEST = 60  # characters of a file's name up to which the columns are aligned
MOST_WARNINGS = 5


def predict(
    paths: Annotated[
        list[Any],
        typer.Argument(
            parser=files.typed,
            metavar="PATH",
            help="files, folders, patterns, or - for standard input",
            show_default=False,
        ),
    ],
    model: Annotated[str, typer.Option(parser=typed, metavar="MODEL", help=FORMS)] = DIRECTORY,
    top: Annotated[int | None, typer.Option(min=1, help="classes per image; 5 for one image, 1 for several")] = None,
    invert: Annotated[bool, typer.Option("--invert", help="take the negative of the images")] = False,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="write the probabilities of all classes as CSV")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Classify image files with a trained model.

    Images are preprocessed exactly as in training. An image unlike the training images, such as a photo for a model of
    digits, is classified with a warning. A file that cannot be read is reported in one line, and the exit status is 1.

    Example: classifier predict photos/ --top 3
    """
    found = list(files.below(chain.from_iterable(paths)))
    if not found:
        raise UserError("the given folders contain no files")
    predictor = _predictor(model)
    collect_garbage()
    names, unreadable = predictor.meta.class_names, list[Problem]()
    quiet = bool(csv_file) or as_json or not sys.stdout.isatty()
    with _progress(len(found), shown=quiet and len(found) > files.FEW) as advance:
        answers = _readable(predictor.answers(found, invert=invert), unreadable, advance)
        if as_json:
            _print_json(answers, names, top or TOP, unreadable, predictor.meta.weights_sha256)
        elif csv_file:
            _write_csv(answers, names, csv_file)
        else:
            _print_rows(answers, names, found, top, inverted=invert)
    if unreadable:
        sys.exit(1)


def _predictor(model: str) -> Predictor:
    from classifier.arithmetic import use

    use(load_params(Path("params.yaml")).evaluate.arithmetic)  # before torch computes
    from classifier.device import pick_device
    from classifier.serving.prediction import Predictor

    folder = Path(model)
    if not folder.is_dir():
        from classifier.serving.stored import find  # slow: mlflow
        from classifier.tracking.errors import reported

        with reported():
            folder = find(model).folder
    return Predictor(folder, pick_device("auto", "device"))


@contextmanager
def _progress(total: int, shown: bool) -> Iterator[Callable[[], None]]:
    """Yield a function that advances a progress bar by one file. The bar is shown only if stderr is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), disable=not (shown and sys.stderr.isatty())) as progress:
        task = progress.add_task("predict", total=total)
        yield lambda: progress.advance(task)


def _readable(
    answers: Iterable[Answer | Problem], unreadable: list[Problem], advance: Callable[[], None]
) -> Iterator[Answer]:
    """Yield the answers, and print a line on standard error for each file that cannot be read."""
    for each in answers:
        advance()
        if isinstance(each, Problem):
            unreadable.append(each)
            print(f"predict: {each.file.name}: {each.reason}", file=sys.stderr)
        else:
            yield each


def _ranked(answer: Answer, names: Sequence[str], top: int) -> list[tuple[str, float]]:
    order = (-answer.probabilities).argsort(kind="stable")[:top]
    return [(names[index], float(answer.probabilities[index])) for index in order]


def _print_json(
    answers: Iterable[Answer], names: Sequence[str], top: int, unreadable: Sequence[Problem], weights: str
) -> None:
    rows = []
    for answer in answers:
        ranked = [{"class": name, "probability": value} for name, value in _ranked(answer, names, top)]
        rows.append(ranked[0] | {"file": answer.file.name, "top": ranked, "warning": answer.warning})
    problems = [{"file": problem.file.name, "reason": problem.reason} for problem in unreadable]
    print(json.dumps({"weights_sha256": weights, "predictions": rows, "unreadable": problems}, indent=2))


def _write_csv(answers: Iterable[Answer], names: Sequence[str], path: Path) -> None:
    """Write a row per image: file, predicted, probability, warning, and the probability of each class."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["file", "predicted", "probability", "warning", *names])
    for answer in answers:
        ((name, probability),) = _ranked(answer, names, 1)
        table.writerow([answer.file.name, name, probability, answer.warning or "", *answer.probabilities.tolist()])
    write_atomic(path, text.getvalue().encode("utf-8", "surrogateescape"))


def _print_rows(
    answers: Iterable[Answer], names: Sequence[str], found: Sequence[Named], top: int | None, *, inverted: bool
) -> None:
    """Print a line per image, or per class if there is one image. Warnings go to standard error."""
    wide = min(WIDEST, max(len(file.name) for file in found))
    name_wide = max(map(len, names))
    warned = 0
    for answer in answers:
        ranked = _ranked(answer, names, top or (TOP if len(found) == 1 else 1))
        for number, (name, value) in enumerate(ranked):
            label = "" if number else answer.file.name
            print(f"{label:{wide}}  {name:{name_wide}}  {value:7.2%}  {'#' * round(BAR * value)}".rstrip())
        if answer.warning:
            warned += 1
            if warned <= MOST_WARNINGS:
                remedy = f": try {'without ' * inverted}--invert" if answer.warning.endswith(NEGATIVE) else ""
                print(f"predict: {answer.file.name}: {answer.warning}{remedy}", file=sys.stderr)
    if warned > MOST_WARNINGS:
        told = f"predict: {warned:,} images in total are unlike the training images; --json or --csv lists them"
        print(told, file=sys.stderr)
