"""Run DVC experiments over a grid of params or an Optuna search, then show the leaderboard."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from classifier.errors import UserError
from classifier.params import Params, load_params
from classifier.project.cli import collect_garbage
from classifier.project.lineage import project_root
from classifier.project.ownership import owning
from classifier.recording.pages import page_of
from classifier.sweeps.grid import Point, grid

if TYPE_CHECKING:
    from classifier.runs.leaderboard import Board
    from classifier.sweeps.experiments import Best, Experiment, Outcome, Plan
    from classifier.sweeps.record import Record
    from classifier.sweeps.running import Sweep

PARAMS = Path("params.yaml")
PICTURES = Path("reports/sweeps")
SHOWN = 20  # rows of the leaderboard


def sweep(
    values: Annotated[
        list[str] | None, typer.Argument(help="KEY=VALUE,VALUE or KEY=FIRST..LAST; runs all combinations")
    ] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", help="number of parallel experiments; each uses cores / jobs threads")
    ] = 1,
    search: Annotated[
        int | None, typer.Option("--search", help="number of Optuna trials in the ranges of sweep.search")
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="run failed experiments again")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="list the experiments and run nothing")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Run experiments over a grid of params or an Optuna search.

    Prints the leaderboard at the end.

    Every experiment is a DVC experiment (dvc exp show, dvc exp apply NAME) and an MLflow run, nested in the sweep's
    run. A failed experiment is recorded with its error. The workspace is not changed.

    Running the same command again continues an interrupted sweep. Experiments that finished or failed are not run
    again, unless code or params changed or their outputs were removed from DVC's cache (dvc gc); --retry-failed runs
    failed ones again. With --search it continues up to that number of trials, and KEY=VALUE fixes a key.

    The best is the configuration with the best mean of sweep.metric over its seeds, on the validation split. Test
    results are shown only at the end, so that they do not influence the choice.

    Exit status 0: all experiments finished, 1: some failed or were killed.

    Example: classifier sweep train.learning_rate=0.01,0.05 train.seed=0..4
    """
    params = load_params(PARAMS)
    points = grid(values or [], params)
    check(params, points, bool(values), jobs, search)
    # Imported here: they take seconds, which an invalid command line does not need.
    from classifier.repository.clones import Baseline, stop_processes
    from classifier.repository.worktree import lacks_images
    from classifier.sources.images import NOWHERE
    from classifier.sweeps import running as sweeping
    from classifier.sweeps.record import Record, sweep_key
    from classifier.tracking.errors import reported

    collect_garbage()
    baseline = Baseline.of(project_root(), params.own_files)
    key = sweep_key([params.sweep.model_dump(), points] if search else points, params)
    name = f"sweep-{key[:8]}"
    folder = baseline.root / sweeping.SWEEPS / name
    with reported():
        record = Record(key, name, folder)
        if dry_run:
            show_plan(record, points, search, params, baseline.root, retry_failed, as_json)
            return
    for point in points or [{}]:
        source = {key: value for key, value in point.items() if key.startswith("download.")}
        download = params.override(source).download if source else params.download
        if lacks_images(baseline.root, download.model_dump()):
            raise FileNotFoundError(NOWHERE.format(baseline.root / download.folder))
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # nohup ignores it
        signal.signal(signal.SIGHUP, lambda number, frame: sys.exit(128 + number))
    with owning(folder / "owner"):
        stop_processes(sweeping.clones_of(folder))  # left by a killed sweep
        with reported():
            record.begin(shlex.join(["classifier", *sys.argv[1:]]))
        plan = plan_of(params, points, search, name, folder)
        with reported():
            work = sweeping.Sweep(plan, record, baseline, params, folder, jobs, retry_failed)
        try:
            with Lines(work) as lines:
                work.run(lines)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit):
                done = len(work.results)
                say(f"{name}: stopped, {done} of {len(plan.names)} done; run the same command to continue")
            with suppress(OSError):  # the store is unreachable
                record.end("KILLED")
            raise
        complete = all(outcome.status != "killed" for _, outcome in work.results)
        sweeping.patiently(lambda: record.end("FINISHED" if complete else "KILLED"))
    show_result(work, params, as_json)
    sys.exit(any(outcome.status != "finished" for _, outcome in work.results))


def check(params: Params, points: Sequence[Point], given: bool, jobs: int, search: int | None) -> None:
    """Raise UserError if the command line leaves nothing to run."""
    for option, number in (("--jobs", jobs), ("--search", search)):
        if number is not None and number < 1:
            raise UserError(f"{option} {number}; allowed is 1 or more")
    if search is None:
        if not given:
            raise UserError("nothing to try; expected KEY=VALUE,VALUE or --search N, as classifier sweep --help shows")
        return
    if len(points) > 1:
        raise UserError(f"--search with {len(points)} combinations; allowed is one value for each key, to fix it")
    if params.override(points[0]).normalize.validation_fraction == 0:
        raise UserError("normalize.validation_fraction: 0 leaves no images for validation; --search needs more than 0")
    if not params.sweep.search.keys() - points[0].keys():
        raise UserError("nothing to search: params.yaml names no range in sweep.search for a key that is not fixed")


def plan_of(params: Params, points: Sequence[Point], search: int | None, name: str, folder: Path) -> Plan:
    from classifier.sweeps.experiments import Grid

    if search is None:
        return Grid(points, name)
    from classifier.sweeps.search import Search  # imported here: Optuna takes a second

    return Search(params, points[0], search, name, folder / "study.db")


class Lines(AbstractContextManager["Lines"]):
    """Prints a line to standard error when an experiment starts, and one when it ends.

    On a terminal it also shows the last line printed by each running experiment.
    """

    def __init__(self, sweep: Sweep) -> None:
        self.sweep, self.total, self.began = sweep, len(sweep.plan.names), time.monotonic()
        self.here = 0  # experiments that ended in this process
        already = f", {sweep.already} of them done already" if sweep.already else ""
        speed = f"{len(sweep.workers)} at a time, threads {sweep.threads}"
        logs = f"logs in {os.path.relpath(sweep.logs)}"
        self.live = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live
            from rich.text import Text

            def running() -> Text:
                return Text("\n".join(map(str, sweep.busy)), style="dim", no_wrap=True, overflow="ellipsis")

            self.live = Live(console=Console(stderr=True), transient=True, refresh_per_second=2, get_renderable=running)
            self.live.start()
        say(f"{sweep.record.name}: {counted(self.total)}{already}; {speed}; {logs}")

    def __call__(self, experiment: Experiment, outcome: Outcome | None) -> None:
        if outcome is None:
            say(f"{' ' * len(self._count())} {experiment.name}  {experiment}  started")
            return
        self.here += 1
        say(f"{self._count()} {experiment.name}  {experiment}  {described(outcome)}{self._time_left()}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()

    def _count(self) -> str:
        return f"[{len(self.sweep.results):>{len(str(self.total))}}/{self.total}]"

    def _time_left(self) -> str:
        left = self.total - len(self.sweep.results)
        minutes = left * (time.monotonic() - self.began) / self.here / 60
        return f"; about {max(1, round(minutes))} min left" if left else ""


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def counted(number: int) -> str:
    return f"{number} experiment{'' if number == 1 else 's'}"


def described(outcome: Outcome) -> str:
    """Describe an outcome briefly. Shows only validation results, so that the test split does not select the model."""
    if outcome.status != "finished":
        reason = re.sub(r"^\w+Error: ", "", outcome.error or "")  # the exception's name is in MLflow
        return f"{outcome.status}: {reason}"
    accuracy = outcome.metrics.get("validation_accuracy")
    return f"{'' if accuracy is None else f'validation {accuracy:.2%}, '}{outcome.seconds or 0:.1f} s"


def show_plan(
    record: Record,
    points: Sequence[Point],
    search: int | None,
    params: Params,
    root: Path,
    retry_failed: bool,
    as_json: bool,
) -> None:
    """Print what would run and what is already done."""
    from classifier.repository.clones import applicable_experiments, experiment_arguments
    from classifier.sweeps.experiments import Experiment, Grid, shown, trial_names
    from classifier.sweeps.record import is_done, outcome_of

    known, applicable = record.known(), applicable_experiments(root, f"{record.name}-*")
    planned: list[tuple[Experiment, Outcome | None]] = []
    for each in (
        Grid(points, record.name).experiments
        if search is None
        else [Experiment(name, points[0]) for name in trial_names(record.name, search)]
    ):
        outcome = outcome_of(each.values, known.get(each.name, []))
        planned.append((each, outcome if is_done(each.name, outcome, applicable, retry_failed) else None))
    if as_json:
        print_json(record, planned)
        return
    left = [each for each, outcome in planned if outcome is None]
    if search is None:
        lines = [f"dvc {shlex.join(experiment_arguments(each.name, each.values))}" for each in left]
    else:
        ranges = {key: each for key, each in params.sweep.model_dump()["search"].items() if key not in points[0]}
        lines = [f"{key}: {', '.join(f'{name} {shown(each[name])}' for name in each)}" for key, each in ranges.items()]
    print("\n  ".join([f"{record.name}: {counted(len(left))} to run, {len(planned) - len(left)} done", *lines]))


def show_result(sweep: Sweep, params: Params, as_json: bool) -> None:
    """Print every experiment's outcome, the leaderboard of the finished ones and the best one on validation."""
    from classifier.commands.leaderboard import show
    from classifier.runs.leaderboard import leaderboard, results
    from classifier.runs.reading import all_runs
    from classifier.sweeps.experiments import best_of
    from classifier.tracking.errors import reported

    finished = [experiment for experiment, outcome in sweep.results if outcome.status == "finished"]
    board, best = None, None
    if finished:
        say(f"reading the results of {counted(len(finished))}")
        with reported():
            runs = all_runs()
            board = leaderboard(runs, sweep.record.id)
        best = best_of(finished, board, results(runs, sweep.record.id), params.sweep.metric)
    if as_json:
        print_json(sweep.record, sweep.results, board, best)
        return
    others = [(experiment, outcome) for experiment, outcome in sweep.results if outcome.status != "finished"]
    show_others(others)
    if board:
        show(board, SHOWN)
    killed = sum(outcome.status == "killed" for _, outcome in others)
    counts = f"{len(finished)} finished, {len(others) - killed} failed"
    continues = f", {killed} killed (run the same command to continue)" if killed else ""
    print(f"{sweep.record.name}: {counts}{continues}")
    print(f"run {sweep.record.name}, id {sweep.record.id[:8]}\n{page_of(sweep.record.experiment, sweep.record.id)}")
    if best:
        print(f"{best}\ndvc exp apply {best.experiment}")
        print(draw(sweep, params.sweep.metric, str(best)))


def draw(sweep: Sweep, metric: str, best: str) -> Path:
    """Write the figure of the finished experiments, and add it to the sweep's run with a description."""
    from classifier.project.files import write_atomic
    from classifier.sweeps.figure import parallel
    from classifier.tracking.errors import reported

    finished = [(experiment, outcome) for experiment, outcome in sweep.results if outcome.status == "finished"]
    path = PICTURES / f"{sweep.record.name}.png"
    write_atomic(path, parallel(finished, metric))
    with reported():
        sweep.record.describe(f"{counted(len(sweep.results))}, {len(finished)} finished; {best}", path)
    return path


def print_json(
    record: Record,
    experiments: Sequence[tuple[Experiment, Outcome | None]],
    board: Board | None = None,
    best: Best | None = None,
) -> None:
    """Print JSON in the same form for a sweep and a dry run. Experiments that have not run yet have no status."""
    nothing: dict[str, Any] = {"status": None, "run_id": None, "error": None, "seconds": None, "metrics": {}}
    answer = {
        "sweep": record.name,
        "run_id": record.id or None,
        "experiments": [
            {"name": experiment.name, "values": experiment.values, **(asdict(outcome) if outcome else nothing)}
            for experiment, outcome in experiments
        ],
        "best": asdict(best) if best else None,
        "leaderboard": board.summary() if board else None,
    }
    print(json.dumps(answer, indent=2))


def show_others(others: Sequence[tuple[Experiment, Outcome]]) -> None:
    """Print a line with the error for each experiment that failed or was killed."""
    for experiment, outcome in others:
        run = f"; run {outcome.run_id[:8]}" if outcome.run_id else ""
        print(f"{experiment.name}  {experiment}  {described(outcome)}{run}")
