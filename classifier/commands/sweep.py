"""Run DVC experiments over a grid of parameters, or let Optuna search, and end with the leaderboard."""

from __future__ import annotations

import gc
import json
import re
import shlex
import signal
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import typer

from classifier.errors import UserError
from classifier.params import Params, load_params
from classifier.project.lineage import project_root
from classifier.project.ownership import owning
from classifier.sweeps.grid import Point, grid

if TYPE_CHECKING:
    from classifier.sweeps.experiments import Experiment, Outcome, Plan
    from classifier.sweeps.record import Record
    from classifier.sweeps.running import Sweep, Worker

PARAMS = Path("params.yaml")
SHOWN = 20  # rows of the leaderboard


def sweep(
    values: Annotated[
        list[str] | None, typer.Argument(help="KEY=VALUE,VALUE or KEY=FIRST..LAST; all combinations are tried")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", help="experiments at once; each has cores / jobs threads")] = 1,
    search: Annotated[
        int | None, typer.Option("--search", help="let Optuna try so many, in the ranges of sweep.search")
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="run again what has failed before")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="list what would be run")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Run experiments over a grid of parameters, or search.

    Optuna searches. The leaderboard is printed at the end.

    Every experiment is one of DVC's (dvc exp show, dvc exp apply NAME) and a run in MLflow, below the sweep's own run.
    One that fails is kept there with its error. The workspace stays as it is.

    The same command again goes on with what is left, however the last one ended, and repeats nothing that finished or
    failed, until code or params change; --retry-failed tries again what has failed, as after a full disk. With --search
    it goes on to that number of trials, and KEY=VALUE fixes a key.
    Exit status 0: all have finished, 1: some have failed or were killed.

    Example: classifier sweep train.learning_rate=0.01,0.05,0.1 train.seed=0..4 --jobs 2
    """
    params = load_params(PARAMS)
    points = grid(values or [], params)
    check(params, points, bool(values), jobs, search)
    gc.disable()  # looking for garbage among mlflow's modules takes half a second
    # Seconds of imports, which a wrong command line need not wait for.
    from classifier.repository.clones import Baseline, stop_processes
    from classifier.runs.registry import reported
    from classifier.sweeps import running as sweeping
    from classifier.sweeps.record import Record, sweep_key

    gc.freeze()
    gc.enable()
    baseline = Baseline.of(project_root())
    key = sweep_key([params.sweep.model_dump(), points] if search else points, params)
    name = f"sweep-{key[:8]}"
    folder = baseline.root / sweeping.SWEEPS / name
    with reported():
        record = Record(key, name)
        if dry_run:
            show_plan(record, points, search, params, baseline.root, retry_failed, as_json)
            return
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # nohup ignores it
        signal.signal(signal.SIGHUP, lambda number, frame: sys.exit(128 + number))
    with owning(folder / "owner"):
        stop_processes(sweeping.clones_of(folder))  # of a sweep that was killed
        with reported():
            record.begin(shlex.join(["classifier", "sweep", *sys.argv[1:]]))
        plan = plan_of(params, points, search, name, folder)
        with reported():
            work = sweeping.Sweep(plan, record, baseline, params, folder, jobs, retry_failed)
        try:
            with Bars(work) if sys.stderr.isatty() else Lines(work) as display:
                work.run(display)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit):
                done = len(work.results)
                print(f"{name}: stopped, {done} of {len(plan.names)} done; the same command goes on", file=sys.stderr)
            with suppress(OSError):  # a store that is away
                record.end("KILLED")
            raise
        complete = all(outcome.status != "killed" for _, outcome in work.results)
        sweeping.patiently(lambda: record.end("FINISHED" if complete else "KILLED"))
    show_result(work, params, as_json)
    sys.exit(any(outcome.status != "finished" for _, outcome in work.results))


def check(params: Params, points: Sequence[Point], given: bool, jobs: int, search: int | None) -> None:
    """UserError when this is nothing to run."""
    for option, number in (("--jobs", jobs), ("--search", search)):
        if number is not None and number < 1:
            raise UserError(f"{option} {number}; allowed is 1 or more")
    if search is None:
        if not given:
            raise UserError("nothing to try; expected KEY=VALUE,VALUE or --search N, as classifier sweep --help shows")
        return
    if len(points) > 1:
        raise UserError(f"--search with {len(points)} combinations; allowed is one value for each key, which is fixed")
    if params.override(points[0]).normalize.validation_fraction == 0:
        raise UserError("normalize.validation_fraction: 0 leaves nothing to search by; allowed with --search is more")
    if not params.sweep.search.keys() - points[0].keys():
        raise UserError("nothing to search: params.yaml names ranges in sweep.search, of keys that are not fixed")


def plan_of(params: Params, points: Sequence[Point], search: int | None, name: str, folder: Path) -> Plan:
    from classifier.sweeps.experiments import Grid

    if search is None:
        return Grid(points, name)
    from classifier.sweeps.search import Search  # here: Optuna takes a second

    return Search(params, points[0], search, name, folder / "study.db")


class Lines(AbstractContextManager["Lines"]):
    """Plain lines on standard error, one as an experiment ends."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep, self.total = sweep, len(sweep.plan.names)

    def __enter__(self) -> Self:
        already = f", {self.sweep.already} of them done already" if self.sweep.already else ""
        workers, threads = len(self.sweep.workers), self.sweep.threads
        self.say(f"{self.sweep.record.name}: {self.total} experiments{already}; {workers} at a time, threads {threads}")
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to put away."""

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def running(self, workers: Sequence[Worker]) -> None:
        """Nothing to show."""

    def ended(self, experiment: Experiment, outcome: Outcome) -> None:
        done = len(self.sweep.results)
        self.say(f"[{done:>{len(str(self.total))}}/{self.total}] {experiment.name}  {experiment}  {described(outcome)}")


class Bars(Lines):
    """The same lines on a terminal, and below them a bar and what each worker says."""

    def __enter__(self) -> Self:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.table import Column

        text = TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True), markup=False)
        columns = (BarColumn(bar_width=12), MofNCompleteColumn(), TimeElapsedColumn(), text)
        self.progress = Progress(*columns, console=Console(stderr=True), transient=True, expand=True)
        super().__enter__()
        self.progress.start()
        self.all = self.progress.add_task("", total=self.total)
        self.tasks = {worker: self.progress.add_task("", total=None, visible=False) for worker in self.sweep.workers}
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def say(self, line: str) -> None:
        self.progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def running(self, workers: Sequence[Worker]) -> None:
        self.progress.update(self.all, completed=len(self.sweep.results))
        for worker, task in self.tasks.items():
            text = f"{worker.experiment}  {' '.join(worker.last_lines(1))}"
            self.progress.update(task, visible=worker in workers, description=text)


def described(outcome: Outcome) -> str:
    """In a few words."""
    if outcome.status != "finished":
        return f"{outcome.status}: {reason(outcome)}"
    accuracies = [
        f"{split} {outcome.metrics[f'{split}_accuracy']:.2%}"
        for split in ("validation", "test")
        if f"{split}_accuracy" in outcome.metrics
    ]
    return ", ".join([*accuracies, f"{outcome.seconds or 0:.1f} s"])


def reason(outcome: Outcome) -> str:
    """Why it did not finish, without the exception's name, which stands in MLflow."""
    return re.sub(r"^\w+Error: ", "", outcome.error or "")


def show_plan(
    record: Record,
    points: Sequence[Point],
    search: int | None,
    params: Params,
    root: Path,
    retry_failed: bool,
    as_json: bool,
) -> None:
    """What would be run, and what is done already."""
    from classifier.repository.clones import experiment_arguments, experiments
    from classifier.sweeps.experiments import Grid, shown, trial_names
    from classifier.sweeps.record import is_done, outcome_of

    known, existing = record.known(), experiments(root, f"{record.name}-*")

    def done(name: str, values: Point) -> bool:
        return is_done(name, outcome_of(values, known.get(name, [])), existing, retry_failed)

    if search is not None:
        count = sum(done(name, {}) for name in trial_names(record.name, search))
        ranges = {key: each for key, each in params.sweep.model_dump()["search"].items() if key not in points[0]}
        plan = {"left": search - count, "done": count, "search": ranges, "fixed": points[0]}
        lines = [f"{key}: {', '.join(f'{name} {shown(each[name])}' for name in each)}" for key, each in ranges.items()]
    else:
        grid_points = Grid(points, record.name).experiments
        left = [each for each in grid_points if not done(each.name, each.values)]
        listed = [{"name": each.name, "values": each.values} for each in left]
        plan = {"left": len(left), "done": len(grid_points) - len(left), "experiments": listed}
        lines = [f"dvc {shlex.join(experiment_arguments(each.name, each.values))}" for each in left]
    if as_json:
        print(json.dumps({"sweep": record.name, **plan}, indent=2))
    else:
        print("\n  ".join([f"{record.name}: {plan['left']} experiments to run, {plan['done']} done", *lines]))


def show_result(sweep: Sweep, params: Params, as_json: bool) -> None:
    """What became of every experiment, the best one on validation, and the leaderboard of those that finished."""
    from classifier.commands.leaderboard import show
    from classifier.runs.leaderboard import leaderboard
    from classifier.runs.reading import all_runs
    from classifier.runs.registry import reported
    from classifier.sweeps.experiments import shown

    finished = [(experiment, outcome) for experiment, outcome in sweep.results if outcome.status == "finished"]
    with reported():
        board = leaderboard(all_runs(), sweep.record.id) if finished else None
    best = best_of(finished, params)
    if as_json:
        answer = {
            "sweep": sweep.record.name,
            "run_id": sweep.record.id,
            "experiments": [
                {"name": experiment.name, "values": experiment.values, **asdict(outcome)}
                for experiment, outcome in sweep.results
            ],
            "best": best and best[0].name,
            "leaderboard": board and board.summary(),
        }
        print(json.dumps(answer, indent=2))
        return
    others = [(experiment, outcome) for experiment, outcome in sweep.results if outcome.status != "finished"]
    if others:
        show_others(others)
    if board:
        show(board, SHOWN)
    killed = sum(outcome.status == "killed" for _, outcome in others)
    counts = f"{len(finished)} finished, {len(others) - killed} failed"
    goes_on = f", {killed} killed, with which the same command goes on" if killed else ""
    print(f"{sweep.record.name}: {counts}{goes_on}; run {sweep.record.id}")
    if best:
        experiment, value = best
        print(f"best {params.sweep.metric}: {shown(value)}, {experiment}; dvc exp apply {experiment.name}")


def show_others(others: Sequence[tuple[Experiment, Outcome]]) -> None:
    """Those that failed, or were killed, with their error."""
    from rich.console import Console
    from rich.table import Table

    table = Table("experiment", "values", "", "error", "run", box=None, header_style="bold")
    for experiment, outcome in others:
        table.add_row(experiment.name, str(experiment), outcome.status, reason(outcome), (outcome.run_id or "-")[:8])
    Console(width=None if sys.stdout.isatty() else 160, markup=False, emoji=False).print(table)


def best_of(finished: Sequence[tuple[Experiment, Outcome]], params: Params) -> tuple[Experiment, float] | None:
    """By `sweep.metric`, of the validation split; None when there was none."""
    metric = params.sweep.metric
    values = [(each, outcome.metrics[metric]) for each, outcome in finished if metric in outcome.metrics]
    sign = -1 if metric.endswith("loss") else 1
    return max(values, key=lambda found: sign * found[1], default=None)
