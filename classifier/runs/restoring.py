"""Records outputs that have no run: after `dvc pull` in a fresh clone, or restored from DVC's run cache.

Their params and code are taken from dvc.lock; the current params.yaml and working folder may differ. The environment
that produced them is unknown, so none is recorded.
"""

from __future__ import annotations

import csv
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow.entities import Run
from ruamel.yaml import YAML

from classifier.data.dataset import read_meta
from classifier.networks.model_dir import read_model_meta
from classifier.params import STAGES, Params, parse_params, upgraded, upgraded_sections
from classifier.project.files import json_bytes, sha256
from classifier.project.lineage import project_root
from classifier.project.ownership import owning
from classifier.recording.run import Outputs, Recording, restore_training
from classifier.recording.tags import COMMIT_TAG, DATA_TAG, DIRTY_TAG, PROBLEM_TAG, WEIGHTS_TAG
from classifier.repository.code import GitState, code_digests, git_state
from classifier.repository.git import GitError, Repository, git_line
from classifier.repository.lockfile import LOCK, Lock, hash_of, read_lock
from classifier.repository.outputs import DATA, EVALUATION, MODEL, TRAINING
from classifier.tracking.connection import open_store, runs_with_tag
from classifier.tracking.delivery import deliver, deliver_waiting, holds

PARAMS = Path("params.yaml")


@dataclass(frozen=True)
class Recorded:
    """The run that has the workspace's outputs."""

    run: Run
    new: bool  # recorded by this call

    @property
    def source(self) -> str:
        """Describe the code that produced the outputs."""
        tags = self.run.data.tags
        changed = {"true": " with uncommitted changes", "false": ""}.get(tags.get(DIRTY_TAG, ""), ", changes unknown")
        unknown = f"no known commit ({tags.get(PROBLEM_TAG)})"
        return f"commit {tags[COMMIT_TAG]}{changed}" if COMMIT_TAG in tags else unknown


def record() -> Recorded:
    """Find the run that has the workspace's outputs, or create it. Concurrent calls are safe.

    Raises FileNotFoundError or UserError if outputs are missing or differ from dvc.lock.
    """
    lock = read_lock()
    lock.check([DATA, MODEL, TRAINING, EVALUATION])
    params = _params_of(lock)
    meta = read_model_meta(MODEL)
    metrics = json.loads((EVALUATION / "metrics.json").read_bytes())
    with owning(project_root() / ".pipeline/record"):
        experiment = open_store()
        deliver_waiting()  # one of the journals may belong to the run
        outputs: Outputs = {"tags": {DATA_TAG: lock.outputs[DATA.as_posix()]}, "metrics": metrics}
        for run in runs_with_tag(experiment, WEIGHTS_TAG, meta.weights_sha256):
            if upgraded(run.data.params) == _as_text(params) and holds(run, outputs):
                return Recorded(run, new=False)
        return Recorded(mlflow.get_run(_deliver(lock, params, meta.weights_sha256, outputs)), new=True)


def _params_of(lock: Lock) -> Params:
    """The stages' params from dvc.lock, and the commands' params from params.yaml."""
    today = YAML(typ="safe", pure=True).load(PARAMS)
    ours = {section: values for section, values in today.items() if section not in STAGES}
    return parse_params(json.dumps(ours | upgraded_sections(lock.params)), LOCK)


def _as_text(params: Params) -> dict[str, str]:
    return {name: str(value) for name, value in params.flat().items()}


def _deliver(lock: Lock, params: Params, weights: str, outputs: Outputs) -> str:
    """Write the journal of these outputs, upload it, and return the run's id."""
    record = Recording("evaluate", params, recorder=False)  # the stage that creates runs from a training's outputs
    try:
        key = sha256(json_bytes([lock.outputs, _as_text(params)]))[:32]
        record.begin(key, {}, weights, made_by(lock), outputs)
        record.journal.keep_text(json_bytes(lock.params), f"code/{PARAMS}")  # JSON is YAML
        restore_training(record, DATA, read_meta(DATA), MODEL, read_model_meta(MODEL), TRAINING)
        record.log_evaluation(outputs["metrics"], _of_replicas(EVALUATION / "replicas.csv"), EVALUATION, MODEL)
        record.journal.append("end", status="FINISHED", error=None)
        return deliver(record.journal)
    except BaseException:
        record.journal.remove()  # a failure that was reported must not be recorded later
        raise


def _of_replicas(path: Path) -> dict[int, dict[str, float]]:
    """Each seed's metrics; empty if a single model was trained."""
    if not path.exists():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    return {int(row.pop("seed")): row for row in rows}


def made_by(lock: Lock) -> GitState:
    """The code with the hashes in dvc.lock: of HEAD, of a commit with this dvc.lock, or of the working folder.

    If none of them matches, the state has no commit, and its `problem` says so.
    """
    try:
        repository = Repository.of(Path())
        content = git_line(Path(), "hash-object", str(LOCK))
        commits = git_line(Path(), "log", "--format=%H", f"--find-object={content}", "--", str(LOCK)).split()
        for commit in dict.fromkeys([repository.head(), *commits]):
            with repository.scratch() as scratch, tempfile.TemporaryDirectory() as folder:
                if _holds_code(scratch.extract(commit, Path(folder)), lock):
                    return GitState(commit, code=code_digests(scratch, [commit]).get(commit, ""))
    except GitError as error:
        return GitState(problem=str(error)[:500])
    if _holds_code(Path(), lock):
        return git_state()
    return GitState(problem=f"the code of {LOCK} is neither in HEAD nor in a commit with it nor in the working folder")


def _holds_code(project: Path, lock: Lock) -> bool:
    return all(hash_of(project / path) == recorded for path, recorded in lock.code.items())
