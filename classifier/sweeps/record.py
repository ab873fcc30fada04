"""A sweep in MLflow: one run, whose nested runs are those of the experiments and tell which experiments are done.

A sweep has a key, computed from everything that determines its results: values, params and code. By this key, the same
command finds an earlier, interrupted sweep. The sweep's folder in the project contains the sweep's id: a sweep belongs
to the clone of the project that started it. Two people with one store, or two copies of a project, have two sweeps.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import mlflow
from mlflow.entities import Param, Run

from classifier.params import Params
from classifier.project.files import sha256, write_atomic
from classifier.project.lineage import user_name
from classifier.recording.journal import Journal, waiting_journals
from classifier.recording.tags import (
    ERROR_TAG,
    EVALUATED_TAG,
    EXPERIMENT_TAG,
    NOTE_TAG,
    PARENT_TAG,
    SOURCE_NAME_TAG,
    SOURCE_TYPE_TAG,
    SWEEP_COMMAND_TAG,
    SWEEP_ID_TAG,
    SWEEP_KEY_TAG,
    USER_TAG,
    upgraded_tags,
)
from classifier.repository.code import PIPELINE, code_paths
from classifier.repository.lockfile import hash_of
from classifier.sweeps.experiments import Experiment, Outcome
from classifier.sweeps.grid import Point
from classifier.tracking.connection import open_store, runs_with_tag
from classifier.tracking.delivery import deliver_waiting
from classifier.tracking.errors import explained, reported

DELIVERY_RETRY_S = 5


def sweep_key(what: Any, params: Params) -> str:
    """SHA-256 of values and ranges (`what`, as JSON), the stages' params, the code of dvc.yaml, images and weights."""
    paths = code_paths(Path(PIPELINE).read_bytes())
    paths += [params.download.folder] if params.download.dataset == "folder" else []
    paths += [params.train.pretrained_file] if params.train.pretrained == "file" else []
    code = {path: hash_of(Path(path)) for path in paths}
    return sha256(json.dumps([what, params.flat(), code]).encode())


class Record:
    """A sweep in MLflow: its run, and the runs of its experiments."""

    def __init__(self, key: str, name: str, folder: Path) -> None:
        """Find the run of the sweep in `folder`. Raises OSError if the store is unreachable."""
        self.key, self.name, self.file = key, name, folder / "id.txt"
        self.experiment = open_store()
        self.client = mlflow.MlflowClient()
        self.id = self._find()
        self.begun: dict[Path, str | None] = {}  # the experiments' names, by their stages' journals
        self.next_delivery = 0.0

    def begin(self, command: str) -> None:
        """Create the sweep's run, or set it to RUNNING again; upload the journals of killed stages."""
        deliver()
        self.id = self._find()  # another process may have ended the same sweep since
        sweep_id = self._noted() or uuid4().hex  # keep a noted id: its run may be in another store
        write_atomic(self.file, os.fsencode(f"{sweep_id}\n{self.file.resolve()}"))
        if self.id:
            self.client.update_run(self.id, status="RUNNING")
            return
        tags = {SWEEP_ID_TAG: sweep_id, SWEEP_KEY_TAG: self.key, SWEEP_COMMAND_TAG: command, USER_TAG: user_name()}
        tags |= {SOURCE_NAME_TAG: "classifier/commands/sweep.py", SOURCE_TYPE_TAG: "LOCAL"}
        self.id = self.client.create_run(self.experiment, tags=tags, run_name=self.name).info.run_id

    def known(self) -> dict[str, list[Run]]:
        """The runs of the sweep's experiments by the experiment's name, newest first."""
        runs: dict[str, list[Run]] = {}
        for run in self._search(self._children) if self.id else []:
            runs.setdefault(run.data.tags.get(EXPERIMENT_TAG, ""), []).append(run)
        return runs

    def outcome(self, experiment: Experiment) -> Outcome | None:
        """The experiment's outcome, as the store has it now."""
        runs = self._search(f"{self._children} AND tags.`{EXPERIMENT_TAG}` = '{experiment.name}'")
        return outcome_of(experiment.values, runs)

    def has_arrived(self, experiment: Experiment) -> bool:
        """Whether the store has everything that the experiment's stages recorded. Cheap enough to poll.

        Uploads the journals of a stage whose recorder was killed, too.
        """
        waiting = list(self._journals(experiment))
        if waiting and time.monotonic() >= self.next_delivery:
            deliver()
            self.next_delivery = time.monotonic() + DELIVERY_RETRY_S
        return not any(journal.folder.exists() for journal in waiting)

    def _journals(self, experiment: Experiment) -> Iterator[Journal]:
        """The experiment's journals that are not yet uploaded. Each is read until its experiment is known."""
        for journal in waiting_journals():
            if self.begun.get(journal.folder) is None:
                begin = journal.begin()
                self.begun[journal.folder] = begin["tags"].get(EXPERIMENT_TAG, "") if begin else None
            if self.begun[journal.folder] == experiment.name:
                yield journal

    def fail(self, experiment: Experiment, error: str, params: Params) -> Outcome:
        """Record an experiment that failed before a stage could record it."""
        tags = {PARENT_TAG: self.id, EXPERIMENT_TAG: experiment.name, ERROR_TAG: error, USER_TAG: user_name()}
        run_id = self.client.create_run(self.experiment, tags=tags, run_name=experiment.name).info.run_id
        values = {**params.flat(), **experiment.values}
        self.client.log_batch(run_id, params=[Param(name, str(value)) for name, value in values.items()])
        self.client.set_terminated(run_id, "FAILED")
        return Outcome("failed", run_id, error)

    def end(self, status: str) -> None:
        """Set the status of the sweep's run: FINISHED or KILLED."""
        with reported():
            self.client.set_terminated(self.id, status)

    def describe(self, text: str, picture: Path) -> None:
        """Add a description, with the command that continues the sweep, and a picture to the sweep's run."""
        command = self.client.get_run(self.id).data.tags.get(SWEEP_COMMAND_TAG, "")
        self.client.set_tag(self.id, NOTE_TAG, f"{text}\n\n`{command}`\n\n{picture.name} is among the artifacts.")
        self.client.log_artifact(self.id, str(picture))

    def _find(self) -> str:
        """The id of the sweep's run; empty if there is none."""
        if not (noted := self._noted()):
            return ""
        found = runs_with_tag(self.experiment, SWEEP_ID_TAG, noted)
        keys = {run.info.run_id: upgraded_tags(run.data.tags).get(SWEEP_KEY_TAG) for run in found}
        return next((run_id for run_id, key in keys.items() if key == self.key), "")

    def _noted(self) -> str:
        """The sweep's id; empty if there is none, or if it belongs to the project from which this one was copied.

        The file also contains its own path: if the file at that path has the same id, this one is a copy.
        """
        if not self.file.exists():
            return ""
        noted, _, path = os.fsdecode(self.file.read_bytes()).partition("\n")
        named = Path(path)
        copied = named.is_file() and not named.samefile(self.file) and noted.encode() in named.read_bytes()
        return "" if copied else noted

    @property
    def _children(self) -> str:
        return f"tags.`{PARENT_TAG}` = '{self.id}'"

    def _search(self, filter_string: str) -> list[Run]:
        order = ["attributes.start_time DESC"]
        return mlflow.search_runs([self.experiment], filter_string, order_by=order, output_format="list")


def deliver() -> None:
    """Upload the journals of stages that have ended. If that fails, `classifier sync` can do it later."""
    try:
        deliver_waiting()
    except Exception as error:  # problems with earlier runs must not prevent others
        print(
            f"MLflow: {explained(error)}; earlier runs are not recorded yet: classifier sync",
            file=sys.stderr,
            flush=True,
        )


def outcome_of(values: Point, runs: Sequence[Run]) -> Outcome | None:
    """The outcome of the experiment with these values and runs (newest first); None if there is none yet.

    It is that of the newest finished run or, if there is none, of the newest run.
    """
    wanted = {key: str(value) for key, value in values.items()}
    mine = [run for run in runs if wanted.items() <= run.data.params.items()]
    for run in mine:
        if run.info.status == "FINISHED" and upgraded_tags(run.data.tags).get(EVALUATED_TAG) == "true":
            return _outcome("finished", run)
    status = mine[0].info.status if mine else ""
    return _outcome("failed" if status == "FAILED" else "killed", mine[0]) if status in ("FAILED", "KILLED") else None


def is_done(name: str, outcome: Outcome | None, applicable: Container[str], retry_failed: bool) -> bool:
    """Whether an experiment need not run: it failed, or it finished and DVC can apply it."""
    if outcome is None or outcome.status == "killed":
        return False
    return not retry_failed if outcome.status == "failed" else name in applicable


def _outcome(status: Literal["finished", "failed", "killed"], run: Run) -> Outcome:
    names = ("validation/accuracy", "validation/loss")
    metrics = run.data.metrics
    values = {name: metrics.get(f"{name}_mean", metrics.get(name)) for name in names}  # the mean of several seeds
    return Outcome(
        status,
        run.info.run_id,
        None if status == "finished" else run.data.tags.get(ERROR_TAG, "no reason was recorded"),
        (run.info.end_time - run.info.start_time) / 1000 if run.info.end_time else None,
        {name.replace("/", "_"): value for name, value in values.items() if value is not None},
    )
