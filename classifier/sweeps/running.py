"""Runs the experiments of a sweep in parallel with DVC, each in a clone of the repository.

Experiments that finished or failed are not repeated (see `classifier.sweeps.record` for exceptions). A killed
experiment resumes from its last checkpoint; one that is still running is stopped and then resumed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from classifier.params import Params
from classifier.project.processes import ENDING_S
from classifier.repository.clones import Baseline, Clone, applicable_experiments, experiment_arguments, stop_processes
from classifier.repository.dvc import complaint, reached, was_signalled
from classifier.repository.lockfile import read_lock
from classifier.sweeps.experiments import Experiment, Outcome, Plan
from classifier.sweeps.record import Record, is_done, outcome_of
from classifier.tracking.errors import reported

SWEEPS = Path(".pipeline/sweeps")  # in the project's root; one folder per sweep: clones, logs, the search's study
POLL_S = 0.05
STORE_PATIENCE_S = 600  # how long to wait for a store that became unreachable during the sweep
STORE_RETRY_S = 5
RECORDER_PATIENCE_S = 30  # how long to wait for a recorder that outlives a killed stage
Report = Callable[[Experiment, Outcome | None], None]  # called when an experiment starts (None), and when it ends
T = TypeVar("T")


class Worker:
    """Runs experiments in its clone, one at a time."""

    def __init__(self, clone: Clone, logs: Path, environment: Mapping[str, str]) -> None:
        self.clone, self.logs, self.environment = clone, logs, environment
        self.reusable = False  # the clone can be reset instead of created again
        self.process: subprocess.Popen[bytes] | None = None
        self.experiment = Experiment("", {})
        self.recording = False
        self.began = 0.0
        self.deadline = 0.0  # for the recorder of a process that has ended

    @property
    def log(self) -> Path:
        return self.logs / f"{self.experiment.name}.txt"

    def start(self, experiment: Experiment) -> None:
        if self.reusable:
            self.clone.reset()
        else:
            self.clone.make()
        self.experiment, self.recording, self.began = experiment, False, time.monotonic()
        self.log.unlink(missing_ok=True)
        self._start(experiment_arguments(experiment.name, experiment.values))

    def start_recording(self) -> None:
        """Run evaluate again after DVC restored all outputs from its cache, because no stage ran and recorded them."""
        self.recording = True
        names = {"DVC_EXP_NAME": self.experiment.name, "DVC_EXP_BASELINE_REV": self.clone.baseline.commit}
        self._start(["repro", "--force", "--single-item", "evaluate"], names)

    def _start(self, arguments: Sequence[str], more: Mapping[str, str] | None = None) -> None:
        self.deadline = 0.0
        self.process = self.clone.start(arguments, {**self.environment, **(more or {})}, self.log)

    def has_ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def may_wait(self) -> bool:
        """Whether less than RECORDER_PATIENCE_S have passed since the first call after the process ended."""
        self.deadline = self.deadline or time.monotonic() + RECORDER_PATIENCE_S
        return time.monotonic() < self.deadline

    @property
    def output(self) -> bytes:
        """What DVC and the stages printed."""
        return self.log.read_bytes() if self.log.exists() else b""

    def __str__(self) -> str:
        """The experiment, its seconds, and the last line that DVC or a stage printed."""
        return f"{self.experiment.name}  {time.monotonic() - self.began:.0f} s  {last_line(self.log)}"

    def was_killed(self) -> bool:
        """Whether a signal ended DVC or its stage, sent by the user or by the kernel when memory ran out."""
        assert self.process
        return self.process.returncode < 0 or was_signalled(self.output)


def last_line(log: Path) -> str:
    """The last line of a text file that is not blank; empty if there is none."""
    with suppress(FileNotFoundError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 2000))
        return next(filter(None, map(str.strip, reversed(file.read().decode(errors="replace").splitlines()))), "")
    return ""


class Sweep:
    """Runs the experiments of a plan, `jobs` at a time; clones and logs are in `folder`."""

    def __init__(
        self,
        plan: Plan,
        record: Record,
        baseline: Baseline,
        params: Params,
        folder: Path,
        jobs: int,
        retry_failed: bool = False,
    ) -> None:
        self.plan, self.record, self.params, self.folder = plan, record, params, folder
        self.results: list[tuple[Experiment, Outcome]] = []
        self.logs = folder / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.threads = max(1, cores() // jobs)
        environment = {"OMP_NUM_THREADS": str(self.threads), "MLFLOW_PARENT_RUN_ID": record.id}
        for clone in clones_of(folder).glob("*"):  # experiments that finished after the sweep was killed
            Clone(baseline, clone).collect(f"{record.name}-*")
        clones = [Clone(baseline, clones_of(folder) / str(number)) for number in range(jobs)]
        self.workers = [Worker(clone, self.logs, environment) for clone in clones]
        self.known = record.known()
        self.applicable = applicable_experiments(baseline.root, f"{record.name}-*")
        self.retry_failed = retry_failed
        self.earlier: dict[str, Outcome | None] = {}  # the outcomes that experiments had before they were started
        self.data_in_cache = _outputs_exist()

    @property
    def already(self) -> int:
        """Number of experiments that were done before this process started."""
        return sum(self._is_done(name, outcome_of({}, self.known.get(name, []))) for name in self.plan.names)

    @property
    def busy(self) -> list[Worker]:
        """The workers with a running experiment."""
        return [worker for worker in self.workers if worker.process]

    def run(self, report: Report) -> None:
        """Run all remaining experiments. No process outlives this call."""
        try:
            while True:
                self._start(report)
                if not self.busy:
                    break
                time.sleep(POLL_S)
                for worker in self.busy:
                    if worker.has_ended() and (outcome := self._judge(worker)):
                        worker.reusable, worker.process = outcome.status == "finished", None
                        self._end(worker.experiment, outcome)
                        report(worker.experiment, outcome)
        finally:
            if left := sum(worker.process is not None and not worker.has_ended() for worker in self.workers):
                print(f"stopping {left} running, which may take {ENDING_S} s", file=sys.stderr, flush=True)
            stop_processes(clones_of(self.folder))
            if clones_of(self.folder).exists():
                print("removing the clones that the experiments ran in", file=sys.stderr, flush=True)
                shutil.rmtree(clones_of(self.folder), ignore_errors=True)

    def _start(self, report: Report) -> None:
        """Start experiments on idle workers; only on one until the data are in DVC's cache."""
        for worker in self.workers:
            if worker.process is None and self._may_start() and (experiment := self._next()):
                report(experiment, None)
                worker.start(experiment)

    def _may_start(self) -> bool:
        busy = self.busy
        self.data_in_cache = (
            self.data_in_cache or bool(self.results) or any(reached("train", worker.output) for worker in busy)
        )
        return self.data_in_cache or not busy

    def _next(self) -> Experiment | None:
        """The next experiment that is not done."""
        while experiment := self.plan.next():
            outcome = outcome_of(experiment.values, self.known.get(experiment.name, []))
            if outcome is None or not self._is_done(experiment.name, outcome):
                self.earlier[experiment.name] = outcome
                return experiment
            self._end(experiment, outcome)
        return None

    def _is_done(self, name: str, outcome: Outcome | None) -> bool:
        return is_done(name, outcome, self.applicable, self.retry_failed)

    def _end(self, experiment: Experiment, outcome: Outcome) -> None:
        self.results.append((experiment, outcome))
        self.plan.tell(experiment, outcome)

    def _judge(self, worker: Worker) -> Outcome | None:
        """The outcome of the experiment whose process has ended.

        None while its recorder is still uploading, or if the experiment continues with another process.
        """
        assert worker.process
        code, experiment = worker.process.returncode, worker.experiment
        late = not self.record.has_arrived(experiment)
        if late and worker.may_wait():
            return None
        if code == 0:
            worker.clone.collect(experiment.name)
        outcome = patiently(lambda: self.record.outcome(experiment))
        if code and outcome == self.earlier[experiment.name]:
            outcome = None  # from an earlier attempt
        if outcome is None and late:
            return Outcome("killed", None, "its results have not reached MLflow yet")
        if outcome and (outcome.status == "failed" or (outcome.status == "finished" and code == 0)):
            return outcome
        if code == 0 and not worker.recording:
            worker.start_recording()
            return None
        output = worker.output.decode(errors="replace").splitlines()
        error = outcome.error if outcome and outcome.error else complaint(output)[-1000:]
        if outcome or worker.was_killed():
            return Outcome("killed", outcome.run_id if outcome else None, error)
        return patiently(lambda: self.record.fail(experiment, error, self.params))


def clones_of(folder: Path) -> Path:
    """Where the clones of the sweep in `folder` are."""
    return folder / "clones"


def cores() -> int:
    """The number of cores that this process may use (taskset, containers), at most OMP_NUM_THREADS."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(available, int(limit)) if limit.isdecimal() and int(limit) else available


def patiently(call: Callable[[], T]) -> T:
    """Return `call()`, retrying for up to STORE_PATIENCE_S while the store is unreachable; experiments keep running."""
    deadline, said = time.monotonic() + STORE_PATIENCE_S, False
    while True:
        try:
            with reported():
                return call()
        except OSError as error:
            if time.monotonic() > deadline:
                raise
            if not said:
                print(f"{error}; trying again for {STORE_PATIENCE_S / 60:g} minutes", file=sys.stderr, flush=True)
            said = True
            time.sleep(STORE_RETRY_S)


def _outputs_exist() -> bool:
    """Whether the pipeline has run in this project, so that its data are in the cache."""
    try:
        outputs = read_lock().outputs
    except (OSError, ValueError):
        return False
    return bool(outputs) and all(Path(output).exists() for output in outputs)
