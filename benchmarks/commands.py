"""Time of the commands that read recorded runs, with 1,000 runs in the store, relative to `import mlflow`."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from functools import partial

from benchmarks.bench import Bench, Processes, Samples, Section
from benchmarks.project import Project
from benchmarks.results import Bar, Result, Table, ratio, summary

LIMIT = 3  # the whole command / import mlflow
IMPORT = "import mlflow"


class Commands(Section):
    """`classifier leaderboard` of all runs, without and with its page, and `classifier compare` of two, with figures.

    The runs have the code of two commits, half of them with uncommitted changes. The compared runs differ in their code
    and their predictions.
    """

    def __init__(self, bench: Bench) -> None:
        self.runs = 20 if bench.quick else 1000
        # A separate project (the digits, with the values of params.yaml): so many runs would slow down other sections.
        project = Project(bench.project.folder / "data/commands", "", epochs=1 if bench.quick else None)
        project.run("dvc", "repro", "--quiet")
        project.module("benchmarks.many_runs", str(self.runs))
        with closing(sqlite3.connect(project.folder / "mlflow.db")) as store:
            (stored,) = store.execute("SELECT count(*) FROM runs").fetchone()
            two = [
                store.execute(
                    "SELECT min(run_uuid) FROM tags WHERE key = 'git.dirty' AND value = ?", (changed,)
                ).fetchone()[0]
                for changed in ("false", "true")
            ]
        assert stored == self.runs, f"{stored} runs"
        cli = partial(project.module, "classifier")
        self.processes: Processes = {
            IMPORT: partial(project.python, "-c", IMPORT),
            "classifier leaderboard": partial(cli, "leaderboard"),
            "classifier leaderboard --html": partial(cli, "leaderboard", "--html", "reports/leaderboard.html"),
            "classifier compare": partial(cli, "compare", *two),
        }
        for process in self.processes.values():  # warm up: bytecode, matplotlib's font cache
            process()
        (written,) = (project.folder / "reports/compare").iterdir()
        missing = {"curves.png", "disagreements.png", "code.diff"} - {path.name for path in written.iterdir()}
        assert not missing, f"classifier compare wrote no {', '.join(sorted(missing))}"

    def results(self, samples: Samples) -> Result:
        walls = {name: [sample.wall_s for sample in samples[name]] for name in self.processes}
        ratios = {name: ratio(walls[name], walls[IMPORT]) for name in self.processes}
        rows = [[f"`{name}`", summary(walls[name]), f"{ratios[name]:.2f}"] for name in self.processes]
        bars = [Bar(f"{name} / {IMPORT}", value, LIMIT) for name, value in ratios.items() if name != IMPORT]
        return Result(bars, [Table(f"Commands, {self.runs:,} runs in the store", ["process", "s", "/ import"], rows)])
