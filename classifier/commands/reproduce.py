"""Reproduce a recorded run and check that it gives the same bytes."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from classifier.commands.application import RUN_HELP

if TYPE_CHECKING:
    from classifier.runs.reproduction import Finding, ReproductionReport


def reproduce(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help=RUN_HELP)],
    keep: Annotated[bool, typer.Option("--keep", help="keep the checkout and print its path")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Repeat a run in a temporary checkout, and compare every result.

    Commit, uncommitted changes and params are taken from the run. The data come from DVC's cache or a remote by their
    hash, or are downloaded again and verified. Training and evaluation run without caches. A failed run must fail with
    the same error. Exit status 0: byte-identical; 1: something differs, as a table shows, or was not recorded.

    Example: classifier reproduce latest
    """
    import classifier.runs.reproduction as reproduction  # slow: mlflow
    from classifier.runs.reading import find_run, run_seconds
    from classifier.tracking.errors import reported

    with reported():
        run = find_run(run_id)
        took = f", which took {seconds:.0f} s" if (seconds := run_seconds(run)) else ""
        told = f"repeating {run.info.run_name}, id {run.info.run_id[:8]}{took}: checkout, data, training, evaluation"
        print(told, file=sys.stderr, flush=True)
        report = reproduction.reproduce(run, keep=keep)
    if as_json:
        print(json.dumps(report.summary(), indent=2))
    else:
        _show(report)
    sys.exit(not report.identical)


def _show(report: ReproductionReport) -> None:
    """Print the result in one line and the differences as a table."""
    for line in report.warnings:
        print(f"warning: {line}")
    if not report.differences:
        counts = ", ".join(f"{count} {kind}" for kind, count in report.compared.items())
        how = "cannot be compared completely; identical:" if report.missing else "is reproduced, byte-identical:"
        print(f"run {report.run_id} {how} {counts}")
    else:
        several = "s" if len(report.differences) > 1 else ""
        print(f"run {report.run_id} is not reproduced: {len(report.differences)} difference{several}")
        if report.computation:
            changes = (f"{each.name} was {each.recorded}, is {each.reproduced}" for each in report.computation)
            print(f"the computation differs, which may be the cause: {'; '.join(changes)}")
        _table(report.differences)
    for line in report.missing:
        print(f"cannot be compared: {line}")
    if report.environment:
        why = ", which may be the cause" if report.differences else ""
        print(f"the environment differs{why}:")
        _table(report.environment)


def _table(findings: list[Finding]) -> None:
    from classifier.commands._tables import tabulate
    from classifier.runs.reading import short

    rows = [[each.kind, each.name, short(each.recorded), short(each.reproduced)] for each in findings]
    tabulate(["what", "name", "recorded", "reproduced"], rows, optional=["what"])
