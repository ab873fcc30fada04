"""What the commands take that read recorded runs, with 1,000 of them in the store, against `import mlflow` alone.

    python -m benchmarks.commands [ROUNDS]

makes a store of its own (`benchmarks.many_runs`) from one run of the pipeline on the digits; no download, 5 rounds.
"""

from __future__ import annotations

import sqlite3
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from benchmarks.bench import Processes, take_turns
from benchmarks.process import Sample
from benchmarks.project import Project
from benchmarks.results import Bar, Result, Table, ratio, spread

RUNS = 1000
LIMIT = 3  # the whole command / import mlflow
IMPORT = "import mlflow"


class Commands:
    """`lenet leaderboard` of all runs with its page, and `lenet compare` of two with their pictures."""

    def __init__(self, project: Project) -> None:
        project.run("dvc", "repro", "--quiet")
        project.module("benchmarks.many_runs", str(RUNS))
        with closing(sqlite3.connect(project.folder / "mlflow.db")) as store:
            (stored,) = store.execute("SELECT count(*) FROM runs").fetchone()
            two = [run for (run,) in store.execute("SELECT run_uuid FROM runs ORDER BY run_uuid LIMIT 2")]
        assert stored == RUNS, f"{stored} runs"
        lenet = partial(project.module, "commands")
        self.processes: Processes = {
            IMPORT: partial(project.python, "-c", IMPORT),
            "lenet leaderboard": partial(lenet, "leaderboard"),
            "lenet leaderboard --html": partial(lenet, "leaderboard", "--html", "reports/leaderboard.html"),
            "lenet compare": partial(lenet, "compare", *two),
        }
        for process in self.processes.values():  # bytecode, and matplotlib's list of fonts
            process()

    def results(self, samples: Mapping[str, Sequence[Sample]]) -> Result:
        walls = {name: [sample.wall_s for sample in samples[name]] for name in self.processes}
        ratios = {name: ratio(walls[name], walls[IMPORT]) for name in self.processes}
        rows = [[f"`{name}`", spread(walls[name]), f"{ratios[name]:.2f}"] for name in self.processes]
        bars = [Bar(f"{name} / {IMPORT}", value, LIMIT) for name, value in ratios.items() if name != IMPORT]
        return Result(bars, [Table(f"Commands, {RUNS:,} runs in the store", ["process", "s", "/ import"], rows)])


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        section = Commands(Project(Path(folder), ""))
        samples = take_turns(section.processes, rounds, lambda line: print(time.strftime("%H:%M:%S"), line, flush=True))
        result = section.results(samples)
    for bar in result.bars:
        print(" | ".join(bar.row()))
    print("\n".join(table.markdown() for table in result.tables))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
