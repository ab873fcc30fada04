"""Records the stages in MLflow: one run per execution of the pipeline, created by train and completed by evaluate.

Stages do not wait for MLflow while they work. They write a journal (`classifier.recording.journal`), which a second
process, the recorder (`python -m classifier.tracking.recorder`), uploads as it grows. DVC's outputs contain no run ids:
evaluate finds its run by the hash of the weights, and creates it from params and history if there is none, because the
weights came from the cache or the store was deleted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from classifier.data.dataset import DatasetMeta
from classifier.errors import UserError
from classifier.networks.names import FOLDER, is_own, own_folder, packages_of
from classifier.params import Params
from classifier.project.files import json_bytes
from classifier.project.lineage import PACKAGE, user_name
from classifier.recording import deliverer
from classifier.recording.deliverer import Progress
from classifier.recording.journal import FORMAT, Journal, new_journal
from classifier.recording.pages import page_of
from classifier.recording.store import experiment_name, known_store
from classifier.recording.tags import (
    CHOSEN_TAG,
    CODE_TAG,
    COMMIT_TAG,
    DATA_TAG,
    DIRTY_TAG,
    ENVIRONMENT,
    EVALUATED_TAG,
    MODEL_TAG,
    PARENT_TAG,
    PROBLEM_TAG,
    RESTORED_TAG,
    TEST_TAG,
    WEIGHTS_TAG,
    experiment_tags,
)
from classifier.repository.code import GitState, git_state
from classifier.repository.lockfile import hash_of, hash_told_by
from classifier.training.history import HistoryRow, kept_row, read_history
from classifier.training.report import read_costs, read_histories, summary_metrics

if TYPE_CHECKING:  # torch, which takes 2 s to import, is not needed here
    from classifier.networks.model_dir import ModelMeta

CONSTANT = ("test/n", "test/confidence", "test/error_rate")
SETTLING_S = 3  # for the recorder before training begins
TELLING_S = 3  # after which a stage that has ended says that it waits for the recorder
STOPPING_S = 5  # for the recorder at the end of a stage that was stopped by a signal
ROW_METRICS = {  # history.csv's column -> MLflow's name
    "running_loss": "train/running_loss",
    "learning_rate": "train/learning_rate",
    "train_loss": "train/loss",
    "validation_loss": "validation/loss",
    "validation_accuracy": "validation/accuracy",
}
RATE = "train/learning_rate"
SECONDS = "train/seconds"  # of training (`HistoryRow.seconds` of `classifier.training.history`)


class Outputs(TypedDict):
    """Outputs of given weights and params: a run with these tags and metrics already records them."""

    tags: dict[str, str]
    metrics: dict[str, float]  # of metrics.json


def test_metrics(values: Mapping[str, float]) -> dict[str, float]:
    """The metrics of an evaluation under MLflow's names, without the constants that earlier versions recorded."""
    named = {f"test/{name.removeprefix('test/')}": value for name, value in values.items()}
    return {name: value for name, value in named.items() if name not in CONSTANT}


@dataclass(frozen=True)
class RecordedRun:
    """A run's name, its id and its experiment's id."""

    name: str
    id: str
    experiment: str


@cache
def packages() -> dict[str, str]:
    """Name -> version of every installed package."""
    return {found.name: found.version for found in distributions()}


class Recording:
    """Records a stage: everything it reports to its run.

    A recorder process uploads the journal as it grows. Without one, the caller uploads the complete journal.
    """

    def __init__(self, stage: str, params: Params, *, recorder: bool = True) -> None:
        self.stage = stage
        self.params = params
        self.log: list[str] = []  # lines of the console
        self.run: RecordedRun | None = None  # known at the end, if MLflow could be reached
        self.recorded = ExitStack()  # contexts that end after the run: a stage killed before that resumes its run
        self.journal = new_journal(stage)
        self.recorder = start_recorder(self.journal) if recorder else None

    def begin(
        self,
        key: str,
        environment: Mapping[str, str],
        weights: str | None = None,
        code: GitState | None = None,
        outputs: Outputs | None = None,
    ) -> None:
        """Select the run: the one with this key, one whose `weights` are not yet evaluated, or a new one.

        `code` defaults to that of the working folder. With `outputs`, which already exist, a run that has them is not
        recorded again.
        """
        tags, state = experiment_tags(), code or git_state(self.params.own_files)
        tags |= {f"{ENVIRONMENT}{name}": value for name, value in environment.items()}
        if parent := os.environ.get("MLFLOW_PARENT_RUN_ID"):
            tags[PARENT_TAG] = parent
        if state.commit:
            tags[COMMIT_TAG] = state.commit
        if state.commit and state.dirty is not None:
            tags[DIRTY_TAG] = str(state.dirty).lower()
        if state.problem:
            tags[PROBLEM_TAG] = state.problem
            print(f"{self.stage}: {state.warning}", file=sys.stderr)
        if state.code:
            tags[CODE_TAG] = state.code
        self.journal.append(
            "begin",
            format=FORMAT,
            stage=self.stage,
            key=key,
            weights=weights,
            outputs=outputs,
            store=known_store(),
            experiment=experiment_name(),
            name=os.environ.get("DVC_EXP_NAME"),
            user=user_name(),
            params={name: str(value) for name, value in self.params.flat().items()},
            tags=tags,
        )
        for name in ("params.yaml", "dvc.lock"):
            if Path(name).exists():
                self.journal.keep(Path(name), f"code/{name}")
        if state.dirty:
            self.journal.keep_text(state.diff, "code/uncommitted.diff")
        if environment:  # after `begin`, because listing the packages takes 0.15 s, in which the run is created
            self.journal.keep_text(json_bytes({**environment, "packages": packages()}), "code/environment.json")
        self.journal.append("files", path="code", restored=weights is not None)

    def log_data(self, folder: Path, meta: DatasetMeta, *, restored: bool = False) -> None:
        """Record the data set as an input of the run: its name, its source, and DVC's hash as the digest."""
        known = hash_told_by(folder, "meta.json") if meta.labels else None  # without reading several GB
        digest = known or hash_of(folder)  # of what the stage reads, which may differ from dvc.lock
        sizes = {split: sum(counts) for split, counts in meta.counts.items()}
        source, profile = json.dumps({"url": meta.source}), json.dumps(sizes)
        self.journal.append(
            "data", name=self.params.download.name, digest=digest, source=source, profile=profile, restored=restored
        )
        tags = {DATA_TAG: digest, TEST_TAG: meta.sha256["test"]}
        self.journal.append("tags", tags=tags, restored=restored)

    def log_data_report(self, folder: Path, *, restored: bool = False) -> None:
        """Record `reports/data/`, the data report of the stage normalize, and its counts, if it exists."""
        summary = folder / "summary.json"
        if not summary.is_file():
            return
        try:
            values = {f"data/{name}": float(count) for name, count in json.loads(summary.read_bytes()).items()}
        except ValueError:
            raise UserError(f"{summary} is corrupt: run dvc repro -f normalize") from None
        self.journal.append("metrics", seed=None, step=0, values=values, restored=restored)
        self.journal.keep(folder, "data")
        self.journal.append("files", path="data", restored=restored)

    def settle(self) -> None:
        """Wait at most SETTLING_S until the recorder has created the run, because that would slow down training."""
        assert self.recorder, "there is no recorder"
        end = time.monotonic() + SETTLING_S
        while not self.journal.begun.exists() and self.recorder.poll() is None and time.monotonic() < end:
            time.sleep(0.01)

    def log_row(self, seed: int, row: HistoryRow, seconds: float | None = None, *, restored: bool = False) -> None:
        """Record a row of the history at its step. Each of several seeds has its own nested run.

        `seconds`: training time so far, recorded at the end of each epoch.
        """
        at_end = None if row.train_loss is None else seconds
        self._log_row(seed if self.params.train.seeds > 1 else None, row, at_end, restored)

    def _log_row(self, seed: int | None, row: HistoryRow, seconds: float | None, restored: bool) -> None:
        named = {name: getattr(row, column) for column, name in ROW_METRICS.items()} | {SECONDS: seconds}
        values = {name: value for name, value in named.items() if value is not None}
        values[RATE] = float(f"{values[RATE]:.6g}")  # 0.0392 rather than 0.039200000000000006
        self.journal.append("metrics", seed=seed, step=row.step, values=values, restored=restored)

    def log_training(
        self,
        model: Path,
        meta: ModelMeta,
        reports: Path,
        histories: Mapping[int, Sequence[HistoryRow]],
        seconds: float | None = None,
        *,
        restored: bool = False,
    ) -> None:
        """Record the reports and the model of train, which `classifier.serving` loads; the weights' hash is a tag.

        For several seeds, the run has the curves of the chosen one; mean, deviation and interval over all seeds; and
        the `seconds` of all seeds together.
        """
        tags = {WEIGHTS_TAG: meta.weights_sha256}
        if self.params.train.seeds > 1:
            for row in histories[meta.seed]:
                self._log_row(None, row, None, restored)
            spreads = summary_metrics(histories, self.params.train.keep.weights)
            if seconds is not None:
                spreads[SECONDS] = seconds
            step = histories[meta.seed][-1].step
            self.journal.append("metrics", seed=None, step=step, values=spreads, restored=restored)
            tags[CHOSEN_TAG] = str(meta.seed)
            for seed, rows in histories.items():
                self._log_kept(seed, rows, restored)
        self._log_kept(None, histories[meta.seed], restored)
        self.journal.keep(reports, "train")
        self.journal.append("files", path="train", restored=restored)
        self._log_costs(reports, restored)
        for name in ("weights.safetensors", "meta.json"):  # without the other seeds
            self.journal.keep(model / name, f"model/classifier/{name}")
        # The code that loads it, copied because it may change before the upload.
        code = {"model-code/classifier": PACKAGE}
        if is_own(meta.architecture):
            code[f"model-code/{FOLDER}"] = own_folder()
        for path, folder in code.items():
            self.journal.keep(folder, path)
        self.journal.append(
            "model",
            path="model/classifier",
            code=list(code),
            packages=packages_of(meta.architecture),
            channels=meta.channels,
            size=meta.size,
            class_names=meta.class_names,
            restored=restored,
        )
        self.journal.append("tags", tags=tags, restored=restored)

    def _log_kept(self, seed: int | None, rows: Sequence[HistoryRow], restored: bool) -> None:
        """Record the kept weights' values one step after the last, so that a run's last values are its model's."""
        kept, last = kept_row(rows, self.params.train.keep.weights), rows[-1]
        if kept is not last:
            row = replace(kept, step=last.step + 1, learning_rate=last.learning_rate, running_loss=None)
            self._log_row(seed, row, None, restored)

    def _log_costs(self, reports: Path, restored: bool) -> None:
        values = {f"network/{name}": float(value) for name, value in read_costs(reports).items()}
        self.journal.append("metrics", seed=None, step=0, values=values, restored=restored)

    def log_evaluation(
        self,
        metrics: Mapping[str, float],
        of_replicas: Mapping[int, Mapping[str, float]],
        reports: Path,
        model: Path,
    ) -> None:
        """Record the outputs of evaluate, the test metrics of each seed, and DVC's hash of the model."""
        for seed, values in [*of_replicas.items(), (None, metrics)]:
            self.journal.append("metrics", seed=seed, step=0, values=test_metrics(values))
        self.journal.keep(reports, "evaluate")
        self.journal.append("files", path="evaluate")
        self.journal.append("tags", tags={EVALUATED_TAG: "true", MODEL_TAG: hash_of(model)})

    def run_lines(self) -> list[str]:
        """The lines to print at the end of a stage: its run's name, short id and page. Empty without MLflow."""
        if self.run is None:
            return []
        return [f"run {self.run.name}, id {self.run.id[:8]}", page_of(self.run.experiment, self.run.id)]

    def end(self, status: str, error: str | None) -> None:
        """Close the journal and wait for the recorder while it makes progress.

        After a signal it waits for STOPPING_S at most, and the recorder continues on its own. The recorder itself
        reports what it cannot upload.
        """
        if self.log:
            self.journal.keep_text("\n".join(self.log) + "\n", f"logs/{self.stage}.txt")
            self.journal.append("files", path="logs")
        self.journal.append("end", status=status, error=error)
        assert self.recorder, "there is no recorder"
        assert self.recorder.stdin
        self.recorder.stdin.close()
        begin, progress, told = time.monotonic(), Progress(), status != "FINISHED"
        while self.recorder.poll() is None:
            if status == "KILLED" and time.monotonic() - begin > STOPPING_S:
                break
            if not told and time.monotonic() - begin > TELLING_S:
                told = True
                print(f"{self.stage}: done; MLflow is still storing its files", file=sys.stderr, flush=True)
            if progress.stalled_s() > deliverer.PATIENCE_S:
                self.recorder.kill()
                self.recorder.wait()
                print(
                    f"MLflow: no progress for {deliverer.PATIENCE_S:g} s; not yet recorded in MLflow: classifier sync",
                    file=sys.stderr,
                )
            with suppress(subprocess.TimeoutExpired):
                self.recorder.wait(0.1)
        else:
            if self.recorder.stdout:
                with self.recorder.stdout as said, suppress(ValueError):  # it printed nothing
                    self.run = RecordedRun(**json.loads(said.read()))
        self.journal.release()


def start_recorder(journal: Journal) -> subprocess.Popen[bytes]:
    """Start the process that uploads `journal`, in its own session, so that it outlives a killed stage."""
    path = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(  # noqa: S603, fixed arguments
        [sys.executable, "-m", "classifier.tracking.recorder", str(journal.folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,  # for the line that identifies the run
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
    )


@contextmanager
def recording(stage: str, params: Params) -> Iterator[Recording]:
    """Record a stage during the block.

    Its run ends as FINISHED, KILLED (by a signal) or FAILED, the latter two with the error as a tag.
    """
    record = Recording(stage, params)
    with record.recorded:
        try:
            yield record
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt | SystemExit)
            record.log += traceback.format_exception(error)
            message = f"{type(error).__name__}: {error}"[:5000]
            with suppress(OSError):  # on a full disk, report the first error only
                record.end("KILLED" if stopped else "FAILED", message)
            raise
        record.end("FINISHED", None)


def restore_training(
    record: Recording, data: Path, data_meta: DatasetMeta, model: Path, meta: ModelMeta, reports: Path
) -> None:
    """Record a training from its outputs, for a run that must be created afterwards."""
    record.journal.append("tags", tags={RESTORED_TAG: "true"}, restored=True)
    record.log_data(data, data_meta, restored=True)
    record.log_data_report(reports.with_name("data"), restored=True)
    seeds = [int(seed) for seed in meta.replicas]
    histories = read_histories(reports, seeds) or {meta.seed: read_history(reports / "history.csv")}
    for seed, rows in histories.items():
        for row in rows:
            record.log_row(seed, row, restored=True)
    record.log_training(model, meta, reports, histories, restored=True)
