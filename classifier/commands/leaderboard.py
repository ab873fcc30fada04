"""Rank every recorded result, seeds together, with the significance of each difference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from classifier.runs.leaderboard import Board


def leaderboard(
    top: Annotated[int, typer.Option("--top", min=0, help="rows of the table, 0 for all; not of page and JSON")] = 20,
    sweep: Annotated[
        str | None, typer.Option("--sweep", help="only the runs of this sweep: its name or its run's id")
    ] = None,
    test_data: Annotated[
        str | None, typer.Option("--test-data", help="rank on the test split with this digest or digest prefix")
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", help="write a self-contained page to this file")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the whole leaderboard as JSON")] = False,
) -> None:
    """Rank all recorded results, and test their differences.

    A row combines all runs that differ only in the seed: they have the same params, data and code (stages/, classifier/
    and dvc.yaml, committed or not). Params that change neither the model nor its accuracy are ignored: train.seed,
    seeds, log_every and checkpoint_every, mirrors and retries of download, and the section evaluate. A repeated seed
    counts once.

    Columns: n seeds, the mean of their test accuracy, its standard deviation and 95% interval (Student's t), the params
    that differ, the network's parameters, mean seconds of training. "Against the best" is McNemar's exact test on the
    predictions of each row's median run, or of the next one that has predictions, with Holm's correction for all tests
    of the board. In parentheses: the numbers of images that only this run, and only the best one, predicts correctly.
    The test compares two models; the interval shows what to expect from other seeds.

    Rows on a different test split than the newest run's are listed last and not compared.

    Example: classifier leaderboard --html reports/leaderboard.html
    """
    from classifier.runs.leaderboard import leaderboard as board_of  # here: mlflow takes seconds, and --help is quick
    from classifier.runs.reading import all_runs, find_run
    from classifier.tracking.errors import reported

    with reported():
        board = board_of(all_runs(), find_run(sweep).info.run_id if sweep else None, test_data)
    if html:
        from classifier.project.files import write_atomic
        from classifier.runs.leaderboard_page import page

        write_atomic(html, page(board).encode())
    if as_json:
        print(json.dumps(board.summary(), indent=2))
        return
    show(board, top)
    if html:
        print(f"page: {html}")


def show(board: Board, top: int = 0) -> None:
    """Print the first `top` rows of the board as a table; 0 for all."""
    from classifier.commands._tables import BOLD, DIM, tabulate

    table = board.table()
    header = ["", *(str(name).removeprefix("train.") for name in table)]
    shown = list(zip(board.entries, table.itertuples(), strict=True))[: top or None]
    params = [name.removeprefix("train.") for name in board.columns]
    tabulate(
        header,
        [[str(value) for value in values] for _, values in shown],
        optional=["parameters", "training, s", "std", "code", "data", "95% interval", *reversed(params)],
        styles=[BOLD if entry.best else "" if board.ranks(entry) else DIM for entry, _ in shown],
    )
    if top and len(board.entries) > top:
        print(f"{len(board.entries) - top} more rows: classifier leaderboard --top 0")
