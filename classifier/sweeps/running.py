"""Sweeps: DVC's experiments side by side, each in a clone of the repository.

What has a run that finished or failed (`classifier.sweeps.record`) is not repeated, unless that run, or DVC's
experiment, is gone, or a person asks to try again what failed; what was killed goes on from its last checkpoint, and so
does what still runs, which is stopped first.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from classifier.params import Params
from classifier.repository.clones import Baseline, Clone, experiment_arguments, experiments, stop_processes
from classifier.repository.lockfile import read_lock
from classifier.runs.registry import reported
from classifier.sweeps.experiments import Experiment, Outcome, Plan
from classifier.sweeps.record import Record, deliver, is_done, outcome_of

SWEEPS = Path(".pipeline/sweeps")  # in the project's root; a folder for each sweep: clones, logs, the search's study
POLL_S = 0.05
STORE_PATIENCE_S = 600  # with a store that went away during the sweep
STORE_RETRY_S = 5
RECORDER_PATIENCE_S = 30  # with a recorder that outlives its stage, which DVC does not wait for when that was killed
RECORDER_RETRY_S = 0.2
SIGNALLED = rb"exited with (-\d+|1(29|[3-5]\d))\b"  # DVC on a stage that a signal ended, itself or its shell saying so
T = TypeVar("T")


class Worker:
    """Runs one experiment at a time, in its clone."""

    def __init__(self, clone: Clone, logs: Path, environment: Mapping[str, str]) -> None:
        self.clone, self.logs, self.environment = clone, logs, environment
        self.fresh = False  # the clone can be used again
        self.process: subprocess.Popen[bytes] | None = None
        self.experiment = Experiment("", {})
        self.recording = False

    @property
    def log(self) -> Path:
        return self.logs / f"{self.experiment.name}.txt"

    def start(self, experiment: Experiment) -> None:
        if self.fresh:
            self.clone.reset()
        else:
            self.clone.make()
        self.experiment, self.recording = experiment, False
        self.log.unlink(missing_ok=True)
        self._start(experiment_arguments(experiment.name, experiment.values))

    def start_recording(self) -> None:
        """Evaluate once more what DVC took from its cache: it executed nothing, and so nothing was recorded."""
        self.recording = True
        names = {"DVC_EXP_NAME": self.experiment.name, "DVC_EXP_BASELINE_REV": self.clone.baseline.commit}
        self._start(["repro", "--force", "--single-item", "evaluate"], names)

    def _start(self, arguments: Sequence[str], more: Mapping[str, str] | None = None) -> None:
        self.process = self.clone.start(arguments, {**self.environment, **(more or {})}, self.log)

    def said(self, text: str) -> bool:
        """Whether DVC or a stage has printed this."""
        return self.log.exists() and text.encode() in self.log.read_bytes()

    def was_killed(self) -> bool:
        """Whether DVC, or the stage that it ran, was ended by a signal: by hand, or for want of memory."""
        assert self.process
        return self.process.returncode < 0 or (self.log.exists() and bool(re.search(SIGNALLED, self.log.read_bytes())))

    def last_lines(self, count: int) -> list[str]:
        """Of what DVC and the stages printed."""
        try:
            text = self.log.read_bytes()[-4096:].decode(errors="replace")
        except FileNotFoundError:
            return []
        return [line.strip() for line in text.splitlines() if line.strip()][-count:]


class Display(Protocol):
    """Who watches."""

    def running(self, workers: Sequence[Worker]) -> None: ...

    def ended(self, experiment: Experiment, outcome: Outcome) -> None: ...


class Sweep:
    """Runs what a plan proposes, `jobs` at a time; clones and logs lie in `folder`."""

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
        logs = folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        self.threads = max(1, cores() // jobs)
        environment = {"OMP_NUM_THREADS": str(self.threads), "MLFLOW_PARENT_RUN_ID": record.id}
        for clone in clones_of(folder).glob("*"):  # what finished after a sweep was killed
            Clone(baseline, clone).collect(f"{record.name}-*")
        clones = [Clone(baseline, clones_of(folder) / str(number)) for number in range(jobs)]
        self.workers = [Worker(clone, logs, environment) for clone in clones]
        self.known, self.existing = record.known(), experiments(baseline.root, f"{record.name}-*")
        self.retry_failed = retry_failed
        self.earlier: dict[str, Outcome | None] = {}  # what experiments that are run had come to before
        self.data_in_place = _outputs_exist()

    @property
    def already(self) -> int:
        """How many experiments were done before."""
        return sum(self._is_done(name, outcome_of({}, self.known.get(name, []))) for name in self.plan.names)

    def run(self, display: Display) -> None:
        """Until nothing is left; whatever happens, no process outlives this."""
        try:
            while True:
                self._start()
                busy = [worker for worker in self.workers if worker.process]
                if not busy:
                    break
                display.running(busy)
                time.sleep(POLL_S)
                for worker in busy:
                    if worker.process and worker.process.poll() is not None and (outcome := self._judge(worker)):
                        worker.fresh, worker.process = outcome.status == "finished", None
                        self._end(worker.experiment, outcome)
                        display.ended(worker.experiment, outcome)
        finally:
            stop_processes(clones_of(self.folder))
            shutil.rmtree(clones_of(self.folder), ignore_errors=True)

    def _start(self) -> None:
        """Give idle workers what is left; until the data lie in DVC's cache the first one works alone."""
        for worker in self.workers:
            if worker.process is None and (self._may_start() and (experiment := self._next())):
                worker.start(experiment)

    def _may_start(self) -> bool:
        busy = [worker for worker in self.workers if worker.process]
        self.data_in_place = (
            self.data_in_place or bool(self.results) or any(worker.said("stage 'train'") for worker in busy)
        )
        return self.data_in_place or not busy

    def _next(self) -> Experiment | None:
        """The next experiment without a result."""
        while experiment := self.plan.next():
            outcome = outcome_of(experiment.values, self.known.get(experiment.name, []))
            if outcome is None or not self._is_done(experiment.name, outcome):
                self.earlier[experiment.name] = outcome
                return experiment
            self._end(experiment, outcome)
        return None

    def _is_done(self, name: str, outcome: Outcome | None) -> bool:
        return is_done(name, outcome, self.existing, self.retry_failed)

    def _end(self, experiment: Experiment, outcome: Outcome) -> None:
        self.results.append((experiment, outcome))
        self.plan.tell(experiment, outcome)

    def _judge(self, worker: Worker) -> Outcome | None:
        """What became of the experiment whose process has ended; None when it goes on with another process."""
        assert worker.process
        code, experiment = worker.process.returncode, worker.experiment
        if code == 0:
            worker.clone.collect(experiment.name)
        outcome = self._outcome(experiment, wait=code != 0 or worker.said("Running stage 'evaluate'"))
        if code and outcome == self.earlier[experiment.name]:
            outcome = None  # of an earlier time
        if outcome and (outcome.status == "failed" or (outcome.status == "finished" and code == 0)):
            return outcome
        if code == 0 and not worker.recording:
            worker.start_recording()
            return None
        error = outcome.error if outcome and outcome.error else "; ".join(worker.last_lines(3))[-1000:]
        if outcome or worker.was_killed() or patiently(lambda: self.record.is_open(experiment)):
            return Outcome("killed", outcome.run_id if outcome else None, error)
        return patiently(lambda: self.record.fail(experiment, error, self.params))

    def _outcome(self, experiment: Experiment, wait: bool) -> Outcome | None:
        """As the store has it once nobody writes there any more: a recorder may be slower than DVC."""
        deadline = time.monotonic() + RECORDER_PATIENCE_S
        while wait and patiently(lambda: self.record.is_open(experiment)) and time.monotonic() < deadline:
            deliver()  # what nobody is at any more
            time.sleep(RECORDER_RETRY_S)
        return patiently(lambda: self.record.outcome(experiment))


def clones_of(folder: Path) -> Path:
    """Where the clones of the sweep in `folder` lie."""
    return folder / "clones"


def cores() -> int:
    """Those that are ours: of taskset or a container, and no more than OMP_NUM_THREADS says."""
    ours = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(ours, int(limit)) if limit.isdecimal() and int(limit) else ours


def patiently(call: Callable[[], T]) -> T:
    """What `call` returns, however long the store is away, up to STORE_PATIENCE_S; the experiments go on meanwhile."""
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
    """Whether the pipeline has run here, so that its data lie in the cache."""
    try:
        outputs = read_lock().outputs
    except (OSError, ValueError):
        return False
    return bool(outputs) and all(Path(output).exists() for output in outputs)
