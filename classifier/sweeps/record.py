"""A sweep in MLflow: its experiments' runs are children of one run, the record of what is done.

A sweep's key is made from what decides its results: values, params and code. By it the same command finds what an
earlier one has left, however that ended.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any, Literal

import mlflow
from mlflow.entities import Param, Run
from ruamel.yaml import YAML

from classifier.params import Params
from classifier.project.files import sha256, sha256_of
from classifier.project.lineage import user_name
from classifier.recording.journal import waiting_journals
from classifier.runs.reading import PARENT_TAG
from classifier.runs.registry import reported
from classifier.sweeps.experiments import Experiment, Outcome
from classifier.sweeps.grid import Point
from classifier.tracking.delivery import EVALUATED_TAG, deliver_waiting, open_store

SWEEP_TAG = "sweep.key"
COMMAND_TAG = "sweep.command"
EXPERIMENT_TAG = "dvc.exp.name"


def sweep_key(what: Any, params: Params) -> str:
    """SHA-256 of values and ranges (`what`, as JSON), the stages' params, and the code that dvc.yaml names."""
    pipeline = Path("dvc.yaml")
    stages = YAML(typ="safe", pure=True).load(pipeline)["stages"].values()
    outputs = {Path(_path(out)) for stage in stages for out in stage.get("outs", [])}
    named = {Path(_path(dependency)) for stage in stages for dependency in stage.get("deps", [])} - outputs
    files = sorted({file for path in [pipeline, *named] for file in _files(path)})
    code = {file.as_posix(): sha256_of(file) for file in files}
    return sha256(json.dumps([what, params.flat(), code]).encode())


def _path(entry: str | dict[str, Any]) -> str:
    """The path of a dependency or an output, which dvc.yaml may give as `PATH: {options}`."""
    return entry if isinstance(entry, str) else next(iter(entry))


def _files(path: Path) -> list[Path]:
    """The file at `path`, or those in the folder there, without Python's caches."""
    if path.is_dir():
        return [file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    return [path] if path.is_file() else []


class Record:
    """A sweep in MLflow: the parent, made or found by the sweep's key, and its children."""

    def __init__(self, key: str, name: str) -> None:
        """Find it; OSError when the store cannot be reached."""
        self.key, self.name = key, name
        self.experiment = open_store()
        self.client = mlflow.MlflowClient()
        self.id = self._find()

    def begin(self, command: str) -> None:
        """The parent is there and RUNNING, and what stages that were killed had to say has arrived."""
        deliver()
        self.id = self._find()  # this may have waited for another process to end the same sweep
        if self.id:
            self.client.update_run(self.id, status="RUNNING")
        else:
            tags = {SWEEP_TAG: self.key, COMMAND_TAG: command, "mlflow.user": user_name()}
            tags |= {"mlflow.source.name": "classifier/commands/sweep.py", "mlflow.source.type": "LOCAL"}
            self.id = self.client.create_run(self.experiment, tags=tags, run_name=self.name).info.run_id

    def known(self) -> dict[str, list[Run]]:
        """The children by their experiment's name, newest first."""
        runs: dict[str, list[Run]] = {}
        for run in self._search(self._children) if self.id else []:
            runs.setdefault(run.data.tags.get(EXPERIMENT_TAG, ""), []).append(run)
        return runs

    def outcome(self, experiment: Experiment) -> Outcome | None:
        """As the store has it now."""
        return outcome_of(experiment.values, self._runs(experiment))

    def is_open(self, experiment: Experiment) -> bool:
        """Whether what it has to say is still on its way into the store."""
        begun = (event for journal in waiting_journals() for event in journal.read()[0] if event["do"] == "begin")
        if any(event["tags"].get(EXPERIMENT_TAG) == experiment.name for event in begun):
            return True
        mine = _with_values(experiment.values, self._runs(experiment))
        return bool(mine) and mine[0].info.status == "RUNNING"

    def _runs(self, experiment: Experiment) -> list[Run]:
        return self._search(f"{self._children} AND tags.`{EXPERIMENT_TAG}` = '{experiment.name}'")

    def fail(self, experiment: Experiment, error: str, params: Params) -> Outcome:
        """Record what failed before a stage could."""
        tags = {PARENT_TAG: self.id, EXPERIMENT_TAG: experiment.name, "error": error, "mlflow.user": user_name()}
        run_id = self.client.create_run(self.experiment, tags=tags, run_name=experiment.name).info.run_id
        values = {**params.flat(), **experiment.values}
        self.client.log_batch(run_id, params=[Param(name, str(value)) for name, value in values.items()])
        self.client.set_terminated(run_id, "FAILED")
        return Outcome("failed", run_id, error)

    def end(self, status: str) -> None:
        """FINISHED or KILLED."""
        with reported():
            self.client.set_terminated(self.id, status)

    def _find(self) -> str:
        found = self._search(f"tags.`{SWEEP_TAG}` = '{self.key}'")
        return found[0].info.run_id if found else ""

    @property
    def _children(self) -> str:
        return f"tags.`{PARENT_TAG}` = '{self.id}'"

    def _search(self, filter_string: str) -> list[Run]:
        order = ["attributes.start_time DESC"]
        return mlflow.search_runs([self.experiment], filter_string, order_by=order, output_format="list")


def deliver() -> None:
    """What stages that are gone had to say to MLflow; what cannot be delivered waits for `classifier sync`."""
    try:
        deliver_waiting()
    except Exception as error:  # whatever is wrong with earlier runs, it is no reason not to run others
        print(f"MLflow: {error!r:.300}; earlier runs still wait: classifier sync", file=sys.stderr, flush=True)


def outcome_of(values: Point, runs: Sequence[Run]) -> Outcome | None:
    """What an experiment's runs say, newest first; None when that is nothing, of these values.

    A result stands, whatever came later; otherwise the newest run counts.
    """
    mine = _with_values(values, runs)
    for run in mine:
        if run.info.status == "FINISHED" and run.data.tags.get(EVALUATED_TAG) == "true":
            return _outcome("finished", run)
    status = mine[0].info.status if mine else ""
    return _outcome("failed" if status == "FAILED" else "killed", mine[0]) if status in ("FAILED", "KILLED") else None


def is_done(name: str, outcome: Outcome | None, existing: Container[str], retry_failed: bool) -> bool:
    """Whether nothing is left to do; `existing` are DVC's experiments, without which a result cannot be applied."""
    if outcome is None or outcome.status == "killed":
        return False
    return not retry_failed if outcome.status == "failed" else name in existing


def _with_values(values: Point, runs: Sequence[Run]) -> list[Run]:
    wanted = {key: str(value) for key, value in values.items()}
    return [run for run in runs if wanted.items() <= run.data.params.items()]


def _outcome(status: Literal["finished", "failed", "killed"], run: Run) -> Outcome:
    names = ("validation/accuracy", "validation/loss", "test/accuracy")
    metrics = run.data.metrics
    values = {name: metrics.get(f"{name}_mean", metrics.get(name)) for name in names}  # the mean of replicas
    return Outcome(
        status,
        run.info.run_id,
        None if status == "finished" else run.data.tags.get("error", "no reason was recorded"),
        (run.info.end_time - run.info.start_time) / 1000 if run.info.end_time else None,
        {name.replace("/", "_"): value for name, value in values.items() if value is not None},
    )
