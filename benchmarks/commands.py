"""What the commands take that read recorded runs, with 1,000 of them in the store, against `import mlflow` alone."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from functools import partial

from benchmarks.bench import Bench, Processes, Samples, Section
from benchmarks.project import Project
from benchmarks.results import Bar, Result, Table, ratio, spread

LIMIT = 3  # the whole command / import mlflow
IMPORT = "import mlflow"


class Commands(Section):
    """`classifier leaderboard` of all runs, the same with its page, and `classifier compare` of two, with pictures.

    The runs have code of two commits, half of them with changes that were not committed; those compared differ in it,
    and in their predictions.
    """

    def __init__(self, bench: Bench) -> None:
        self.runs = 20 if bench.quick else 1000
        # A project of its own, on the digits as params.yaml has them: so many runs would slow down the others' store.
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
        for process in self.processes.values():  # bytecode, and matplotlib's list of fonts
            process()
        (written,) = (project.folder / "reports/compare").iterdir()
        missing = {"curves.png", "disagreements.png", "code.diff"} - {path.name for path in written.iterdir()}
        assert not missing, f"classifier compare wrote no {', '.join(sorted(missing))}"

    def results(self, samples: Samples) -> Result:
        walls = {name: [sample.wall_s for sample in samples[name]] for name in self.processes}
        ratios = {name: ratio(walls[name], walls[IMPORT]) for name in self.processes}
        rows = [[f"`{name}`", spread(walls[name]), f"{ratios[name]:.2f}"] for name in self.processes]
        bars = [Bar(f"{name} / {IMPORT}", value, LIMIT) for name, value in ratios.items() if name != IMPORT]
        return Result(bars, [Table(f"Commands, {self.runs:,} runs in the store", ["process", "s", "/ import"], rows)])
