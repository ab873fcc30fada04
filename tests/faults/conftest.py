"""The fixture `attack`, and the table of all attacks, which is printed and written to the file FAULTS_RESULTS."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.attack import PERCENT, SEED, Attack, limit

PROPERTY = "attack"  # in the test's report, which pytest-xdist's workers send as well
FIGURES = pytest.StashKey[dict[str, list[int]]]()  # row -> cases run, cases as expected


@pytest.fixture
def attack(record_property: Callable[[str, Any], None]) -> Iterator[Callable[[str], Attack]]:
    """`attack(row)` starts a row of the table; the test calls its `verdict()` at the end."""
    begun: list[Attack] = []

    def begin(row: str) -> Attack:
        begun.append(Attack(row))
        return begun[-1]

    yield begin
    for each in begun:
        record_property(PROPERTY, [each.row, each.run, each.run - len(each.problems)])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker("faults")
            if not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(limit(7200)))  # all cases of a row can take long


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FIGURES] = {}
    config.pluginmanager.register(Collector(config.stash[FIGURES]), "attacks")


class Collector:
    def __init__(self, figures: dict[str, list[int]]) -> None:
        self.figures = figures

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "teardown":
            return
        for row, run, expected in (value for name, value in report.user_properties if name == PROPERTY):
            total = self.figures.setdefault(row, [0, 0])
            total[0] += run
            total[1] += expected


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    figures = config.stash[FIGURES]
    if not figures:
        return
    table = ["| attack | cases | as expected |", "|---|---:|---:|"]
    table += [f"| {row} | {run} | {expected} |" for row, (run, expected) in figures.items()]
    terminalreporter.section(f"attacks: {PERCENT:g}% of the cases, seed {SEED}")
    terminalreporter.write_line("\n".join(table))
    if path := os.environ.get("FAULTS_RESULTS"):
        values = {row: {"cases": run, "as_expected": expected} for row, (run, expected) in figures.items()}
        content = json.dumps({"percent": PERCENT, "seed": SEED, "attacks": values}, indent=2, ensure_ascii=False)
        Path(path).with_suffix(".json").write_text(content + "\n", encoding="utf-8")
        Path(path).with_suffix(".md").write_text("\n".join(table) + "\n", encoding="utf-8")
